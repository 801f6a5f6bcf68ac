"""How well each session has been served lately, so that overload is shared by all (pure)."""

from __future__ import annotations

from collections import OrderedDict

_WEIGHT = 0.2
"""Of the latest request in a session's share."""
_FORGOTTEN_AFTER_S = 2.0
_LEAST_ROOM, _YIELDS = 0.5, 2.0
"""See `Shares.room`."""


class Shares:
    """Running share of each session's requests that were answered, 0 .. 1.

    Without it the same few robots would be refused for ever: they ask periodically, so whoever
    finds the server full once finds it full the next time, too.

    Args:
        max_sessions: remembered; those not heard of for longest are forgotten, and all not heard of
            for two seconds.
    """

    def __init__(self, max_sessions: int = 4096) -> None:
        self._max_sessions = max_sessions
        self._share: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and when last heard of
        self._sum = 0.0

    def __len__(self) -> int:
        """Sessions remembered."""
        return len(self._share)

    def of(self, session_id: str) -> float:
        """Share of a session; 0 for one that is not known, so that newcomers are welcome."""
        return self._share.get(session_id, (0.0, 0.0))[0]

    def room(self, session_id: str) -> float:
        """Of the queue, so much is open to this session, 0.5 .. 1.

        Whoever is served better than sessions are on average leaves room for those who are not.
        """
        if not self._share:
            return 1.0
        above = self.of(session_id) - self._sum / len(self._share)
        return max(_LEAST_ROOM, 1 - _YIELDS * max(0.0, above))

    def note(self, session_id: str, now_s: float, *, answered: bool) -> None:
        """Take in what became of a request."""
        before = self.of(session_id)
        share = before + _WEIGHT * (answered - before)
        self._share[session_id] = share, now_s
        self._share.move_to_end(session_id)
        self._sum += share - before
        while self._is_forgotten(now_s):
            _, (forgotten, _) = self._share.popitem(last=False)
            self._sum -= forgotten

    def _is_forgotten(self, now_s: float) -> bool:
        _, heard_s = next(iter(self._share.values()))
        return len(self._share) > self._max_sessions or heard_s < now_s - _FORGOTTEN_AFTER_S
