"""Coverage-guided fuzzing of the decoder, in both directions, with atheris (not a dependency).

    pip install atheris
    python -m tests.fuzz_wire runs/fuzz -max_total_time=60

runs/fuzz keeps the inputs that reach something new, for the next time; further options are those of
libFuzzer. It ends at the first input that raises anything but an error of this project, or whose
message does not come back as it was, and leaves that input in a file crash-….
"""

import sys
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["client"]):
    from client import wire
    from client.errors import PolicyError
    from client.messages import (
        ActionChunk,
        ActRequest,
        CancelRequest,
        ErrorReply,
        PingRequest,
        Timing,
    )

_LENGTH_BYTES = 2


def joined(frames):
    """One input: each frame after its length."""
    return b"".join(len(f).to_bytes(_LENGTH_BYTES, "big") + bytes(f) for f in frames)


def split(data):
    """Inverse of `joined`; whatever is left over at the end is the last frame."""
    frames = []
    while data:
        size = int.from_bytes(data[:_LENGTH_BYTES], "big")
        frames.append(data[_LENGTH_BYTES : _LENGTH_BYTES + size])
        data = data[_LENGTH_BYTES + size :]
    return frames


def try_one(data):
    """Decode as a server does, and as a client."""
    frames = split(data)
    for limits in (wire.WireLimits(), wire.REPLY_LIMITS):
        try:
            message = wire.decode(frames, limits)
        except PolicyError as error:
            wire.encode(ErrorReply.from_error(error))  # which a server would reply
            continue
        again = wire.decode([bytes(frame) for frame in wire.encode(message)], wire.REPLY_LIMITS)
        if type(again) is not type(message) or again.request_id != message.request_id:
            raise AssertionError(f"{message} came back as {again}")


def write_seeds(folder):
    """One message of each kind, to begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    state, actions = np.zeros((2, 3), np.float32), np.zeros((4, 2), np.float32)
    messages = [
        ActRequest(
            "s", 1, {"state": state}, "open the drawer", 0.1, 3, 1.0, 0.5, 7, best_effort=True
        ),
        CancelRequest("s", 1),
        PingRequest(1),
        ActionChunk(
            1, actions, 1, (9,), 1, 1.0, True, "m", "s", 0.0, 0.0, 1, Timing(0.0, 0.0, 0.0, 0.0)
        ),
        ErrorReply(None, "deadline", "too late", 0.1),
    ]
    for number, message in enumerate(messages):
        (folder / f"seed-{number}").write_bytes(joined(wire.encode(message)))


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
