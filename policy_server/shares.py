"""How well each session has been served lately, so that overload is shared by all (pure)."""

from __future__ import annotations

from collections import OrderedDict

_WEIGHT = 0.2
"""Of the latest request in a session's share."""


class Shares:
    """Running share of each session's requests that were answered, 0 .. 1.

    Without it the same few robots would be refused for ever: they ask periodically, so whoever
    finds the server full once finds it full the next time, too.

    Args:
        max_sessions: remembered; those not heard of for longest are forgotten.
    """

    def __init__(self, max_sessions: int = 4096) -> None:
        self._max_sessions = max_sessions
        self._share: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Sessions remembered."""
        return len(self._share)

    def of(self, session_id: str) -> float:
        """Share of a session; 0 for one that is not known, so that newcomers are welcome."""
        return self._share.get(session_id, 0.0)

    def note(self, session_id: str, *, answered: bool) -> None:
        """Take in what became of a request."""
        share = self._share.get(session_id, 0.0)
        self._share[session_id] = share + _WEIGHT * (answered - share)
        self._share.move_to_end(session_id)
        if len(self._share) > self._max_sessions:
            self._share.popitem(last=False)
