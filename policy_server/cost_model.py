"""What things cost on this machine now: high quantiles of measured durations, learned online.

Plans are made with a high quantile, not the mean: a request planned with the mean is late half of
the time. Pure: it is told durations and reads no clock.
"""

from __future__ import annotations

from collections import deque

_LONG, _SHORT = 128, 8
_REFRESH_EVERY = 8
_QUANTILE = 0.95
_UNKNOWN_S = 0.005


class DurationQuantile:
    """A high quantile of recent durations that follows a change of regime within a few samples.

    The 95th percentile of the last 128 samples forgets slowly and shrugs off single outliers; the
    median of the last 8 raises the estimate at once when everything has become slower (a busy
    neighbour) without waiting for the long window to fill.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_LONG)
        self._last: deque[float] = deque(maxlen=_SHORT)
        self._high_s = _UNKNOWN_S
        self._count = 0
        self.estimate_s = _UNKNOWN_S

    def observe(self, duration_s: float) -> None:
        """Take in one measured duration."""
        self._recent.append(duration_s)
        self._last.append(duration_s)
        self._count += 1
        if self._count % _REFRESH_EVERY == 0 or self._count < _LONG:
            ordered = sorted(self._recent)
            self._high_s = ordered[min(int(_QUANTILE * len(ordered)), len(ordered) - 1)]
        self.estimate_s = max(self._high_s, sorted(self._last)[len(self._last) // 2])


class CostModel:
    """Predicted durations of a request's parts.

    Attributes:
        encode: conditioning of one request (both branches).
        finish: from the last denoising call to the reply.
    """

    def __init__(self) -> None:
        self._call = {1: DurationQuantile(), 2: DurationQuantile()}
        self.encode = DurationQuantile()
        self.finish = DurationQuantile()

    def call(self, network_rows: int) -> DurationQuantile:
        """From the end of one step to the end of the next, by network rows of the step."""
        return self._call[network_rows]
