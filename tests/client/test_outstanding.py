"""client/outstanding.py and client/network_margin.py: pure rules of the client."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import CancelledError, ConnectionLostError, PolicyError, ProtocolError
from client.messages import ActionChunk, ErrorReply, Message, PingRequest, Pong, Timing
from client.network_margin import NetworkMargin
from client.outstanding import Chunk, Outstanding, Sent


def chunk(request_id: int) -> ActionChunk:
    actions = np.zeros((2, 1), np.float32)
    timing = Timing(0.0, 0.0, 0.01, 0.01)
    return ActionChunk(request_id, actions, 1, (9,), 1, 1.0, True, "m", "s", 0.0, 0.0, 0, timing)


def test_lateness_is_the_clients_verdict() -> None:
    outstanding = Outstanding()
    for request_id, arrives_s in ((1, 10.0799), (2, 10.0801)):
        sent = Sent(ActionChunk, sent_s=10.01, due_s=10.0, budget_s=0.08, timeout_s=1.0)
        outstanding.add(request_id, sent)
        result = outstanding.settle(chunk(request_id), arrives_s)
        assert isinstance(result, Chunk)
        assert result.deadline_met
        assert result.late == (request_id == 2)
        assert result.latency_s == pytest.approx(arrives_s - 10.0)
        assert result.round_trip_s == pytest.approx(arrives_s - 10.01)


def test_a_chunk_has_all_of_the_reply_and_what_is_the_clients() -> None:
    outstanding, reply = Outstanding(), chunk(1)
    outstanding.add(1, Sent(ActionChunk, sent_s=10.01, due_s=10.0, budget_s=0.08, timeout_s=1.0))
    result = outstanding.settle(reply, 10.05)
    assert vars(result).keys() == {field.name for field in fields(Chunk)}
    for field in fields(ActionChunk):
        assert getattr(result, field.name) is getattr(reply, field.name)


@dataclass(frozen=True)
class Step:
    """What happens next to request `request_id`."""

    what: str
    request_id: int
    pause_s: float


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ["send", "chunk", "error", "pong", "garbage", "request", "expire", "cancel"]
        ),
        st.integers(0, 5),
        st.floats(0, 0.5),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_request_is_settled_exactly_once(steps: list[Step]) -> None:
    outstanding = Outstanding()
    now_s = 0.0
    sent: dict[int, float] = {}
    settled: Counter[int] = Counter()
    dropped = 0
    for step in steps:
        now_s += step.pause_s
        i = step.request_id
        if step.what == "send":
            if i not in sent:
                sent[i] = now_s
                outstanding.add(i, Sent(ActionChunk, now_s, now_s, 0.1, 1.0))
        elif step.what == "expire":
            for _, error in outstanding.expire(now_s):
                assert isinstance(error, ConnectionLostError)
                assert error.request_id is not None
                assert now_s >= sent[error.request_id] + 1.0
                settled[error.request_id] += 1
        elif step.what == "cancel":
            cancelled = outstanding.cancel(i)
            if cancelled is None:
                assert i not in sent or settled[i] == 1
            else:
                assert cancelled.request_id == i
                settled[i] += 1
        else:
            replies: dict[str, Message | PolicyError] = {
                "chunk": chunk(i),
                "error": ErrorReply(i, "overloaded", "full"),
                "pong": Pong(i),
                "garbage": ProtocolError("?", request_id=i),
                "request": PingRequest(i),
            }
            result = outstanding.settle(replies[step.what], now_s)
            if result is None:
                dropped += 1
                assert i not in sent or settled[i] == 1
            else:
                assert result.request_id == i
                assert isinstance(result, Chunk if step.what == "chunk" else PolicyError)
                settled[i] += 1
    for _, error in outstanding.expire(now_s + 2.0):
        assert error.request_id is not None
        settled[error.request_id] += 1
    assert dict(settled) == dict.fromkeys(sent, 1)
    assert outstanding.dropped == dropped
    assert outstanding.next_expiry_s == math.inf


def test_only_a_request_for_a_chunk_is_cancelled() -> None:
    outstanding = Outstanding()
    outstanding.add(1, Sent(Pong, 0.0, 0.0, 1.0, 1.0))
    outstanding.add(2, Sent(ActionChunk, 0.0, 0.0, 1.0, 1.0))
    assert outstanding.cancel(1) is None
    assert isinstance(outstanding.cancel(2), CancelledError)
    assert [sent.expects for sent, _ in outstanding.expire(2.0)] == [Pong]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (ErrorReply(None, "protocol", "what?"), ProtocolError),
        (ProtocolError("what?"), ProtocolError),
        (ErrorReply(None, "from_the_future", "what?"), PolicyError),
    ],
)
def test_what_belongs_to_no_request_is_everybodys_business(
    reply: Any, expected: type[PolicyError]
) -> None:
    outstanding = Outstanding()
    result = outstanding.settle(reply, 0.0)
    assert type(result) is expected
    assert outstanding.dropped == 0


# ── network margin ───────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(0, 1), min_size=1, max_size=250))
def test_the_margin_is_the_quantile_of_the_last_hundred(overheads: list[float]) -> None:
    margin = NetworkMargin()
    for overhead in overheads:
        margin.add(overhead + 0.25, 0.25)
    expected = np.quantile(overheads[-100:], 0.99, method="inverted_cdf")
    assert margin.of(1e9) == pytest.approx(expected, abs=1e-12)


def test_what_is_older_than_the_window_does_not_count() -> None:
    margin = NetworkMargin()
    overheads = np.random.default_rng(0).permutation(400) / 1000  # most maxima leave it again
    for number, overhead in enumerate(overheads):
        margin.add(overhead, 0.0)
        window = overheads[: number + 1][-100:]
        assert margin.of(1e9) == np.quantile(window, 0.99, method="inverted_cdf")


def test_the_margin_leaves_half_so_that_it_can_learn_again() -> None:
    margin = NetworkMargin()
    assert margin.of(0.08) == 0.0
    margin.add(5.0, 0.0)
    assert margin.of(0.08) == 0.04
    for _ in range(100):
        margin.add(0.002, 0.001)
    assert margin.of(0.08) == pytest.approx(0.001)


def test_a_server_that_claims_more_time_than_passed_does_not_lengthen_budgets() -> None:
    margin = NetworkMargin()
    margin.add(0.01, 99.0)
    assert margin.of(0.08) == 0.0


def test_it_knows_whether_a_request_is_the_only_one() -> None:
    outstanding = Outstanding()
    outstanding.add(1, Sent(Pong, 0.0, 0.0, 1.0, 1.0))
    assert outstanding.is_only(1)
    assert not outstanding.is_only(2)
    outstanding.add(2, Sent(Pong, 0.0, 0.0, 1.0, 1.0))
    assert not outstanding.is_only(1)
    outstanding.forget(2)
    assert outstanding.is_only(1)
