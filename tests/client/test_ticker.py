"""client/ticker.py on a fake clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ticker import Ticker

if TYPE_CHECKING:
    from conftest import FakeClock

PERIOD_S = 0.0125


def test_ticks_do_not_drift(clock: FakeClock) -> None:
    start_s = clock.now_s
    ticker = Ticker(PERIOD_S, clock=clock, sleep=clock.sleep)
    for k in range(10_000):
        tick = ticker.wait()
        assert tick.index == k
        assert clock.now_s == pytest.approx(start_s + k * PERIOD_S, abs=1e-9)
        clock.now_s += 0.3 * PERIOD_S  # work
    assert (ticker.overruns, ticker.skipped) == (0, 0)


@pytest.mark.parametrize(
    ("work", "next_index", "starts_at", "overruns", "skipped"),
    [
        (0.5, 1, 1.0, 0, 0),
        (1.05, 1, 1.05, 0, 0),  # a little late is on time
        (1.4, 1, 1.4, 1, 0),  # late, but it starts
        (1.6, 2, 2.0, 1, 1),  # too late: waits for the next
        (3.3, 3, 3.3, 1, 2),
        (3.7, 4, 4.0, 1, 3),
    ],
)
def test_an_overrun_skips_and_never_bursts(
    clock: FakeClock,
    work: float,
    next_index: int,
    starts_at: float,
    overruns: int,
    skipped: int,
) -> None:
    start_s = clock.now_s
    ticker = Ticker(PERIOD_S, clock=clock, sleep=clock.sleep)
    ticker.wait()
    clock.now_s += work * PERIOD_S
    tick = ticker.wait()
    assert tick.index == next_index
    assert tick.time_s == pytest.approx(start_s + next_index * PERIOD_S)
    assert clock.now_s == pytest.approx(start_s + starts_at * PERIOD_S)
    assert (ticker.overruns, ticker.skipped) == (overruns, skipped)
    assert ticker.wait().index == next_index + 1


@given(
    works=st.lists(st.floats(0, 5), max_size=30),
    sleeps=st.lists(st.floats(0.1, 1.4), min_size=1, max_size=5),
)
def test_whatever_happens(works: list[float], sleeps: list[float]) -> None:
    """Ticks start in order, within half a period after their time, at least half a one apart."""
    now_s = 50.0
    turn = 0

    def sleep(duration_s: float) -> None:  # sometimes returns early, sometimes late
        nonlocal now_s, turn
        now_s += duration_s * sleeps[turn % len(sleeps)] + 1e-6
        turn += 1

    ticker = Ticker(PERIOD_S, clock=lambda: now_s, sleep=sleep)
    started: list[float] = []
    index = -1
    for work in works:
        tick = ticker.wait()
        assert tick.time_s == pytest.approx(50.0 + tick.index * PERIOD_S)
        assert -1e-9 <= now_s - tick.time_s <= 0.5 * PERIOD_S + 1e-9
        assert tick.index > index
        if started:
            assert now_s - started[-1] >= 0.5 * PERIOD_S - 1e-9
        index = tick.index
        started.append(now_s)
        now_s += work * PERIOD_S
    assert ticker.skipped == (index + 1) - len(works)


def test_restart_forgets_the_past(clock: FakeClock) -> None:
    ticker = Ticker(PERIOD_S, clock=clock, sleep=clock.sleep)
    ticker.wait()
    clock.now_s += 1.0
    ticker.restart()
    assert ticker.wait().index == 0
    assert (ticker.overruns, ticker.skipped) == (0, 0)
