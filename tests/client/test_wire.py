"""client/wire.py: round trips, the rules of every field, hostile bytes."""

from __future__ import annotations

import contextlib
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as hnp
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import wire
from client.errors import InvalidRequestError, PolicyError, ProtocolError
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    ErrorReply,
    Message,
    Metadata,
    MetadataReply,
    MetadataRequest,
    PingRequest,
    Pong,
    SamplingDefaults,
    Timing,
)
from client.specs import ArraySpec, PolicySpec

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
IDS = st.integers(0, 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.floats(0, 1e6)
SHAPES = hnp.array_shapes(max_dims=4, max_side=4)
ARRAYS = hnp.arrays(st.sampled_from([np.float32, np.uint8]), SHAPES)
TIMINGS = st.builds(Timing, SECONDS, SECONDS, SECONDS, SECONDS)
ACT_REQUESTS = st.builds(
    ActRequest,
    session_id=WORDS.filter(lambda s: len(s.encode()) <= 64),
    request_id=IDS,
    observation=st.dictionaries(WORDS, ARRAYS, max_size=3),
    instruction=WORDS,
    budget_s=st.floats(1e-6, 1e6),
    num_steps=st.none() | st.integers(1, 10**6),
    guidance_scale=st.none() | FINITE,
    eta=st.none() | st.floats(0, 1),
    seed=st.none() | IDS,
    best_effort=st.booleans(),
)
ACTION_CHUNKS = st.lists(st.integers(0, 999), min_size=1, max_size=1000).flatmap(
    lambda timesteps: st.builds(
        ActionChunk,
        request_id=IDS,
        actions=hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=2, max_dims=2),
            elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
        ),
        num_steps=st.just(len(timesteps)),
        timesteps=st.just(tuple(timesteps)),
        nfe=IDS,
        rows_per_call=st.floats(1, 1e6),
        deadline_met=st.booleans(),
        model_id=WORDS,
        spec_id=WORDS,
        guidance_scale=FINITE,
        eta=st.floats(0, 1),
        seed=IDS,
        timing=TIMINGS,
    )
)
SPEC = PolicySpec(
    task="desk",
    observation={"state": ArraySpec((2, 3), "float32", ("x", "y", "z"))},
    action_names=("dx",),
    action_minimum=(-1.0,),
    action_maximum=(1.0,),
    horizon=16,
    obs_steps=2,
    exec_steps=8,
    control_period_s=0.0125,
)
METADATA = st.builds(
    Metadata,
    model_id=WORDS,
    spec_id=WORDS,
    spec=st.just(SPEC),
    min_steps=st.just(1),
    max_useful_steps=st.integers(1, 10),
    max_steps=st.integers(10, 1000),
    defaults=st.builds(SamplingDefaults, FINITE, st.floats(0, 1), WORDS, WORDS),
    limits=st.dictionaries(WORDS, IDS | FINITE, max_size=3),
    protocol_version=st.just(1),
    backend=WORDS,
    server_version=WORDS,
)
ERRORS = st.builds(ErrorReply, st.none() | IDS, WORDS, WORDS, st.none() | SECONDS)
MESSAGES = st.one_of(
    ACT_REQUESTS,
    st.builds(CancelRequest, WORDS.filter(lambda s: len(s.encode()) <= 64), IDS),
    st.builds(MetadataRequest, IDS),
    st.builds(PingRequest, IDS),
    ACTION_CHUNKS,
    st.builds(MetadataReply, IDS, METADATA),
    st.builds(Pong, IDS),
    ERRORS,
)


def raw(message: Message) -> list[bytes]:
    """As it travels."""
    return [bytes(frame) for frame in wire.encode(message)]


def assert_same(a: Message, b: Message) -> None:
    assert type(a) is type(b)
    assert vars(a).keys() == vars(b).keys()
    for field, mine in vars(a).items():
        theirs = vars(b)[field]
        if field == "observation":
            assert list(mine) == list(theirs)
            for x, y in zip(mine.values(), theirs.values(), strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y, strict=True)
        elif field == "actions":
            np.testing.assert_array_equal(mine, theirs, strict=True)
        else:
            assert mine == theirs
            assert type(mine) is type(theirs)


