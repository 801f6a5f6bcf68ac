"""What a broken or hostile client may send: messages that should be refused, and what is owed them.

Mutations of valid messages, random frames, bombs of nesting, size and number, and valid requests
that ask for as much as they can. Pure: from a seed to frames; benchmarks/hostile_sender.py sends
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from client.errors import PolicyError
from client.messages import (
    ActRequest,
    CancelRequest,
    MetadataRequest,
    PingRequest,
    Pong,
)
from client.specs import PolicySpec
from client.wire import WireLimits, decode, encode

_NESTINGS = (
    b"\x91",
    b"\x81\xa1a",
    b"\xdc\x00\x10",
    b"\xdd\x00\x00\x00\x10",
    b"\xdf\x00\x00\x00\x10",
)
"""Beginnings of a list or map in another, of one entry or of sixteen."""
_CLAIMS = (
    b"\xdd\xff\xff\xff\xff",  # a list of 2^32 - 1
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xdb\xff\xff\xff\xff",  # a string
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
)
_JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", " ", "\x00", "ä" * 600, "x" * 5000, "../../etc/passwd", "act", b"act", b"\xff" * 9),
    *([], {}, [[]], {"a": {}}, [None] * 64, {"__class__": "os.system"}),
)


@dataclass(frozen=True)
class Hostile:
    """One message.

    Attributes:
        kind: name of the method of `HostileMessages` that made it.
        frames: to be sent as they are.
        owed: whether it is owed a reply, if it arrives.
        request_id: that this reply has.
    """

    kind: str
    frames: list[bytes]
    owed: bool
    request_id: int | None


class HostileMessages:
    """An endless supply; equal seeds give equal messages.

    Args:
        spec: of the server's policy.
        limits: of the server.
        seed: of everything.
    """

    def __init__(self, spec: PolicySpec, limits: WireLimits, seed: int) -> None:
        self._spec = spec
        self._limits = limits
        self._random = random.Random(seed)
        self._number = 0
        self._kinds: tuple[tuple[Callable[[], list[bytes]], int], ...] = (
            (self.changed_field, 40),
            (self.changed_bytes, 20),
            (self.changed_frames, 10),
            (self.bad_numbers, 5),
            (self.random_frames, 10),
            (self.nested, 4),
            (self.claims, 3),
            (self.large, 2),
            (self.many_frames, 1),
            (self.greedy, 3),
            (self.not_asked, 2),
        )

    def next(self) -> Hostile:
        """The next message."""
        makers, weights = zip(*self._kinds, strict=True)
        (make,) = self._random.choices(makers, weights)
        self._number += 1
        frames = make()
        return Hostile(make.__name__, frames, *owed_reply(frames, self._limits))

    # ── kinds of messages ────────────────────────────────────────────────────────────────────────

    def changed_field(self) -> list[bytes]:
        """A valid message with one thing in its header, at any depth, exchanged or missing."""
        frames = self._valid()
        header = self._changed(msgpack.unpackb(frames[0]))
        return [msgpack.packb(header), *frames[1:]]

    def changed_bytes(self) -> list[bytes]:
        """A valid message with some bytes of one frame exchanged, inserted or missing."""
        frames, rng = self._valid(), self._random
        victim = rng.randrange(len(frames))
        frame = frames[victim]
        start = rng.randrange(len(frame) + 1)
        end = min(len(frame), start + rng.randrange(9))
        frames[victim] = frame[:start] + rng.randbytes(rng.randrange(9)) + frame[end:]
        return frames

    def changed_frames(self) -> list[bytes]:
        """A valid message with a frame missing, doubled, cut off, or in another place."""
        frames, rng = self._valid_act(), self._random
        match rng.randrange(4):
            case 0:
                frames.pop()
            case 1:
                frames.append(rng.choice(frames))
            case 2:
                frames[-1] = frames[-1][: rng.randrange(len(frames[-1]))]
            case 3:
                frames.reverse()
        return frames

    def bad_numbers(self) -> list[bytes]:
        """An observation with a number that is not finite, or absurd."""
        bad = self._random.choice((np.nan, np.inf, -np.inf, 3e38, -3e38))
        return self._valid_act(bad=bad)

    def random_frames(self) -> list[bytes]:
        """Noise."""
        rng = self._random
        return [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 20))]

    def nested(self) -> list[bytes]:
        """Lists and maps in each other, as deep as the header is long."""
        nesting = self._random.choice(_NESTINGS)
        return [nesting * (self._limits.max_header_bytes // len(nesting))]

    def claims(self) -> list[bytes]:
        """Something that says it is gigantic, and is not."""
        return [self._random.choice((b"", b"\x81\xa4type")) + self._random.choice(_CLAIMS)]

    def large(self) -> list[bytes]:
        """Frames as large as ZeroMQ lets pass."""
        frames = self._valid_act()
        return [*frames[:-1], bytes(self._limits.max_frame_bytes)]

    def many_frames(self) -> list[bytes]:
        """Many more frames than any message has."""
        return self._valid_act() + [b"x"] * self._random.choice((20, 200, 2000))

    def greedy(self) -> list[bytes]:
        """A valid request for everything there is, in words that nobody has said before."""
        return self._valid_act(
            instruction=f"do number {self._number}", num_steps=100, best_effort=True, budget_s=1e6
        )

    def not_asked(self) -> list[bytes]:
        """Messages that answer nothing, or cancel what was not asked."""
        number = self._number
        pong = encode(Pong(number))
        cancel = encode(CancelRequest(f"stranger {number}", number))
        return [bytes(frame) for frame in self._random.choice((pong, cancel))]

    # ── what they are made of ────────────────────────────────────────────────────────────────────

    def _valid(self) -> list[bytes]:
        others = (PingRequest(self._number), MetadataRequest(self._number))
        if self._random.random() < 0.8:
            return self._valid_act()
        return [bytes(frame) for frame in encode(self._random.choice(others))]

    def _valid_act(self, bad: float | None = None, **options: object) -> list[bytes]:
        observation = {
            name: np.zeros(array.shape, array.dtype)
            for name, array in self._spec.observation.items()
        }
        if bad is not None:
            for array in observation.values():
                if array.dtype.kind == "f":
                    array.flat[self._random.randrange(array.size)] = bad
        fields: dict[str, Any] = {
            "session_id": f"hostile {self._number % 50}",
            "request_id": self._number,
            "observation": observation,
            "instruction": "open the drawer",
            "budget_s": 0.1,
            "num_steps": 1,
        }
        request = ActRequest(**fields | options)
        return [bytes(frame) for frame in encode(request)]

    def _changed(self, value: object) -> object:
        """`value` with one thing in it, at any depth, changed."""
        rng = self._random
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(sorted(value))
            if rng.random() < 0.1:
                return {k: v for k, v in value.items() if k != key}
            return value | {key: self._changed(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            i = rng.randrange(len(value))
            return [*value[:i], self._changed(value[i]), *value[i + 1 :]]
        return rng.choice(_JUNK)


def owed_reply(frames: list[bytes], limits: WireLimits) -> tuple[bool, int | None]:
    """Whether a message is owed a reply, and the request_id that this has.

    Exactly one is, decodable or not, unless it is a `CancelRequest`.
    """
    try:
        message = decode(frames, limits)
    except PolicyError as error:
        return True, error.request_id
    return not isinstance(message, CancelRequest), message.request_id
