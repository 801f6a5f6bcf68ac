"""Bounds what ZeroMQ does not: connections, and what each sends before a message of it is whole.

ZeroMQ hands over whole messages only and bounds the size of a frame, not the number of frames; so a
message without end would lie in memory for ever before anybody could refuse it. Nor does it bound
how many clients connect. Here every connection is known by its file descriptor; one that is beyond
a bound is shut down below ZeroMQ, which then forgets all that came over it.
"""

from __future__ import annotations

import itertools
import logging
import os
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import zmq

log = logging.getLogger(__name__)

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
_READABLE = int(zmq.POLLIN)
_EVENT = struct.Struct("=hi")  # of a monitor's first frame: which event, and its file descriptor
_BYTES_RECEIVED = struct.Struct("@128xQ")  # in Linux's struct tcp_info
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s
_COUNTS_BYTES = sys.platform == "linux"
_HEARTBEATS_BYTES_PER_S = 100.0
"""What a client may send besides messages."""
_SHORT, _SHORT_HEAD, _LONG_HEAD = 255, 2, 9
"""ZMTP's head of a frame of up to so many bytes, and of a longer one."""
_WARN_EVERY_S = 10.0
_OTHER_DESCRIPTORS = 128
"""Of files, threads and sockets that are no client's."""
_numbers = itertools.count()


@dataclass
class _Connection:
    """One client.

    Attributes:
        endpoint: the same connection as ZeroMQ's, by a descriptor of our own: it stays this one
            when ZeroMQ closes its own.
        received: bytes until the last look at which all its messages so far had been read.
        since_s: when that was.
        read: bytes of messages that have been read since then.
        spoke: a message of it has been read.
    """

    endpoint: socket.socket
    since_s: float
    received: int = 0
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
        most: connections at one time; whoever comes later takes the place of one that has not
            said anything, or is turned away.
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
        self._heard_of: Counter[int] = Counter()
        self._dropped, self._warned_s = 0, -_WARN_EVERY_S
        self._watched = watched
        address = f"inproc://connections-{next(_numbers)}"
        watched.monitor(address, _EVENTS)
        self._events = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        # ZeroMQ's own thread would wait for room while it holds a lock that closing needs
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._events.connect(address)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    def read_from(self, frame: zmq.Frame, frames: Sequence[memoryview]) -> None:
        """A whole message has been read; `frame` is the last of its `frames`."""
        size = 0
        for one in frames:
            body = len(one) + self._frame_bytes
            size += body + (_LONG_HEAD if body > _SHORT else _SHORT_HEAD)
        with suppress(zmq.ZMQError):  # a client with ZMTP below 3, which is none of ours
            self._heard_of[int(frame.get(zmq.SRCFD))] += size

    def update(self, now_s: float) -> None:
        """Take note of who came and went; those who are too many are dropped before they are heard.

        Args:
            now_s: monotonic clock.
        """
        while int(self._events.getsockopt(zmq.EVENTS)) & _READABLE:
            event = self._events.recv_multipart()[0]
            what, descriptor = _EVENT.unpack(event)
            self._forget(descriptor)
            if what == zmq.EVENT_ACCEPTED:
                self._accepted(descriptor, now_s)

    def check(self, now_s: float, *, drained: bool) -> None:
        """Drop those that have sent much more than could be read.

        Args:
            now_s: monotonic clock.
            drained: no whole message is left to be read.
        """
        self.update(now_s)
        for descriptor, connection in list(self._open.items()):
            received = connection.bytes_received()
            read = self._heard_of.get(descriptor, 0)
            if read:
                connection.spoke = True
                connection.read += read
                if drained:
                    connection.received, connection.read, connection.since_s = received, 0, now_s
                    continue
            allowed = self._max_unread_bytes if connection.read else self._max_partial_bytes
            allowed += int(_HEARTBEATS_BYTES_PER_S * (now_s - connection.since_s))
            if received - connection.received - connection.read > allowed:
                self._open.pop(descriptor)
                self._drop(connection)
        self._heard_of.clear()
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
        except OSError:  # closed again meanwhile
            return
        try:
            connection = _Connection(socket.socket(fileno=own), now_s)
        except OSError:  # and used for a file
            os.close(own)
            return
        if len(self._open) >= self._most and not self._make_room():
            self._drop(connection)
        else:
            self._open[descriptor] = connection

    def _make_room(self) -> bool:
        """Drop who has been here longest without a word, if anybody has: it costs nothing to be."""
        for descriptor, connection in self._open.items():
            if not connection.spoke and descriptor not in self._heard_of:
                self._drop(self._open.pop(descriptor))
                return True
        return False

    def _drop(self, connection: _Connection) -> None:
        """ZeroMQ will find it closed by the other side, and close it, too."""
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
