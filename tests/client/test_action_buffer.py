"""client/action_buffer.py against a slow, obvious model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from client.action_buffer import ActionBuffer

HORIZON = 6
PERIOD_S = 0.0125
TICKS = st.integers(-3, 40)


def chunk(label: int) -> np.ndarray:
    """actions[i] = [label, i]."""
    return np.array([[label, i] for i in range(HORIZON)], np.float32)


class BufferAgainstModel(RuleBasedStateMachine):
    """The model knows integer ticks only: which chunk was taken, and one entry per tick of it."""

    @initialize(start_s=st.floats(0, 1e6))
    def start(self, start_s: float) -> None:
        self.start_s = start_s
        self.buffer = ActionBuffer(horizon=HORIZON, action_dim=2, control_period_s=PERIOD_S)
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
        with pytest.raises(ValueError, match="finite"):
            self.buffer.add(actions, self._time_s(tick))

    @rule(tick=TICKS, shape=st.sampled_from([(5, 2), (6, 1), (6,), (0, 2), (1, 6, 2)]))
    def add_misshaped(self, tick: int, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected shape \(6, 2\)"):
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
        action = self.buffer.action_at(self._time_s(tick + jitter))
        assert (None if action is None else action.tolist()) == timetable.get(tick)

    @invariant()
    def nothing_after_the_horizon(self) -> None:
        assert self.buffer.action_at(self._time_s(1000)) is None


TestBufferAgainstModel = BufferAgainstModel.TestCase
TestBufferAgainstModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_later_changes_to_the_callers_array_do_not_matter() -> None:
    buffer = ActionBuffer(horizon=HORIZON, action_dim=2, control_period_s=PERIOD_S)
    actions = chunk(1)
    buffer.add(actions, 0.0)
    actions[:] = np.nan
    action = buffer.action_at(0.0)
    assert action is not None
    assert action.tolist() == [1.0, 0.0]
