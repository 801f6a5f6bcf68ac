"""A DEALER socket on which nothing waits for an absent server; the client's only socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import zmq

from client.errors import InvalidRequestError
from client.keys import ClientKeys
from client.wire import Frame

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
HIGH_WATER_MARK = 64
"""Messages that wait in either direction; more is a bug or a dead peer."""
_NOW, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)  # an enum's | is slower than send


class Connection:
    """Comes back by itself after the server was away; of one thread, like the socket in it."""

    def __init__(
        self,
        address: str,
        max_frame_bytes: int,
        context: Context | None,
        keys: ClientKeys | None = None,
    ) -> None:
        """Begin to connect; returns at once, whether a server is there or not.

        Args:
            address: as ZeroMQ writes it.
            max_frame_bytes: a larger frame is never received.
            context: to share ZeroMQ's threads with other sockets; `close` ends only an own one.
            keys: of a server that asks for them.

        Raises:
            InvalidRequestError: the address cannot be one.
        """
        self._owns_context = context is None
        self._context = context or zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._readable = [(self._socket, int(zmq.POLLIN))]
        self._writable = [(self._socket, int(zmq.POLLOUT))]
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, HIGH_WATER_MARK),
            (zmq.RCVHWM, HIGH_WATER_MARK),
            (zmq.MAXMSGSIZE, max_frame_bytes),
            (zmq.IMMEDIATE, 1),  # nothing piles up for a server that is not there
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 500),  # a robot must be back within a second of its server
            (zmq.CONNECT_TIMEOUT, 1000),  # TCP alone would wait for minutes, ever more rarely
            (zmq.HANDSHAKE_IVL, 2000),  # and for whoever accepts and then says nothing
            # notices a host that vanished without a goodbye, as ZeroMQ's heartbeats would; but one
            # of those behind 64 unread messages aborts a libzmq 4.3.5 that serves, if we are gone
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 1),
            (zmq.TCP_KEEPALIVE_INTVL, 1),
            (zmq.TCP_KEEPALIVE_CNT, 3),
            (zmq.TCP_MAXRT, 3000),
        ):
            self._socket.setsockopt(option, value)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_public)
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            msg = f"address: expected e.g. tcp://127.0.0.1:5555, got {address!r} ({error})"
            raise InvalidRequestError(msg) from error

    def send(self, frames: Sequence[Frame]) -> bool:
        """Whether it could be handed over at once; the frames are copied before it returns."""
        try:
            for frame in frames[:-1]:
                self._socket.send(frame, _MORE)
            self._socket.send(frames[-1], _NOW)
        except zmq.Again:
            return False
        return True

    def receive(self, wait_ms: int = 0) -> list[bytes] | None:
        """The next message, if one is there or comes within so long, or None."""
        if not zmq.zmq_poll(self._readable, wait_ms):  # a fraction of the socket's own poll
            return None
        frame = self._socket.recv(_NOW, copy=False)
        frames = [frame.bytes]  # copied, since ZeroMQ's own memory need not be aligned for floats
        while frame.more:  # asking the socket takes several times as long, as recv_multipart does
            frame = self._socket.recv(_NOW, copy=False)
            frames.append(frame.bytes)
        return frames

    def wait_connected(self, at_most_ms: int = 0) -> bool:
        """Whether there is a server to send to, within so long."""
        return bool(zmq.zmq_poll(self._writable, at_most_ms))

    def close(self) -> None:
        """At once; what is still to be sent is dropped."""
        self._socket.close(linger=0)
        if self._owns_context:
            self._context.term()