@given(MESSAGES)
def test_decode_inverts_encode(message: Message) -> None:
    assert_same(wire.decode(raw(message)), message)


def test_no_array_is_copied() -> None:
    state = np.arange(6, dtype=np.float32).reshape(2, 3)
    frames = wire.encode(request(observation={"state": state}))
    state[0, 0] = 42.0
    decoded = wire.decode(frames)
    assert isinstance(decoded, ActRequest)
    assert decoded.observation["state"][0, 0] == 42.0
    assert np.shares_memory(decoded.observation["state"], state)
    assert not decoded.observation["state"].flags.writeable


def test_an_array_with_strides_is_sent_in_c_order() -> None:
    state = np.arange(6, dtype=np.float32).reshape(3, 2).T
    decoded = wire.decode(raw(request(observation={"state": state})))
    assert isinstance(decoded, ActRequest)
    np.testing.assert_array_equal(decoded.observation["state"], state)


# ── the rules of every field ─────────────────────────────────────────────────────────────────────


def request(**changes: Any) -> ActRequest:
    fields: dict[str, Any] = {
        "session_id": "arm-1",
        "request_id": 7,
        "observation": {"state": np.zeros((2, 3), np.float32)},
        "instruction": "open the drawer",
        "budget_s": 0.08,
    }
    return ActRequest(**fields | changes)


def chunk() -> ActionChunk:
    actions = np.zeros((8, 2), np.float32)
    return ActionChunk(
        7, actions, 2, (9, 4), 2, 1.0, True, "m", "s", 0.0, 0.0, 1, Timing(0, 0, 0, 0)
    )


def header_of(message: Message, **changes: Any) -> list[bytes]:
    """The frames of a message with keys of its header changed (`...` deletes)."""
    frames = raw(message)
    header = msgpack.unpackb(frames[0]) | changes
    kept = {k: v for k, v in header.items() if v is not ...}
    return [msgpack.packb(kept), *frames[1:]]


BAD_FIELDS = [
    ("session_id", ""),
    ("session_id", "x" * 65),
    ("session_id", 5),
    ("session_id", ...),
    ("instruction", ""),
    ("instruction", " \n"),
    ("instruction", "x" * 10_000),
    ("instruction", "ä" * 501),
    ("instruction", None),
    ("instruction", ...),
    ("budget_s", 0),
    ("budget_s", -0.1),
    ("budget_s", math.nan),
    ("budget_s", math.inf),
    ("budget_s", True),
    ("budget_s", "1"),
    ("budget_s", None),
    ("budget_s", ...),
    ("num_steps", 0),
    ("num_steps", -1),
    ("num_steps", 1.0),
    ("num_steps", True),
    ("num_steps", 2**64 - 1),
    ("guidance_scale", math.nan),
    ("guidance_scale", -math.inf),
    ("guidance_scale", False),
    ("guidance_scale", [1.0]),
    ("eta", -0.01),
    ("eta", 1.01),
    ("eta", math.nan),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 0.5),
    ("best_effort", 1),
    ("best_effort", None),
    ("colour", "red"),
    ("observation", {"state": [1.0]}),
    ("arrays", ...),
    ("arrays", {}),
    ("arrays", []),
    ("arrays", [["state", "float32", [2, 3]]] * 2),
    ("arrays", [["state", "float32"]]),
    ("arrays", ["state"]),
    ("arrays", [["", "float32", [2, 3]]]),
    ("arrays", [[1, "float32", [2, 3]]]),
    ("arrays", [["state", "float64", [1, 3]]]),
    ("arrays", [["state", "object", [3]]]),
    ("arrays", [["state", ["float32"], [2, 3]]]),
    ("arrays", [["state", "float32", 6]]),
    ("arrays", [["state", "float32", []]]),
    ("arrays", [["state", "float32", [1] * 8 + [6]]]),
    ("arrays", [["state", "float32", [2, 4]]]),
    ("arrays", [["state", "float32", [2, 2]]]),
    ("arrays", [["state", "float32", [-2, -3]]]),
    ("arrays", [["state", "float32", [6, True]]]),
    ("arrays", [["state", "float32", [2.0, 3]]]),
    ("arrays", [["state", "float32", [0, 3]]]),
    ("arrays", [["state", "float32", [2**62, 2**62, 6]]]),
    ("arrays", [["state", "uint8", [2**63, 2, 24]]]),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        wire.decode(header_of(request(), **{field: value}))
    assert caught.value.request_id == 7
    assert len(str(caught.value)) < 300  # what a stranger sent does not flood the log


