"""What network calls cost on this machine now: a shape learned at warm-up, a pace learned online.

From the end of one call to the end of the next, with n network rows, it takes
(fixed + per_row·n)·slowdown + between. The line comes from calibration, `slowdown` follows what the
machine does meanwhile, and `between` is whatever is done between two calls (taking requests in,
encoding, planning, answering). Sums
of many calls are what plans are made of, so durations are judged in stretches of several calls: a
high quantile of sums, not a sum of high quantiles. The few large pauses that a scheduler or a
neighbour causes are kept apart, for plans to leave room for more of them. Pure: it is told
durations and reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_PACES, _PAUSES = 64, 512
"""Stretches remembered. Pauses are rare, and whoever caused them may come again: they are forgotten
far later than the pace, which is measured anew every few milliseconds."""
_CALM_PACES, _CALM_PAUSES = 8, 100
_SHORT = 3
_STRETCH_S = 0.002
_PACE_QUANTILE = 0.8
_STALL_QUANTILE = 0.99
_REFRESH_EVERY = 8
_REGIME = 48
"""So many in a row are no accident, even if one in twenty is slow."""
_TINY_S = 1e-9


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted numbers, rounded up to one of them."""
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


class DurationQuantile:
    """Recent durations: it forgets slowly and shrugs off single outliers.

    When `_REGIME` in a row are all below half of what is expected, whatever made it slow has gone
    and all before them is forgotten.

    Attributes:
        estimate_s: a high quantile, for whether somebody will be in time.
        typical_s: the median, for how many to take together. A high quantile would be too much
            caution there: each of a few pauses would make the calls after it smaller, which makes
            everybody wait longer, for more calls.
    """

    def __init__(self, unknown_s: float) -> None:
        self._recent: deque[float] = deque(maxlen=128)
        self._count = self._faster = 0
        self.estimate_s = self.typical_s = unknown_s

    def observe(self, duration_s: float) -> None:
        """Take in one measured duration."""
        self._recent.append(duration_s)
        self._count += 1
        self._faster = self._faster + 1 if duration_s < self.estimate_s / 2 else 0
        if self._faster >= _REGIME:
            self._recent = deque(list(self._recent)[-_REGIME:], maxlen=self._recent.maxlen)
            self._faster = 0
        if self._count % _REFRESH_EVERY == 0 or self._count < _REFRESH_EVERY:
            ordered = sorted(self._recent)
            self.estimate_s, self.typical_s = quantile(ordered, 0.95), quantile(ordered, 0.5)


class _Pace:
    """A high quantile of recent stretches, or what the latest ones say if that is more."""

    def __init__(self, calm: float) -> None:
        # calibration counts as some calm stretches: the first ones alone would be mere chance
        self._recent = deque([calm] * _CALM_PACES, maxlen=_PACES)
        self._count = 0
        self.usual = calm
        self.now = calm

    def observe(self, value: float) -> None:
        recent = self._recent
        recent.append(value)
        self._count += 1
        if self._count % _REFRESH_EVERY == 0:
            self.usual = quantile(sorted(recent), _PACE_QUANTILE)
        # everything has become slower (a busy neighbour): do not wait for the long memory to fill
        lately = sorted(recent[-i] for i in range(1, _SHORT + 1))
        self.now = max(self.usual, lately[_SHORT // 2])


class CostModel:
    """Predicted durations.

    Args:
        rows: network rows of the calibrated calls, rising.
        seconds: what a call of so many rows took.

    Attributes:
        stall_s: a pause that happens now and then on top of what is predicted.
        worst_stall_s: the longest pause of late.
        encode: conditioning of one request.
        finish: from the last denoising call to the reply.
        error: of the prediction of the latest stretch of calls: measured over predicted, less 1.
    """

    def __init__(self, rows: Sequence[int], seconds: Sequence[float]) -> None:
        self._row_s, self._fixed_s = _line_above(rows, seconds)
        self.stall_s = self.worst_stall_s = self.error = 0.0
        self.encode = DurationQuantile(seconds[0])
        self.finish = DurationQuantile(seconds[0])
        self._slowdown = _Pace(1.0)
        self._between_s = _Pace(0.0)
        self._pauses_s = deque([0.0] * _CALM_PAUSES, maxlen=_PAUSES)
        self._stretch = _Stretch()
        self._count = 0

    @property
    def slowdown(self) -> float:
        """Time that a call takes over what the calibrated line says."""
        return self._slowdown.now

    @property
    def per_call_s(self) -> float:
        """Share of a call that does not depend on its rows, and what lies between two calls."""
        return self._fixed_s * self.slowdown + self._between_s.now

    @property
    def per_row_s(self) -> float:
        """What each network row adds."""
        return self._row_s * self.slowdown

    def calm_s(self, num_steps: int, network_rows: int) -> float:
        """What so many calls of so many rows take as calibrated, with nothing around them."""
        return num_steps * (self._fixed_s + self._row_s * network_rows)

    def efficient_rows(self, max_call_s: float, loss: float) -> int:
        """Rows of the largest call worth making; at least 1.

        Args:
            max_call_s: no call may take longer.
            loss: how much more a row may cost than it would in an endless call. Beyond that a
                larger call gains nothing, and whoever is due first waits for it.
        """
        row_s = max(self.per_row_s, _TINY_S)
        pays = self.per_call_s / (loss * row_s)
        fits = (max_call_s - self._fixed_s * self.slowdown) / row_s
        return max(1, int(min(pays, fits, 1e6)))

    def observe_call(self, network_rows: int, call_s: float, passed_s: float) -> float:
        """Take in one network call.

        Args:
            network_rows: of it.
            call_s: what it took.
            passed_s: from the end of the call before, or from idleness, to its end.

        Returns:
            By how many seconds that is more than was predicted.
        """
        stretch = self._stretch
        calm_s = self._fixed_s + self._row_s * network_rows
        excess_s = passed_s - calm_s * self._slowdown.now - self._between_s.now
        stretch.calls += 1
        stretch.predicted_s += calm_s
        stretch.call_s += call_s
        stretch.passed_s += passed_s
        if stretch.passed_s >= _STRETCH_S:
            self._end(stretch)
            self._stretch = _Stretch()
        return excess_s

    def _end(self, stretch: _Stretch) -> None:
        between_s = (stretch.passed_s - stretch.call_s) / stretch.calls
        expected_s = (
            self._slowdown.usual * stretch.predicted_s + self._between_s.usual * stretch.calls
        )
        pause_s = max(0.0, stretch.passed_s - expected_s)
        self._pauses_s.append(pause_s)
        self.worst_stall_s = max(self.worst_stall_s, pause_s)
        self.error = stretch.passed_s / max(expected_s, _TINY_S) - 1
        self._slowdown.observe(stretch.call_s / max(stretch.predicted_s, _TINY_S))
        self._between_s.observe(between_s)
        self._count += 1
        if self._count % _REFRESH_EVERY == 0:
            pauses_s = sorted(self._pauses_s)
            self.stall_s, self.worst_stall_s = quantile(pauses_s, _STALL_QUANTILE), pauses_s[-1]


@dataclass
class _Stretch:
    """Some calls in a row."""

    calls: int = 0
    predicted_s: float = 0.0
    call_s: float = 0.0
    passed_s: float = 0.0


def _line_above(rows: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """(per row, fixed) of a line that no calibrated call lies above."""
    span = max(rows[-1] - rows[0], 1)
    row_s = max((seconds[-1] - seconds[0]) / span, 0.0)
    above = zip(rows, seconds, strict=True)
    return row_s, max(0.0, *(s - row_s * n for n, s in above))
