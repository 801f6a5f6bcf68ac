"""The loop around a socket: poll between network calls, decode, serve, reply. Only here is zmq."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack

import zmq

from client import wire
from client.errors import PolicyError, ProtocolError, ServerFaultError
from client.messages import REQUESTS, CancelRequest, ErrorReply, Reply
from policy_server.connections import Connections
from policy_server.metrics import Metrics
from policy_server.security import ServerKeys
from policy_server.service import Service
from policy_server.unread import Unread

log = logging.getLogger(__name__)

_IDLE_POLL_MS = 20  # not longer, so that connections are checked
_ENCODING_POLL_MS = 1
_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)  # an enum's | is slower than send
_RECEIVE_S = 0.003
"""So long may messages be taken in between two network calls, which have to go on."""
_UNREAD_MESSAGES, _UNREAD_BYTES = 4, 1 << 22
"""A client is cut off with so many of the largest messages unread, but not with less than 4 MB:
a second of a large fleet's requests."""
CURVE_BYTES = 33
"""That CurveZMQ adds to a frame: its command's name, nonce, code and flags (RFC 26)."""
_CHECK_CONNECTIONS_S = 0.02
_HANDSHAKE_WITHIN_MS = 5000
MAX_CLIENTS = 400
_FINISH_S, _REFUSE_S, _DRAIN_LINGER_MS = 0.4, 0.2, 100
"""An orderly end takes less than a second: so long what is in service may take, so long whatever
still comes is refused, and so long replies may take to whoever does not read them."""
_QUIET_MS = 10
"""When no message has come for so long, none is on its way within this machine."""
_SENT_TOGETHER = 16
"""A message that is sent alone wakes ZeroMQ's thread, which takes several times as long as the rest
of sending it; but while more messages are put together, those that are ready wait."""