@pytest.mark.parametrize("value", [-1, True, 1.5, None, "7", 2**63, ...])
def test_an_unreadable_request_id_is_refused_without_one(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="request_id") as caught:
        wire.decode(header_of(PingRequest(7), request_id=value))
    assert caught.value.request_id in (None, 2**63)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_id", ""),
        ("session_id", "x" * 65),
        ("session_id", ...),
        ("request_id", -1),
        ("request_id", ...),
        ("arrays", []),
        ("budget_s", 1.0),
    ],
)
def test_a_bad_cancel_is_refused_and_not_as_if_it_were_the_act_request(
    field: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        wire.decode(header_of(CancelRequest("arm-1", 7), **{field: value}))
    assert caught.value.request_id is None
    if value is not ... and field in {"session_id", "request_id"}:
        with pytest.raises(InvalidRequestError, match=field) as caught:
            CancelRequest(**{"session_id": "arm-1", "request_id": 7, field: value})
        assert caught.value.request_id is None


def test_two_arrays_of_one_name_are_refused() -> None:
    header, frame = header_of(request(), arrays=[["state", "float32", [2, 3]]] * 2)
    with pytest.raises(InvalidRequestError, match="'state' twice"):
        wire.decode([header, frame, frame])


def test_the_constructor_applies_the_same_rules() -> None:
    with pytest.raises(InvalidRequestError, match="budget_s") as caught:
        request(budget_s=-1.0)
    assert caught.value.request_id == 7
    with pytest.raises(InvalidRequestError, match=r"observation\.state.*float64"):
        request(observation={"state": np.zeros(3)})
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        request(instruction="\ud800")


def test_numpy_scalars_travel() -> None:
    sent = request(num_steps=np.int64(3), eta=np.float32(0.5), budget_s=np.float64(1), seed=None)
    assert [type(value) for value in (sent.num_steps, sent.eta, sent.budget_s)] == [
        int,
        float,
        float,
    ]
    received = wire.decode(raw(sent))
    assert isinstance(received, ActRequest)
    assert (received.num_steps, received.eta, received.budget_s) == (3, 0.5, 1.0)


def test_a_whole_number_is_a_number_and_an_array_of_another_byte_order_travels() -> None:
    state = np.arange(6, dtype=">f4").reshape(2, 3)
    received = wire.decode(raw(request(budget_s=1, observation={"state": state})))
    assert isinstance(received, ActRequest)
    assert type(received.budget_s) is float
    np.testing.assert_array_equal(received.observation["state"], state)
    assert received.observation["state"].dtype == "<f4"


def test_a_message_has_the_types_of_its_fields_however_it_was_made() -> None:
    sent = request(budget_s=1, guidance_scale=2**70)
    assert (type(sent.budget_s), type(sent.guidance_scale)) == (float, float)
    received = wire.decode(raw(sent))
    assert isinstance(received, ActRequest)
    assert received.guidance_scale == 2.0**70
    timing = {"queue_s": 0, "encode_s": 0, "denoise_s": 0, "total_s": 1}
    made = replace(chunk(), timesteps=[9, 4], timing=timing)
    assert (made.timesteps, made.timing) == ((9, 4), Timing(0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_no_time_is_negative_or_no_number(bad: float) -> None:
    with pytest.raises(ValueError, match=r"timing\.total_s"):
        Timing(0.0, 0.0, 0.0, bad)


def test_what_a_stranger_writes_does_not_reach_a_terminal_as_it_is() -> None:
    with pytest.raises(InvalidRequestError, match=r"unknown field `\?\[31m\?red`"):
        wire.decode(header_of(request(), **{"\x1b[31m\nred": 1}))


def test_the_size_of_a_string_is_that_of_its_utf8() -> None:
    request(session_id="ä" * 32)
    with pytest.raises(InvalidRequestError, match="64 bytes of UTF-8, got 66"):
        request(session_id="ä" * 33)
    with pytest.raises(InvalidRequestError, match="not blank"):
        request(session_id="\u2003\x1f\n")


def test_optional_fields_may_be_left_out() -> None:
    names = ("num_steps", "guidance_scale", "eta", "seed", "best_effort")
    assert_same(wire.decode(header_of(request(), **dict.fromkeys(names, ...))), request())


def test_another_version_is_named_with_both() -> None:
    for version in (2, None, True, "1"):
        with pytest.raises(ProtocolError, match=rf"version 1, the other {version!r}") as caught:
            wire.decode(header_of(request(), protocol=version, instruction=...))
        assert caught.value.request_id == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timing", {"queue_s": 0.0}),
        ("timing", None),
        ("timing", {"queue_s": 0.0, "encode_s": 0.0, "denoise_s": 0.0, "total_s": -1.0}),
        ("timesteps", 5),
        ("timesteps", [1, 2, 3]),
        ("timesteps", [1, -2]),
        ("num_steps", 3),
        ("rows_per_call", 0.5),
        ("rows_per_call", None),
        ("rows_per_call", ...),
        ("arrays", [["other", "float32", [8, 2]]]),
        ("colour", "red"),
        ("model_id", ""),
        ("seed", None),
        ("actions", [[0.0]]),
    ],
)
def test_a_bad_reply_is_the_servers_fault(field: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=field) as caught:
        wire.decode(header_of(chunk(), **{field: value}))
    assert caught.value.request_id == 7


def test_actions_that_are_no_float32_table_are_the_servers_fault() -> None:
    for descriptor in (["actions", "uint8", [8, 8]], ["actions", "float32", [16]]):
        with pytest.raises(ProtocolError, match="actions: expected float32"):
            wire.decode(header_of(chunk(), arrays=[descriptor]))


def test_bad_metadata_is_the_servers_fault(metadata: Metadata) -> None:
    good = raw(MetadataReply(7, metadata))
    for path, value in [
        (("spec",), None),
        (("spec", "horizon"), 0),
        (("spec", "horizon"), "10"),
        (("spec", "observation"), []),
        (("spec", "observation"), {"state": {"shape": [3.5], "dtype": "float32", "names": []}}),
        (("spec", "observation"), {"state": {"shape": 3}}),
        (("spec", "action_minimum"), [math.nan, 0.0]),
        (("spec", "colour"), "red"),
        (("defaults", "eta"), 2.0),
        (("limits",), 5),
        (("min_steps",), 11),
    ]:
        header = msgpack.unpackb(good[0])
        target = header["metadata"]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        with pytest.raises(ProtocolError) as caught:
            wire.decode([msgpack.packb(header)])
        assert caught.value.request_id == 7


# ── limits ───────────────────────────────────────────────────────────────────────────────────────

TIGHT = wire.WireLimits(
    max_frames=2, max_header_bytes=400, max_array_bytes=24, max_instruction_bytes=20
)


def test_a_message_at_the_limits_passes_and_one_over_does_not() -> None:
    assert_same(wire.decode(raw(request()), TIGHT), request())
    arrays = {"state": np.zeros((2, 3), np.float32)}
    for name, message in {
        "frames": request(observation=arrays | {"b": arrays["state"]}),
        "bytes, got 28": request(observation={"state": np.zeros((7, 1), np.float32)}),
        "20 bytes of UTF-8, got 21": request(instruction="x" * 21),
    }.items():
        with pytest.raises(InvalidRequestError, match=name) as caught:
            wire.decode(raw(message), TIGHT)
        assert caught.value.request_id == 7
        with pytest.raises(InvalidRequestError, match=name):
            wire.encode(message, TIGHT)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"\x81\x01\x02",
        b"\x81\xa1\xff\x00",
        msgpack.packb({"protocol": 1})[:-1],
        msgpack.packb({"protocol": 1}) + b"\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91" * 60_000,
        b"\xdc\x10\x00" * 20_000,
        b"\x81\xa1a" * 20_000,
        b"\x00" * 70_000,
        msgpack.packb({"protocol": 1, "type": "run_code"}),
        msgpack.packb({"protocol": 1, "type": ["act"]}),
        msgpack.packb({"protocol": 1, "type": msgpack.Timestamp(1)}),
        msgpack.packb({"protocol": 1, "type": b"act"}),
    ],
    ids=lambda header: header[:8].hex(),
)
def test_a_hostile_header_costs_little_and_ends_in_a_protocol_error(header: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            wire.decode([header], wire.WireLimits())
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_no_frame_at_all() -> None:
    with pytest.raises(ProtocolError):
        wire.decode([])


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def replace_somewhere(value: Any, junk: Any, data: st.DataObject) -> Any:
    """`value` with one thing in it, at any depth, changed for `junk`."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return value | {key: replace_somewhere(value[key], junk, data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        i = data.draw(st.integers(0, len(value) - 1))
        return [*value[:i], replace_somewhere(value[i], junk, data), *value[i + 1 :]]
    return junk


def decodes_or_policy_error(frames: Sequence[bytes]) -> None:
    with contextlib.suppress(PolicyError):
        wire.decode(frames)


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_a_mutated_field_never_raises_anything_else(message: Message, data: st.DataObject) -> None:
    frames = raw(message)
    header = replace_somewhere(msgpack.unpackb(frames[0]), data.draw(JUNK), data)
    decodes_or_policy_error([msgpack.packb(header), *frames[1:]])


@settings(max_examples=300)
@given(MESSAGES, st.data())
def test_mutated_bytes_never_raise_anything_else(message: Message, data: st.DataObject) -> None:
    frames = raw(message)
    victim = data.draw(st.integers(0, len(frames) - 1))
    start = data.draw(st.integers(0, len(frames[victim])))
    end = data.draw(st.integers(start, min(start + 8, len(frames[victim]))))
    frames[victim] = (
        frames[victim][:start] + data.draw(st.binary(max_size=8)) + frames[victim][end:]
    )
    frames = data.draw(st.permutations(frames)) + data.draw(st.lists(st.binary(), max_size=2))
    decodes_or_policy_error(frames)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_noise_never_raises_anything_else(frames: list[bytes]) -> None:
    decodes_or_policy_error(frames)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_never_a_chunk(bad: float) -> None:
    """Neither can a server say them, nor does a client take them from one that does."""
    actions = np.zeros((4, 2), np.float32)
    fields = {
        "request_id": 1,
        "num_steps": 1,
        "timesteps": (0,),
        "nfe": 1,
        "rows_per_call": 1.0,
        "deadline_met": True,
        "model_id": "m",
        "spec_id": "s",
        "guidance_scale": 0.0,
        "eta": 0.0,
        "seed": 0,
        "timing": Timing(0.0, 0.0, 0.0, 0.0),
    }
    frames = wire.encode(ActionChunk(actions=actions, **fields))
    actions[1, 1] = bad
    with pytest.raises(ValueError, match="actions: expected finite"):
        ActionChunk(actions=actions, **fields)
    with pytest.raises(ProtocolError, match="actions: expected finite"):
        wire.decode([frames[0], actions.tobytes()])


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("request_id", [2**63, 2**64 - 1])
def test_every_error_of_decoding_can_be_replied(protocol: int, request_id: int) -> None:
    header = {"protocol": protocol, "type": "ping", "request_id": request_id}
    with pytest.raises(PolicyError) as caught:
        wire.decode([msgpack.packb(header)])
    assert ErrorReply.from_error(caught.value).request_id is None
