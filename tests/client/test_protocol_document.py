"""docs/protocol.md against the encoder: its example, and a decoder written from the page alone."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from client import errors, wire
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    ErrorReply,
    Metadata,
    MetadataReply,
    Timing,
)
from client.sims.desk.spec import DESK_SPEC
from client.specs import ArraySpec

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")

REQUEST = ActRequest(
    session_id="arm-1",
    request_id=7,
    observation={"state": np.array([[1.0, -2.0]], np.float32)},
    instruction="open the drawer",
    budget_s=0.08,
)
REPLY = ActionChunk(
    request_id=7,
    actions=np.array([[0.5], [0.25]], np.float32),
    num_steps=2,
    timesteps=(999, 499),
    nfe=2,
    rows_per_call=1.5,
    deadline_met=True,
    model_id="desk-1",
    spec_id="s-1",
    guidance_scale=0.0,
    eta=0.0,
    seed=5,
    timing=Timing(0.0, 0.001, 0.01, 0.0125),
)


def read_message(frames: list[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays as nested lists, by the rules of the page; shares no code with client/."""
    header = msgpack.unpackb(frames[0])
    assert header["protocol"] == 1
    arrays = {}
    for (name, dtype, shape), frame in zip(header.pop("arrays", []), frames[1:], strict=True):
        code, size = {"float32": ("f", 4), "uint8": ("B", 1)}[dtype]
        assert math.prod(shape) * size == len(frame)
        numbers: list[Any] = list(struct.unpack(f"<{math.prod(shape)}{code}", frame))
        for length in reversed(shape[1:]):
            numbers = [numbers[i : i + length] for i in range(0, len(numbers), length)]
        arrays[name] = numbers
    return header, arrays


def test_the_example_is_what_the_encoder_sends() -> None:
    blocks = re.findall(r"```hex\n(.*?)```", PAGE, re.DOTALL)
    bytes_of = [
        bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
        for block in blocks
    ]
    sent = [bytes(frame) for message in (REQUEST, REPLY) for frame in wire.encode(message)]
    assert bytes_of == sent


def test_a_decoder_written_from_the_page_reads_a_request() -> None:
    observation = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "state": np.array([[1.5, -2.0, 0.25], [1e30, 0.0, -0.0]], np.float32),
    }
    request = ActRequest(
        "arm-1", 8, observation, "öffne", 0.5, num_steps=3, eta=1.0, seed=2**63 - 1
    )
    header, arrays = read_message([bytes(f) for f in wire.encode(request)])
    assert header == {
        "protocol": 1,
        "type": "act",
        "session_id": "arm-1",
        "request_id": 8,
        "instruction": "öffne",
        "budget_s": 0.5,
        "num_steps": 3,
        "guidance_scale": None,
        "eta": 1.0,
        "seed": 2**63 - 1,
        "best_effort": False,
    }
    assert arrays == {
        "image": observation["image"].tolist(),
        "state": observation["state"].tolist(),
    }


def test_a_decoder_written_from_the_page_reads_an_answer() -> None:
    header, arrays = read_message([bytes(f) for f in wire.encode(REPLY)])
    assert arrays == {"actions": [[0.5], [0.25]]}
    assert header["timing"]["total_s"] == 0.0125
    assert header["timesteps"] == [999, 499]


def test_the_page_lists_every_field_code_and_default(metadata: Metadata) -> None:
    error = ErrorReply(None, "deadline", "no time", 0.1)
    cancel = CancelRequest("arm-1", 7)
    for message in (REQUEST, cancel, REPLY, MetadataReply(1, metadata), error):
        header = msgpack.unpackb(wire.encode(message)[0])
        for field in [*header, *header.get("timing", []), *header.get("metadata", [])]:
            assert f"`{field}`" in PAGE, field
        assert f"### `{header['type']}`" in PAGE
    for cls in vars(errors).values():
        if isinstance(cls, type) and cls.__name__ in {
            "InvalidRequestError",
            "OverloadedError",
            "DeadlineError",
            "SupersededError",
            "CancelledError",
            "ServerFaultError",
            "ProtocolError",
        }:
            assert f"| `{cls.code}` |" in PAGE
    small, large = (
        wire.WireLimits.of_requests(
            replace(DESK_SPEC, observation={"state": ArraySpec((DESK_SPEC.obs_steps, n), "uint8")})
        )
        for n in (1, 100_000)
    )
    header_bytes = small.max_header_bytes - 300
    for text in (
        f"{small.max_frames} frames, {header_bytes:,} bytes of header and 300 more",
        f"{small.max_instruction_bytes} bytes of instruction",
    ):
        assert text in PAGE
    assert "four times the bytes of the largest array" in PAGE
    assert large.max_array_bytes == 4 * DESK_SPEC.obs_steps * 100_000
    assert small.max_array_bytes == small.max_header_bytes
