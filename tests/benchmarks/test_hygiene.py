"""Who is asked when, and what a changed server is changed in."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.hygiene import CHANGES, HygieneConfig, blocks, due_times

CONFIG = HygieneConfig(requests=250, rate_hz=100.0, block_s=1.0)


def test_each_round_asks_every_server_once_and_none_beside_another():
    turns = blocks(CONFIG)
    for begin in range(0, len(turns), len(CHANGES)):
        assert {change for _, change in turns[begin : begin + len(CHANGES)]} == set(CHANGES)
    begins_s = [begin_s for begin_s, _ in turns]
    assert np.diff(begins_s).min() >= CONFIG.block_s
    assert begins_s[len(CHANGES)] == 0.0


@pytest.mark.parametrize("change", CHANGES)
def test_every_server_is_asked_as_often_as_the_others(change):
    due_s = due_times(CONFIG, change)
    assert np.count_nonzero(due_s >= 0) == 250
    assert np.count_nonzero(due_s < 0) == 100
    begins_s = [begin_s for begin_s, whose in blocks(CONFIG) if whose == change]
    block = np.searchsorted(begins_s, due_s, side="right") - 1
    assert ((due_s - np.array(begins_s)[block]) < CONFIG.block_s).all()


CHANGED = """
import gc, os, sys
import torch
from benchmarks.hygiene_server import apply, server
apply("no_freeze"); gc.collect(); gc.freeze(); assert gc.get_freeze_count() == 0
apply("switching"); assert sys.getswitchinterval() == 0.0005
apply("threads"); torch.set_num_threads(1); assert torch.get_num_threads() == 2
before = os.nice(0); apply("no_priority"); server.set_nice(19); assert os.nice(0) == before
apply("pinned"); assert len(os.sched_getaffinity(0)) == 1
"""


def test_a_change_is_one():
    done = subprocess.run(
        [sys.executable, "-c", CHANGED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
