"""How well each session has been served lately, so that overload is shared by all (pure)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_WEIGHT = 0.2
"""Of the latest request in a session's share."""
_FORGOTTEN_AFTER_S = 2.0
_LEAST_ROOM, _ROOM_LOST = 0.3, 4.0
"""Room is lost by so much for each unit of share above the mean, down to the least."""


@dataclass
class _Session:
    """Sums over requests of weight · answered, and of weight; and when it was last heard of."""

    answered: float = 0.0
    weight: float = 0.0
    heard_s: float = 0.0

    @property
    def mean(self) -> float:
        return self.answered / self.weight


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
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # whoever was heard last is last
        self._sum_of_means = 0.0

    def __len__(self) -> int:
        """Sessions remembered."""
        return len(self._sessions)

    def of(self, session_id: str) -> float:
        """Share of a session; rises from 0 for a new one, so that newcomers are welcome."""
        session = self._sessions.get(session_id)
        return 0.0 if session is None else session.answered

    def room(self, session_id: str, now_s: float) -> float:
        """Of the queue, so much is open to this session, 0.3 .. 1.

        Whoever is served better than sessions are on average leaves room for those who are not.
        """
        self._forget(now_s)
        session = self._sessions.get(session_id)
        if session is None:
            return 1.0
        above = session.mean - self._sum_of_means / len(self._sessions)
        return max(_LEAST_ROOM, 1 - _ROOM_LOST * max(0.0, above))

    def note(self, session_id: str, now_s: float, *, answered: bool) -> None:
        """Take in what became of a request."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session()
        else:
            self._sum_of_means -= session.mean
        session.answered += _WEIGHT * (answered - session.answered)
        session.weight += _WEIGHT * (1 - session.weight)
        session.heard_s = now_s
        self._sum_of_means += session.mean
        self._sessions.move_to_end(session_id)
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._sessions:
            session = next(iter(self._sessions.values()))
            if (
                len(self._sessions) <= self._max_sessions
                and session.heard_s >= now_s - _FORGOTTEN_AFTER_S
            ):
                return
            self._sum_of_means -= session.mean
            self._sessions.popitem(last=False)
