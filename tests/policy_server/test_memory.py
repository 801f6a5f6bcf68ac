"""Requests without end leave memory as it was: robots come and go, and nothing of them stays.

    POLICY_SERVER_LONG_TESTS=1 pytest tests/policy_server/test_memory.py

sends a million requests instead of some ten thousand.
"""

import gc
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from policy_server.requests import Answer
from tests.policy_server.simulation import NullBackend, World

LONG = bool(os.environ.get("POLICY_SERVER_LONG_TESTS"))
PART = 330_000 if LONG else 8_000
"""A third of the requests; within the first, the memories that are bounded fill up."""
GROWTH_BLOCKS = 500
"""Python objects, more or fewer, between two moments at which nothing is inside."""
GROWTH_BYTES = 2 * 1024 * 1024


class Visitors:
    """Robots that come, ask once and never come again, and a few that stay.

    Args:
        load: how many times more arrive than could be served.
    """

    def __init__(self, load):
        self.world = World(
            min_steps=1,
            max_useful_steps=3,
            max_in_flight=64,
            backend=NullBackend,
            fixed_s=0.001,
            call_s=0.00005,
            encode_s=0.00001,
        )
        # on the average 2 steps and 1.5 rows, in calls of 20 rows in 2 ms
        self.gap_s = 2 * 1.5 * 0.0001 / load
        self.due_s = self.world.clock()
        self.sent = 0
        self.counts = Counter()

    def send(self, count):
        engine, clock = self.world.engine, self.world.clock
        for number in range(self.sent, self.sent + count):
            self.due_s += self.gap_s
            while engine.busy and clock() < self.due_s:
                self._count(engine.advance())
            clock.now_s = max(clock(), self.due_s)
            session = f"regular {number % 7}" if number % 3 == 0 else f"visitor {number}"
            request = self.world.request(
                (0.02, 0.1, 1.0)[number % 17 % 3],
                session,
                value=0.0,
                num_steps=(None, None, None, 1, 3)[number % 5],
                guidance_scale=float(number % 2),
                best_effort=number % 11 == 0,
            )
            self._count(engine.submit(request))
            if number % 13 == 0:
                self._count(engine.cancel(request.key))
        self._count(self.world.finish())
        self.sent += count

    def _count(self, outcomes):
        for outcome in outcomes:
            answered = isinstance(outcome, Answer)
            self.counts["answered" if answered else outcome.error.code] += 1


@pytest.mark.parametrize("load", [0.5, 3.0])
def test_requests_without_end_leave_memory_flat(load):
    # in a process of its own: what other tests leave behind comes and goes by megabytes
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        counts, blocks, resident = fresh.submit(three_parts, load).result()
    sent = 3 * PART
    assert sum(counts.values()) == sent
    assert counts["answered"] > 0.2 * sent
    assert counts["cancelled"] > 0.01 * sent
    assert (counts["overloaded"] + counts["deadline"] > 0.2 * sent) == (load > 1)
    assert abs(blocks[2] - blocks[1]) < GROWTH_BLOCKS, blocks
    assert resident[2] - resident[1] < GROWTH_BYTES, resident
    if LONG:
        print(load, dict(counts), blocks, resident)  # noqa: T201 - figures of the long run


def three_parts(load):
    """What became of all requests; Python's objects and resident bytes after each third."""
    visitors = Visitors(load)
    blocks, resident = [], []
    for _ in range(3):
        visitors.send(PART)
        gc.collect()
        blocks.append(sys.getallocatedblocks())
        resident.append(resident_bytes())
    return visitors.counts, blocks, resident


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
