"""How long a message may have waited before it was read (pure: it is told what is read when)."""

from __future__ import annotations


class Unread:
    """Bounds what cannot be seen: when a message came.

    ZeroMQ takes one message of each client in turn, so between two of any one client all others had
    their turn, and who was not read then had nothing to be read. So a client that sends a flood
    waits for itself, and those that do not are not taken for late.

    Args:
        now_s: monotonic clock.
    """

    def __init__(self, now_s: float) -> None:
        self.drained(now_s)

    def drained(self, now_s: float) -> None:
        """No client has anything left to be read."""
        self._round_s = now_s
        self._clients: dict[bytes, tuple[float, float]] = {}

    def read(self, client: bytes, now_s: float) -> float:
        """Take note of a message; for how long, at most, it has been there.

        Args:
            client: whose it is.
            now_s: monotonic clock.
        """
        read_s, empty_s = self._clients.get(client, (self._round_s, self._round_s))
        if read_s < self._round_s:
            empty_s = self._round_s
        self._round_s = max(self._round_s, read_s)
        self._clients[client] = now_s, empty_s
        return now_s - empty_s
