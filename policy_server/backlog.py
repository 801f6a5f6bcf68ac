"""Whether one more request fits: the work that is promised already, in order of deadlines (pure).

Built anew for every network call and asked for every arrival, of which there may be thousands a
second that have to be refused, so asking takes a few microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Backlog:
    """Requests that are to be in time, each with the least work that it needs.

    Args:
        now_s: when the work begins.
        deadlines_s: rising.
        work_s: of each, in seconds of full calls.
    """

    def __init__(
        self, now_s: float, deadlines_s: Sequence[float] = (), work_s: Sequence[float] = ()
    ) -> None:
        self._deadlines_s = list(deadlines_s)
        self._work_s = list(work_s)
        # when all work up to each will be done; in front, when it begins
        self._done_s = list(accumulate(work_s, initial=now_s))

    def begin_s(self, deadline_s: float) -> float:
        """When all that is due until then will be done."""
        return self._done_s[bisect_right(self._deadlines_s, deadline_s)]

    def leaves_all_in_time(self, deadline_s: float, work_s: float) -> bool:
        """Whether whoever is due later, and would be in time, can wait for so much more work."""
        index = bisect_right(self._deadlines_s, deadline_s)
        later = zip(self._deadlines_s[index:], self._done_s[index + 1 :], strict=True)
        return not any(done_s <= due_s < done_s + work_s for due_s, done_s in later)

    def delay(self, pause_s: float) -> None:
        """All work will be done so much later."""
        self._done_s = [done_s + pause_s for done_s in self._done_s]

    def add(self, deadline_s: float, work_s: float) -> None:
        """Promise one more."""
        index = bisect_right(self._deadlines_s, deadline_s)
        self._deadlines_s.insert(index, deadline_s)
        self._work_s.insert(index, work_s)
        self._done_s[index + 1 :] = [d + work_s for d in self._done_s[index:]]

    def remove(self, deadline_s: float, work_s: float) -> bool:
        """Take back a promise; False if it was not made."""
        index = bisect_right(self._deadlines_s, deadline_s) - 1
        while index >= 0 and self._deadlines_s[index] == deadline_s:
            if self._work_s[index] == work_s:
                del self._deadlines_s[index], self._work_s[index]
                self._done_s[index + 1 :] = [d - work_s for d in self._done_s[index + 2 :]]
                return True
            index -= 1
        return False
