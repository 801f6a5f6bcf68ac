"""client/action_buffer.py against a slow, obvious model."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from client.action_buffer import ActionBuffer
from client.action_limits import ActionLimits
from client.errors import UnsafeActionError

HORIZON = 6
PERIOD_S = 0.0125
TICKS = st.integers(-3, 40)
WIDE = ActionLimits((-1e6, -1e6), (1e6, 1e6), (math.inf, math.inf))
NOWHERE = np.zeros(2)


def chunk(label: int) -> np.ndarray:
    """actions[i] = [label, i]."""
    return np.array([[label, i] for i in range(HORIZON)], np.float32)


class BufferAgainstModel(RuleBasedStateMachine):
    """The model knows integer ticks only: which chunk was taken, and one entry per tick of it."""

    @initialize(start_s=st.floats(0, 1e6))
    def start(self, start_s: float) -> None:
        self.start_s = start_s
        self.buffer = ActionBuffer(WIDE, horizon=HORIZON, control_period_s=PERIOD_S)
        self.chunks: list[tuple[int, int]] = []  # (tick of the observation, label), all ever added
        self.cleared = 0
        self.label = 0

    def _taken(self) -> tuple[int, int] | None:
        """The first of those with the newest observation since the last clear."""
        live = self.chunks[self.cleared :]
        newest = max((tick for tick, _ in live), default=None)
        return next((c for c in live if c[0] == newest), None)

    def _time_s(self, ticks: float) -> float:
        return self.start_s + ticks * PERIOD_S

    @rule(tick=TICKS)
    def add(self, tick: int) -> None:
        self.label += 1
        before = self._taken()
        expected = before is None or tick > before[0]
        discarded = self.buffer.discarded
        assert self.buffer.add(chunk(self.label), self._time_s(tick)) == expected
        assert self.buffer.discarded == discarded + (not expected)
        self.chunks.append((tick, self.label))

    @rule(tick=TICKS, bad=st.sampled_from([np.nan, np.inf, -np.inf]), at=st.integers(0, 11))
    def add_not_finite(self, tick: int, bad: float, at: int) -> None:
        actions = chunk(-1)
        actions.flat[at] = bad
        with pytest.raises(UnsafeActionError, match="finite"):
            self.buffer.add(actions, self._time_s(tick))

    @rule(tick=TICKS, shape=st.sampled_from([(5, 2), (6, 1), (6,), (0, 2), (1, 6, 2)]))
    def add_misshaped(self, tick: int, shape: tuple[int, ...]) -> None:
        with pytest.raises(UnsafeActionError, match=r"expected shape \(6, 2\)"):
            self.buffer.add(np.zeros(shape, np.float32), self._time_s(tick))

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.cleared = len(self.chunks)

    @rule(tick=TICKS, jitter=st.floats(-0.49, 0.49))
    def ask(self, tick: int, jitter: float) -> None:
        timetable = {}
        taken = self._taken()
        if taken is not None:
            timetable = {taken[0] + i: [taken[1], i] for i in range(HORIZON)}
        due = self.buffer.action_at(self._time_s(tick + jitter), NOWHERE)
        assert (None if due is None else due[0].tolist()) == timetable.get(tick)
        if due is not None:
            assert due[1] == self._time_s(taken[0])

    @invariant()
    def nothing_after_the_horizon(self) -> None:
        assert self.buffer.action_at(self._time_s(1000), NOWHERE) is None


TestBufferAgainstModel = BufferAgainstModel.TestCase
TestBufferAgainstModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_later_changes_to_the_callers_array_do_not_matter() -> None:
    buffer = ActionBuffer(WIDE, horizon=HORIZON, control_period_s=PERIOD_S)
    actions = chunk(1)
    buffer.add(actions, 0.0)
    actions[:] = np.nan
    assert executed(buffer, [0]) == [[1.0, 0.0]]


# ── what the robot's limits let through: actions are [label, 0 .. 5], one at a tick ──────────────


def limited(max_change: float) -> ActionBuffer:
    limits = ActionLimits((0.0, 0.0), (9.0, 20.0), (math.inf, max_change))
    return ActionBuffer(limits, horizon=HORIZON, control_period_s=PERIOD_S)


def executed(buffer: ActionBuffer, ticks: Iterable[int]) -> list[list[float] | None]:
    """What is commanded at successive ticks; the robot stays where it is when nothing is due."""
    previous, actions = NOWHERE, []
    for tick in ticks:
        due = buffer.action_at(tick * PERIOD_S, previous)
        if due is not None:
            previous = due[0]
        actions.append(None if due is None else due[0].tolist())
    return actions


@pytest.mark.parametrize(
    ("reason", "broken"),
    [
        ("shape", np.zeros((HORIZON, 3), np.float32)),
        ("finite", np.full((HORIZON, 2), np.nan, np.float32)),
        ("limits", np.where(np.arange(HORIZON)[:, None] == HORIZON - 1, 21.0, chunk(2))),
    ],
)
def test_a_chunk_that_is_broken_anywhere_leaves_the_one_before(
    reason: str, broken: np.ndarray
) -> None:
    buffer = limited(max_change=1.0)
    buffer.add(chunk(1), 0.0)
    with pytest.raises(UnsafeActionError) as caught:
        buffer.add(broken, 2 * PERIOD_S)
    assert caught.value.reason == reason
    assert buffer.rejected == {reason: 1}
    assert executed(buffer, range(HORIZON + 1)) == [*chunk(1).tolist(), None]


def test_a_chunk_that_begins_with_a_jump_leaves_the_one_before() -> None:
    buffer = limited(max_change=1.0)
    buffer.add(chunk(1), 0.0)
    jumps = chunk(2)
    jumps[:, 1] += 5
    buffer.add(jumps, 0.1 * PERIOD_S)
    assert executed(buffer, range(HORIZON)) == chunk(1).tolist()
    assert buffer.rejected == {"change": 1}
    assert not buffer.add(chunk(3), 0.1 * PERIOD_S)  # of the same observation: not newer


def test_a_chunk_that_jumps_half_way_ends_there() -> None:
    buffer = limited(max_change=1.0)
    buffer.add(chunk(1), 0.0)
    jumps = chunk(2)
    jumps[3:, 1] += 5
    buffer.add(jumps, 0.1 * PERIOD_S)
    expected = [[2, 0], [2, 1], [2, 2], [1, 3], [1, 4], [1, 5], None]
    assert executed(buffer, range(HORIZON + 1)) == expected
    assert buffer.rejected == {"change": 1}


def test_ticks_that_were_skipped_are_no_excuse_for_a_jump() -> None:
    buffer = limited(max_change=1.0)
    buffer.add(chunk(1), 0.0)
    assert executed(buffer, [0, 1, 4, 5]) == [[1, 0], [1, 1], None, None]
