"""How much of a budget the way to the server and back takes, learnt from the answers (pure)."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

WINDOW = 100
QUANTILE = 0.99
LARGEST_SHARE = 0.5


class NetworkMargin:
    """Running high quantile of (round trip less server total) over the last `WINDOW` answers.

    Once the window is full, a single outlier does not count any more. The margin never takes more
    than `LARGEST_SHARE` of what is left of a budget: if it could take all, no request would be
    sent, no answer would come, and it would never learn that the network has recovered.
    """

    def __init__(self) -> None:
        """Start without answers: the first request keeps its whole budget."""
        self._overheads_s: deque[float] = deque()
        self._sorted_s: list[float] = []  # the same, for it is asked before every request

    def add(self, round_trip_s: float, server_total_s: float) -> None:
        """Learn from one answer; both are durations, each by its own host's clock."""
        if len(self._overheads_s) == WINDOW:
            del self._sorted_s[bisect_left(self._sorted_s, self._overheads_s.popleft())]
        overhead_s = max(0.0, round_trip_s - server_total_s)
        self._overheads_s.append(overhead_s)
        insort(self._sorted_s, overhead_s)

    def of(self, left_s: float) -> float:
        """Seconds to keep back when `left_s` are left of a budget."""
        if not self._sorted_s:
            return 0.0
        rank = math.ceil(QUANTILE * len(self._sorted_s)) - 1
        return min(self._sorted_s[rank], LARGEST_SHARE * left_s)
