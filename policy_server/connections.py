"""Bounds what ZeroMQ does not: connections, and what each sends before a message of it is whole.

ZeroMQ hands over whole messages only and bounds the size of a frame, not the number of frames; so a
message without end would lie in memory for ever before anybody could refuse it. Nor does it bound
how many clients connect. Here every connection is known by its file descriptor; one that is beyond
a bound is shut down below ZeroMQ. That forgets a message that is not whole then, but hands over
those that are, so newcomers are turned away while too much of that is left.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import resource
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import zmq

log = logging.getLogger(__name__)

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
_READABLE, _SOURCE = int(zmq.POLLIN), int(zmq.SRCFD)
_EVENT = struct.Struct("=hi")  # of a monitor's first frame: which event, and its file descriptor
_BYTES_RECEIVED = struct.Struct("@128xQ")  # in Linux's struct tcp_info
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s
_COUNTS_BYTES = sys.platform == "linux"
_HEARTBEATS_BYTES_PER_S = 100.0
"""What a client may send besides messages."""
_SHORT, _SHORT_HEAD, _LONG_HEAD = 255, 2, 9
"""ZMTP's head of a frame of up to so many bytes, and of a longer one."""
_WARN_EVERY_S = 10.0
_TOTAL = 8
"""Times what one connection may have unread, all together may have."""
_OTHER_DESCRIPTORS = 128
"""Of files, threads and sockets that are no client's."""
_numbers = itertools.count()


@dataclass
class _Connection:
    """One client.

    Attributes:
        endpoint: the same connection as ZeroMQ's, by a descriptor of our own: it stays this one
            when ZeroMQ closes its own.
        baseline: bytes received at the last look at which all its messages had been read.
        since_s: when that was.
        read: bytes of messages that have been read since then.
        spoke: a message of it has been read.
    """

    endpoint: socket.socket
    since_s: float
    baseline: int = 0
    read: int = 0
    spoke: bool = False

    def bytes_received(self) -> int:
        """By TCP, since it was opened; 0 where that cannot be known."""
        if not _COUNTS_BYTES or self.endpoint.family == socket.AF_UNIX:
            return 0
        state = self.endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        received: int = _BYTES_RECEIVED.unpack(state.ljust(_BYTES_RECEIVED.size, b"\0"))[0]
        return received


def reserve_descriptors(most: int) -> None:
    """Let this process have as many open files as so many connections need, two each.

    Raises:
        ValueError: the system does not allow that.
    """
    needed = 2 * most + _OTHER_DESCRIPTORS
    allowed, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= allowed or allowed == resource.RLIM_INFINITY:
        return
    if highest != resource.RLIM_INFINITY and needed > highest:
        msg = (
            f"max_clients: {most} need {needed} open files, the system allows {highest}; "
            "take fewer, or raise the limit (ulimit -Hn)"
        )
        raise ValueError(msg)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, highest))


