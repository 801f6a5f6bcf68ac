"""The loop around a socket: poll between network calls, decode, serve, reply. Only here is zmq."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import zmq

from client import wire
from client.errors import PolicyError, ProtocolError, ServerFaultError
from client.messages import ActRequest, ErrorReply, MetadataRequest, PingRequest, Reply
from policy_server.service import Service

log = logging.getLogger(__name__)

_IDLE_POLL_MS = 100
_ENCODING_POLL_MS = 1
_MESSAGES_PER_CALL = 64
_RECEIVE_HIGH_WATER_MARK = 16
_DRAIN_LINGER_MS = 500


class Reactor:
    """Owns the ROUTER socket; single-threaded, so nothing here needs a lock.

    Args:
        limits: of what is accepted from the socket.
    """

    def __init__(self, limits: wire.WireLimits) -> None:
        self._limits = limits
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # messages that one client may have waiting here before its own socket holds them back
        self._socket.setsockopt(zmq.RCVHWM, _RECEIVE_HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.max_frame_bytes)

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
        """Send a reply; a client that is gone or does not read loses it, and nobody waits."""
        try:
            frames = wire.encode(reply, self._limits)
        except ValueError as error:
            log.exception("reply to request %s cannot be sent", reply.request_id)
            fault = ServerFaultError(f"unsendable: {error}", request_id=reply.request_id)
            frames = wire.encode(ErrorReply.from_error(fault), self._limits)
        try:
            self._socket.send_multipart([address, *frames], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:
            log.warning("reply to request %s not sent: %s", reply.request_id, error)

    def serve(self, service: Service, stopping: Callable[[], bool]) -> None:
        """Serve until `stopping` says so, then finish what is in service and return."""
        while not stopping():
            if service.busy:
                wait_ms = 0
            else:
                wait_ms = _ENCODING_POLL_MS if service.encoding_instructions else _IDLE_POLL_MS
            self._turn(service, wait_ms)
        service.drain()
        while not service.idle:
            self._turn(service, 0)

    def _turn(self, service: Service, wait_ms: int) -> None:
        """Take in what has arrived, then make at most one network call."""
        if self._socket.poll(wait_ms, zmq.POLLIN):
            self._receive(service)
        service.collect_instructions()
        service.advance()

    def _receive(self, service: Service) -> None:
        for _ in range(_MESSAGES_PER_CALL):
            try:
                address, *frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            self._dispatch(service, address.bytes, [frame.buffer for frame in frames])

    def _dispatch(self, service: Service, address: bytes, frames: list[memoryview]) -> None:
        """One message: every decodable request gets exactly one reply, an error if need be."""
        arrived_s = time.monotonic()
        request_id = None
        try:
            message = wire.decode(frames, self._limits)
            request_id = message.request_id
            if not isinstance(message, ActRequest | MetadataRequest | PingRequest):
                msg = f"type: expected a request, got {type(message).__name__}"
                raise ProtocolError(msg)
            service.handle(address, message, arrived_s)
        except PolicyError as error:
            if error.request_id is None:
                error.request_id = request_id
            self.send(address, ErrorReply.from_error(error))
        except Exception as error:  # the boundary: a bug in here costs one request
            log.exception("request %s could not be handled", request_id)
            fault = ServerFaultError(f"internal: {type(error).__name__}", request_id=request_id)
            self.send(address, ErrorReply.from_error(fault))

    def close(self) -> None:
        """Flush replies for a moment, then close."""
        self._socket.close(linger=_DRAIN_LINGER_MS)
        self._context.term()
