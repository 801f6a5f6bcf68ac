"""When the next control tick is: absolute deadlines, so that errors never add up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.field_checks import positive_seconds

_ON_TIME = 0.1  # of a period: later than this is an overrun


@dataclass(frozen=True)
class Tick:
    """One control tick.

    Attributes:
        index: 0 for the first; gaps are ticks that were skipped.
        time_s: when it should start; t0 + index * period_s.
    """

    index: int
    time_s: float


class Ticker:
    """Gives tick k at t0 + k * period_s, on a monotonic clock.

    A tick that is late by more than half a period is skipped instead of being made up for: two
    ticks are never closer than half a period, so a robot never gets a burst of commands.

    Attributes:
        overruns: times that a tick started late (by more than a tenth of a period) or ticks had to
            be skipped.
        skipped: ticks that never started.
    """

    def __init__(
        self,
        period_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Do not start yet: the first `wait` does.

        Args:
            period_s: between two ticks.
            clock: monotonic, in seconds.
            sleep: waits for about so many seconds; may return early.

        Raises:
            ValueError: period_s is not greater than zero.
        """
        self._period_s = positive_seconds("period_s", period_s)
        self._clock = clock
        self._sleep = sleep
        self.overruns = 0
        self.skipped = 0
        self.restart()

    def restart(self) -> None:
        """Make the next `wait` return at once with tick 0; the time until then counts nowhere."""
        self._start_s: float | None = None
        self._next = 0

    def wait(self) -> Tick:
        """Sleep until the next tick is due."""
        if self._start_s is None:
            self._start_s = self._clock()
        index = self._next
        while True:
            now_s = self._clock()
            index = max(index, math.ceil((now_s - self._start_s) / self._period_s - 0.5))
            due_s = self._start_s + index * self._period_s
            if now_s >= due_s:
                break
            self._sleep(due_s - now_s)
        self.skipped += index - self._next
        self.overruns += index > self._next or now_s > due_s + _ON_TIME * self._period_s
        self._next = index + 1
        return Tick(index, due_s)
