"""Sends hostile messages to a server and counts what comes back; run as a process of its own.

    python -m benchmarks.hostile_sender ADDRESS COUNT RATE_HZ SEED

It reads its replies, so that whatever is missing is the server's doing. Beside the messages come
connections that break ZeroMQ's own protocol. It writes a JSON object to stdout at the end.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields

import msgpack
import zmq

from benchmarks.hostile_messages import HostileMessages
from client import PolicyClient
from client.wire import WireLimits

_MOST_OPEN = 100
"""So many replies may be owed before the next message goes out: fewer than a server keeps ready
for a client that does not read."""
_REPLY_WITHIN_S = 5.0
_CONNECTION_EVERY = 200
"""One hostile connection a so many messages."""
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HANDSHAKE = _GREETING + b"\x04" + bytes([len(_READY)]) + _READY
"""With which a client begins a connection (ZMTP 3.0, rfc.zeromq.org/spec/23)."""
_WAIT_S = 0.2


def frame(body: bytes, *, more: bool) -> bytes:
    """A frame as it travels: flags, 8 bytes of length, body."""
    return bytes([2 | more]) + len(body).to_bytes(8, "big") + body


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 5000))


def _half_a_message(_rng: random.Random) -> bytes:
    return HANDSHAKE + frame(b"x" * 100, more=True)[:50]


def _gigantic_frame(_rng: random.Random) -> bytes:
    return HANDSHAKE + b"\x02" + (2**63 - 1).to_bytes(8, "big") + bytes(1000)


def _unending_message(_rng: random.Random) -> bytes:
    return HANDSHAKE + frame(bytes(8000), more=True) * 1000


_CONNECTIONS: tuple[Callable[[random.Random], bytes], ...] = (
    _noise,
    _half_a_message,
    _gigantic_frame,
    _unending_message,
)


def limits_of(limits: dict[str, float]) -> WireLimits:
    """Those of the wire, from what a server says of itself."""
    return WireLimits(**{field.name: int(limits[field.name]) for field in fields(WireLimits)})


class Sender:
    """Sends, and reads replies between.

    Attributes:
        sent: messages by kind.
        owed: request_id → replies that are still to come; None is the key of those without one.
        surplus: replies that nobody was owed.
        replies: all of them.
    """

    def __init__(self, address: str, messages: HostileMessages) -> None:
        self._messages = messages
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self._socket.setsockopt(option, 0)
        self._socket.connect(address)
        self.sent: Counter[str] = Counter()
        self.owed: Counter[int | None] = Counter()
        self.surplus = self._nameless = 0
        self.replies = 0

    def send(self) -> None:
        """One message, as soon as not too many replies are owed."""
        self._read_until(_MOST_OPEN)
        message = self._messages.next()
        self._socket.send_multipart(message.frames)
        self.sent[message.kind] += 1
        if message.owed:
            self.owed[message.request_id] += 1
        self._read(0.0)

    def finish(self) -> None:
        """Wait for what is owed, and for what is not."""
        self._read_until(0)
        self._read(_WAIT_S)
        # whose number is that of one in service gets an error without it
        nameless = min(self._nameless, self.owed.total())
        self.surplus += self._nameless - nameless
        for request_id in list((+self.owed).elements())[:nameless]:
            self.owed[request_id] -= 1

    def _read_until(self, open_replies: int) -> None:
        until_s = time.monotonic() + _REPLY_WITHIN_S
        while self.owed.total() - self._nameless > open_replies and time.monotonic() < until_s:
            self._read(_WAIT_S)

    def _read(self, timeout_s: float) -> None:
        while self._socket.poll(int(timeout_s * 1000)):
            timeout_s = 0.0
            reply = msgpack.unpackb(self._socket.recv_multipart()[0])
            self.replies += 1
            request_id = reply["request_id"]
            if self.owed[request_id] > 0:
                self.owed[request_id] -= 1
            elif request_id is None:
                self._nameless += 1
            else:
                self.surplus += 1

    def close(self) -> None:
        """Drop what is still to be sent."""
        self._socket.close(linger=0)
        self._context.term()


def attack_connection(address: str, number: int, rng: random.Random) -> str:
    """One connection that breaks ZeroMQ's own protocol; returns its kind."""
    kind = _CONNECTIONS[number % len(_CONNECTIONS)]
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0) as connection:
        connection.sendall(kind(rng))
    return kind.__name__.removeprefix("_")


def run(address: str, count: int, rate_hz: float, seed: int) -> dict[str, object]:
    """Send so many, at this rate or slower; what came of it."""
    with PolicyClient(address) as policy:
        metadata = policy.metadata(timeout_s=10.0)
    messages = HostileMessages(metadata.spec, limits_of(dict(metadata.limits)), seed)
    rng = random.Random(seed)
    connections: Counter[str] = Counter()
    sender = Sender(address, messages)
    begun_s = time.monotonic()
    try:
        for number in range(count):
            time.sleep(max(0.0, begun_s + number / rate_hz - time.monotonic()))
            sender.send()
            if number % _CONNECTION_EVERY == 0:
                connections[attack_connection(address, number // _CONNECTION_EVERY, rng)] += 1
        sender.finish()
    finally:
        sender.close()
    return {
        "messages": sender.sent.total(),
        "connections": connections.total(),
        "replies": sender.replies,
        "unanswered": sender.owed.total(),
        "surplus": sender.surplus,
        "duration_s": time.monotonic() - begun_s,
        "kinds": {**sender.sent, **connections},
    }


def main() -> None:
    """Entry point."""
    address, count, rate_hz, seed = sys.argv[1:]
    report = run(address, int(count), float(rate_hz), int(seed))
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
