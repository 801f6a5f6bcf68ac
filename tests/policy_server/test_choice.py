"""What is left open is chosen by what it takes; the times are the tests', the backends are real."""

import subprocess
import sys

import pytest
import torch

from policy_server import cores as machine
from policy_server.backends import choice
from policy_server.backends.choice import make_backend
from policy_server.cores import usable_cores
from tests.policies import make_policy, save_checkpoint

SECONDS = {1: 10.0, 2: 6.0, 4: 4.5, 8: 1.0}
"""By threads: two are worth it, four are not, and eight are not looked at."""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a backend where calls take the given times: name → threads → seconds."""
    policy = make_policy()
    save_checkpoint(tmp_path, policy)
    threads = torch.get_num_threads()
    measured = []

    def made(name, num_threads, cores=8, **seconds):
        def guided_calls_s(backend):
            measured.append((backend.name, backend.num_threads))
            found = seconds[backend.name][backend.num_threads]
            return found if isinstance(found, list) else [found]

        monkeypatch.setattr(choice, "usable_cores", lambda: cores)
        monkeypatch.setattr(choice, "_guided_calls_s", guided_calls_s)
        measured.clear()
        backend = make_backend(name, policy, tmp_path, num_threads=num_threads, max_requests=2)
        return backend.name, backend.num_threads, list(measured)

    yield made
    torch.set_num_threads(threads)


def test_threads_are_doubled_while_that_is_worth_it(make):
    name, threads, measured = make("torch", None, torch=SECONDS)
    assert (name, threads) == ("torch", 2)
    assert measured == [("torch", 1), ("torch", 2), ("torch", 4)]
    assert torch.get_num_threads() == 2  # and not as many as were tried last


def test_a_processor_is_left_to_everything_else(make):
    steep = {1: 4.0, 2: 2.0, 4: 1.0}
    for cores, threads in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 4)):
        assert make("torch", None, cores=cores, torch=steep)[1] == threads


def test_calls_of_the_same_sizes_are_compared(make):
    """More threads reach larger calls before these take too long, and those cost less a request."""
    assert make("torch", None, torch={1: [0.051], 2: [0.040, 0.056]})[1] == 1
    assert make("torch", None, torch={1: [0.051], 2: [0.030, 0.056], 4: [0.030]})[1] == 2


def test_what_is_named_is_not_measured(make):
    assert make("torch", 3) == ("torch", 3, [])
    assert make("onnx", 1) == ("onnx", 1, [])


def test_int8_weights_are_made_for_those_who_ask(make, tmp_path):
    assert make("onnx-int8", 1) == ("onnx-int8", 1, [])
    assert not list(tmp_path.glob("*.onnx"))  # not in somebody's checkpoint


@pytest.mark.parametrize("faster", ["torch", "onnx"])
def test_the_faster_backend_is_taken_and_its_threads_are_measured(make, faster):
    seconds = {"torch": {1: 20.0, 2: 20.0}, "onnx": {1: 20.0, 2: 20.0}, faster: SECONDS}
    name, threads, measured = make("auto", None, **seconds)
    assert (name, threads) == (faster, 2)
    assert measured == [("torch", 1), ("onnx", 1), (faster, 2), (faster, 4)]


def test_the_quota_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "allowed_cores", lambda: 8)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    limit = tmp_path / "sys/fs/cgroup/cpu.max"
    for quota, cores in (("50000", 1), ("350000", 3), ("max", 8), (f"{10**9}", 8)):
        limit.write_text(f"{quota} 100000\n")
        assert usable_cores(tmp_path) == cores


def test_a_server_decides_itself_how_it_logs():
    """ONNX Runtime's own quantiser would not let it."""
    said = "import logging, policy_server.server; print(logging.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
