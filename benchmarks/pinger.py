"""Pings at a low rate beside a measurement: how long does the server not look at its socket?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from client import ConnectionLostError, PolicyClient

RATE_HZ = 50.0
_TIMEOUT_S = 1.0


class Pings:
    """What has been measured so far."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def add(self, due_s: float, latency_s: float) -> None:
        """Take in one; the instant by `time.monotonic()`."""
        self._samples.append((due_s, latency_s))

    def between(self, start_s: float, end_s: float) -> list[float]:
        """Latencies in seconds of those that were due from `start_s` to before `end_s`."""
        return [latency_s for due_s, latency_s in self._samples if start_s <= due_s < end_s]


@contextmanager
def pinging(address: str) -> Iterator[Pings]:
    """Ping a server from a thread, on a connection of its own, while the context lasts.

    Pings are due at fixed times and count from there: while one waits for its answer, those that
    fall due meanwhile wait, too. One that gets no answer counts with the second it was waited for.
    """
    pings = Pings()
    ended = threading.Event()

    def ping() -> None:
        with PolicyClient(address) as policy:
            due_s = time.monotonic()
            while not ended.wait(max(0.0, due_s - time.monotonic())):
                with suppress(ConnectionLostError):  # it has taken as long as it has taken
                    policy.ping(timeout_s=_TIMEOUT_S)
                pings.add(due_s, time.monotonic() - due_s)
                due_s += 1 / RATE_HZ

    thread = threading.Thread(target=ping, name="pinger")
    thread.start()
    try:
        yield pings
    finally:
        ended.set()
        thread.join()