class Reactor:
    """Owns the ROUTER socket; single-threaded, so nothing here needs a lock.

    Args:
        limits: of what is accepted from the socket.
        keys: of this server and of the clients that may connect; everybody may if None.
        max_clients: connections at one time.

    Attributes:
        metrics: to be told of every reply and every turn, if anybody wants to know.
    """

    def __init__(
        self,
        limits: wire.WireLimits,
        keys: ServerKeys | None = None,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self.metrics: Metrics | None = None
        self._limits = limits
        self._drained = True
        self._unread = Unread(time.monotonic())
        self._outbox: list[tuple[int | None, list[wire.Frame]]] = []
        self._context = zmq.Context()
        self._guard = ExitStack()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # with a mark, a client could end this process: libzmq 4.3.5 aborts when a heartbeat lies
        # behind more messages than the mark and its sender is gone; `Connections` bounds them
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.max_frame_bytes)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_WITHIN_MS)
        # a client that vanished without a goodbye gives its place back within half a minute
        for option, value in (
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 15),
            (zmq.TCP_KEEPALIVE_INTVL, 5),
            (zmq.TCP_KEEPALIVE_CNT, 3),
        ):
            self._socket.setsockopt(option, value)
        self._polled = [(self._socket, int(zmq.POLLIN))]
        self._in_too_long = False
        self._connections = Connections(
            self._context,
            self._socket,
            most=max_clients,
            max_partial_bytes=limits.max_message_bytes,
            max_unread_bytes=max(_UNREAD_MESSAGES * limits.max_message_bytes, _UNREAD_BYTES),
            frame_bytes=0 if keys is None else CURVE_BYTES,
        )
        self._checked_s = time.monotonic()
        if keys is not None:
            self._guard.enter_context(keys.protect(self._context))
            keys.apply(self._socket)

    def bind(self, address: str) -> str:
        """Open for business; what a client sent before would be stale by now, so not earlier.

        Args:
            address: e.g. "tcp://127.0.0.1:5555"; with port * a free one is taken.

        Returns:
            The address with its real port.

        Raises:
            OSError: the address cannot be bound.
        """
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            msg = f"--bind {address}: {error}; is another server running there?"
            raise OSError(msg) from error
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, address: bytes, reply: Reply) -> None:
        """Send a reply, at the latest before anything else that takes time.

        A client that is gone or does not read loses it, and nobody waits.
        """
        try:
            frames = wire.encode(reply, self._limits)
        except ValueError as error:
            log.exception("reply to request %s cannot be sent", reply.request_id)
            fault = ServerFaultError(f"unsendable: {error}", request_id=reply.request_id)
            reply = ErrorReply.from_error(fault)
            frames = wire.encode(reply, self._limits)
        if self.metrics is not None:
            self.metrics.replied(reply)
        self._outbox.append((reply.request_id, [address, *frames]))
        if len(self._outbox) >= _SENT_TOGETHER:
            self._flush()

    def _flush(self) -> None:
        if not self._outbox:
            return
        for request_id, frames in self._outbox:
            try:
                # a copy of some hundred bytes takes less than lending them to ZeroMQ's thread
                for frame in frames[:-1]:
                    self._socket.send(frame, _MORE)
                self._socket.send(frames[-1], _NOW)
            except zmq.ZMQError as error:
                log.warning("reply to request %s not sent: %s", request_id, error)
        self._outbox.clear()

    def serve(
        self,
        service: Service,
        stopping: Callable[[], bool],
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Serve until `stopping` says so, then finish what is in service and return.

        Args:
            service: what to serve.
            stopping: asked every turn.
            between: called every turn, between two network calls; takes microseconds.
        """
        while not stopping():
            between()
            if service.busy:
                wait_ms = 0
            else:
                wait_ms = _ENCODING_POLL_MS if service.encoding_instructions else _IDLE_POLL_MS
            self._turn(service, wait_ms)
        self._drain(service)

    def _drain(self, service: Service) -> None:
        """Finish what is in service, refuse all else; no message that has come goes unanswered."""
        service.drain()
        self._flush()
        until_s = time.monotonic() + _FINISH_S
        while not service.idle and time.monotonic() < until_s:
            self._turn(service, 0)
        service.give_up()
        self._flush()
        until_s = time.monotonic() + _REFUSE_S
        while time.monotonic() < until_s and self._socket.poll(_QUIET_MS, zmq.POLLIN):
            self._turn(service, 0)

    def _turn(self, service: Service, wait_ms: int) -> None:
        """Take in what has arrived, then make at most one network call."""
        if self.metrics is not None:
            self.metrics.turned()
        readable = self._readable(wait_ms)
        self._drained = self._drained or not readable
        if self._drained:
            self._unread.drained(time.monotonic())
        if readable:
            self._receive(service)
        now_s = time.monotonic()
        if self._connections.crowded or now_s > self._checked_s + _CHECK_CONNECTIONS_S:
            self._checked_s = now_s
            self._connections.check(now_s, drained=self._drained)
        service.collect_instructions()
        self._flush()
        service.advance()
        self._flush()
        self._connections.count()  # when answers are out

    def _readable(self, wait_ms: int = 0) -> bool:
        """Whether a message is there, within so long; cheaper than the socket's own poll."""
        return bool(zmq.zmq_poll(self._polled, wait_ms))

    def _receive(self, service: Service) -> None:
        """Take in messages, of which there is one."""
        begun_s = time.monotonic()
        until_s = begun_s + _RECEIVE_S
        self._connections.update(begun_s)
        self._take_in(service, self._socket.recv(_NOW, copy=False))
        more = self._readable()
        while more and time.monotonic() < until_s:
            try:  # of many, one exception at their end costs less than asking before each
                frame = self._socket.recv(_NOW, copy=False)
            except zmq.Again:
                more = False
            else:
                self._take_in(service, frame)
        self._drained = not more

    def _take_in(self, service: Service, frame: zmq.Frame) -> None:
        """The message that begins with `frame`, or some more frames of one that has too many."""
        if self._in_too_long:  # they are thrown away
            self._in_too_long = frame.more
            return
        address = frame.bytes
        frames: list[memoryview] = []
        while frame.more and len(frames) <= self._limits.max_frames:
            frame = self._socket.recv(_NOW, copy=False)
            frames.append(frame.buffer)
        self._in_too_long = frame.more
        self._connections.read_from(frame, frames)
        arrived_s = time.monotonic()
        unread_s = self._unread.read(address, arrived_s)
        self._dispatch(service, address, frames, arrived_s, unread_s)

    def _dispatch(
        self,
        service: Service,
        address: bytes,
        frames: list[memoryview],
        arrived_s: float,
        unread_s: float,
    ) -> None:
        """One message: every request that is owed a reply gets exactly one, an error if need be."""
        request_id = None
        try:
            message = wire.decode(frames, self._limits)
            if not isinstance(message, REQUESTS):
                request_id = message.request_id
                msg = f"type: expected a request, got {type(message).__name__}"
                raise ProtocolError(msg)
            if not isinstance(message, CancelRequest):  # its number is another request's
                request_id = message.request_id
            service.handle(address, message, arrived_s, unread_s)
        except PolicyError as error:
            if error.request_id is None:
                error.request_id = request_id
            self.send(address, ErrorReply.from_error(error))
        except Exception as error:  # the boundary: a bug in here costs one request
            log.exception("request %s could not be handled", request_id)
            fault = ServerFaultError(f"internal: {type(error).__name__}", request_id=request_id)
            self.send(address, ErrorReply.from_error(fault))

    def close(self) -> None:
        """Flush replies for a moment, then close; nothing if that is done already."""
        if self._socket.closed:
            return
        self._connections.close()
        self._socket.close(linger=_DRAIN_LINGER_MS)
        self._guard.close()
        self._context.term()