class Connections:
    """The clients of one socket.

    Args:
        context: of the socket.
        watched: not yet bound.
        most: connections at one time; of more, who has said nothing yet is dropped first.
        max_partial_bytes: that a connection may have sent of a message that is not whole.
        max_unread_bytes: of messages that are whole and that nobody has read.
        frame_bytes: that a frame takes on the wire beyond what ZMTP adds to one without security.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        watched: zmq.Socket[bytes],
        *,
        most: int,
        max_partial_bytes: int,
        max_unread_bytes: int,
        frame_bytes: int,
    ) -> None:
        self._most = most
        self._max_partial_bytes = max_partial_bytes
        self._max_unread_bytes = max_unread_bytes
        self._frame_bytes = frame_bytes
        self._open: dict[int, _Connection] = {}
        self._uncounted: list[tuple[zmq.Frame, Sequence[memoryview]]] = []
        self._read: dict[int, int] = {}  # bytes since the last look, by descriptor
        self._left_behind = 0
        self._dropped, self._warned_s = 0, -_WARN_EVERY_S
        self._watched = watched
        address = f"inproc://connections-{next(_numbers)}"
        watched.monitor(address, _EVENTS)
        self._events = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        # ZeroMQ's own thread would wait for room while it holds a lock that closing needs
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._events.connect(address)
        self._polled = [(self._events, _READABLE)]

    @property
    def crowded(self) -> bool:
        """Whether there are more than there may be."""
        return len(self._open) > self._most

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    def read_from(self, frame: zmq.Frame, frames: Sequence[memoryview]) -> None:
        """A whole message has been read; `frame` is the last of its `frames`."""
        self._uncounted.append((frame, frames))

    def count(self) -> None:
        """Whose the messages were that have been read, and how large."""
        for frame, frames in self._uncounted:
            size = 0
            for one in frames:
                body = len(one) + self._frame_bytes
                size += body + (_LONG_HEAD if body > _SHORT else _SHORT_HEAD)
            try:
                descriptor = int(frame.get(_SOURCE))
            except zmq.ZMQError:  # a client with ZMTP below 3, which is none of ours
                continue
            self._read[descriptor] = self._read.get(descriptor, 0) + size
        self._uncounted.clear()

    def update(self, now_s: float) -> None:
        """Take note of who came and went.

        Args:
            now_s: monotonic clock.
        """
        while zmq.zmq_poll(self._polled, 0):
            event = self._events.recv_multipart()[0]
            what, descriptor = _EVENT.unpack(event)
            self._forget(descriptor)
            if what == zmq.EVENT_ACCEPTED:
                self._accepted(descriptor, now_s)

    def check(self, now_s: float, *, drained: bool) -> None:
        """Drop those that are too many, and those that have sent much more than could be read.

        Args:
            now_s: monotonic clock.
            drained: no whole message is left to be read.
        """
        self.update(now_s)
        self.count()
        if drained:
            self._left_behind = 0
        pending: list[tuple[int, int]] = []
        for descriptor, connection in list(self._open.items()):
            received = connection.bytes_received()
            read = self._read.get(descriptor, 0)
            if read:
                connection.spoke = True
                connection.read += read
                if drained:
                    connection.baseline, connection.read, connection.since_s = received, 0, now_s
                    continue
            allowed = self._max_unread_bytes if connection.read else self._max_partial_bytes
            heartbeats = int(_HEARTBEATS_BYTES_PER_S * (now_s - connection.since_s))
            unread = max(0, received - connection.baseline - connection.read - heartbeats)
            if unread > allowed:
                self._drop(descriptor, unread)
            else:
                pending.append((unread, descriptor))
        total = self._left_behind + sum(unread for unread, _ in pending)
        for unread, descriptor in sorted(pending, reverse=True):
            if total <= _TOTAL * self._max_unread_bytes:
                break
            self._drop(descriptor, unread)
            total -= unread
        while len(self._open) > self._most:
            self._drop(self._one_too_many())
        self._read.clear()
        if self._dropped and now_s >= self._warned_s + _WARN_EVERY_S:
            log.warning(
                "dropped %d connections: more than %d at one time, %d bytes without a whole "
                "message or %d unread",
                self._dropped,
                self._most,
                self._max_partial_bytes,
                self._max_unread_bytes,
            )
            self._dropped, self._warned_s = 0, now_s

    def _accepted(self, descriptor: int, now_s: float) -> None:
        try:
            own = os.dup(descriptor)
        except OSError as error:
            if error.errno == errno.EMFILE:  # no room for another descriptor: by ZeroMQ's own
                with suppress(OSError):
                    endpoint = socket.socket(fileno=descriptor)
                    endpoint.shutdown(socket.SHUT_RDWR)
                    endpoint.detach()
                self._dropped += 1
            return  # else it is closed again meanwhile
        try:
            endpoint = socket.socket(fileno=own)
        except OSError:  # and used for a file
            os.close(own)
            return
        self._open[descriptor] = _Connection(endpoint, now_s)
        if self._left_behind > _TOTAL * self._max_unread_bytes:
            self._drop(descriptor)

    def _one_too_many(self) -> int:
        """Who has been here longest without a word, if anybody has, else the last to come."""
        for descriptor, connection in self._open.items():
            if not connection.spoke:
                return descriptor
        return next(reversed(self._open))

    def _drop(self, descriptor: int, unread: int = 0) -> None:
        """ZeroMQ will find it closed by the other side, and close it, too."""
        connection = self._open.pop(descriptor)
        self._left_behind += unread
        with suppress(OSError):  # it is closed already
            # with a reset, that tells the client even if it is in the middle of sending
            connection.endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.endpoint.shutdown(socket.SHUT_RDWR)
        connection.endpoint.close()
        self._dropped += 1

    def _forget(self, descriptor: int) -> None:
        """ZeroMQ has closed it."""
        connection = self._open.pop(descriptor, None)
        if connection is not None:
            connection.endpoint.close()

    def close(self) -> None:
        """Let go of all; before the watched socket is closed."""
        self._watched.disable_monitor()
        self._events.close()
        while self._open:
            _, connection = self._open.popitem()
            connection.endpoint.close()
