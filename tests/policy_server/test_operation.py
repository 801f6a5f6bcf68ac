"""A real server under load: an orderly end, another model in its place, and quiet logs."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from benchmarks.server_process import running_command, running_server
from client import DeadlineError, PolicyClient, wire
from client.messages import ActionChunk, ActRequest, ErrorReply
from models import checkpoint
from models.instruction_encoder import InstructionEncoder
from models.sampling import Sampling, sample_chunks
from policy_server.model_swap import ModelSwap
from tests.policies import TINY_SPEC, make_policy, save_checkpoint

LONG = bool(os.environ.get("POLICY_SERVER_LONG_TESTS"))
EXPORTS = pytest.mark.skipif(not LONG, reason="exports take long")
SWAPS = 10 if LONG else 2
ROBOTS, PERIOD_S, BUDGET_S = 20, 0.1, 2.0
"""A budget far beyond what is needed: what is tested here is not speed."""
INSTRUCTION, STEPS, SEED = "open the drawer", 5, 3
OBSERVATION = {"state": np.arange(6, dtype=np.float32).reshape(2, 3) / 5}
POLICIES = {"one": 1, "two": 2}
"""Seeds of the weights by model_id."""


def save(folder, model_id, spec=TINY_SPEC):
    policy = make_policy(spec=spec, seed=POLICIES[model_id])
    manifest = save_checkpoint(folder, policy)
    checkpoint.write_manifest(folder, dataclasses.replace(manifest, model_id=model_id))


def request(session, number, **fields):
    fields = {"budget_s": BUDGET_S, "num_steps": STEPS, "seed": SEED, **fields}
    return wire.encode(ActRequest(session, number, OBSERVATION, INSTRUCTION, **fields))


@contextmanager
def connected(context, address):
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        yield socket


def next_reply(socket):
    assert socket.poll(5000), "lost"
    return wire.decode(socket.recv_multipart())


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "served", "one")
    return tmp_path / "served"


@pytest.fixture(scope="module")
def expected():
    """What each model answers, by the sampler that needs no server."""
    embedding = InstructionEncoder().encode([INSTRUCTION])
    batch = {"state": OBSERVATION["state"][None]}
    return {
        model_id: sample_chunks(
            make_policy(seed=seed), batch, embedding, Sampling(num_steps=STEPS), seeds=[SEED]
        )[0]
        for model_id, seed in POLICIES.items()
    }


class Robots:
    """Twenty of them, on one connection, at 10 Hz each; all that was asked and answered."""

    def __init__(self, address):
        self.sent, self.replies = 0, []
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        with zmq.Context() as context, connected(context, self._address) as socket:
            due_s = time.monotonic()
            while not self._stop.is_set() or len(self.replies) < self.sent:
                now_s = time.monotonic()
                if self._stop.is_set() and now_s > due_s + 5:
                    return
                if now_s >= due_s and not self._stop.is_set():
                    robot = f"robot {self.sent % ROBOTS}"
                    socket.send_multipart(request(robot, self.sent))
                    self.sent += 1
                    due_s += PERIOD_S / ROBOTS
                if socket.poll(1):
                    self.replies.append(wire.decode(socket.recv_multipart()))

    def wait_for(self, model_id, within_s=120.0):
        """Until a reply names this model."""
        until_s = time.monotonic() + within_s
        while not self.replies or getattr(self.replies[-1], "model_id", "") != model_id:
            assert time.monotonic() < until_s
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [
        ("torch", 1e-4),
        pytest.param("onnx", 1e-4, marks=EXPORTS),
        pytest.param("onnx-int8", 0.05, marks=EXPORTS),
    ],
)
def test_models_are_swapped_under_load_and_each_reply_names_its_own(
    folder, expected, backend, tolerance
):
    with running_server(folder, "--backend", backend) as server, Robots(server.address) as robots:
        robots.wait_for("one")
        for number in range(SWAPS):
            model_id = ("two", "one")[number % 2]
            save(folder, model_id)
            server.process.send_signal(signal.SIGHUP)
            robots.wait_for(model_id)
        time.sleep(0.2)
    assert len(robots.replies) == robots.sent
    assert sorted(reply.request_id for reply in robots.replies) == list(range(robots.sent))
    chunks = [reply for reply in robots.replies if isinstance(reply, ActionChunk)]
    # none are refused on a quiet machine (`python -m benchmarks swaps`)
    assert len(chunks) > 0.9 * robots.sent
    assert all(chunk.deadline_met for chunk in chunks)
    seen = Counter()
    for reply in chunks:
        np.testing.assert_allclose(reply.actions, expected[reply.model_id], atol=tolerance)
        seen[reply.model_id] += 1
    assert seen.keys() == POLICIES.keys()
    assert np.abs(expected["one"] - expected["two"]).max() > 0.1


def hang_up(server, pattern):
    """SIGHUP, and what the log then says of it."""
    begin = len(server.log)
    server.process.send_signal(signal.SIGHUP)
    until_s = time.monotonic() + 60
    while not (found := re.search(pattern, server.log[begin:])):
        assert time.monotonic() < until_s, server.log
        time.sleep(0.02)
    return found.group()


def truncate(folder):
    save(folder, "two")
    weights = folder / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])


def widen(folder):
    save(folder, "two", dataclasses.replace(TINY_SPEC, horizon=16, action_maximum=(1.0, 2.0)))


UNUSABLE = {
    "truncated": (truncate, r"model\.safetensors: altered or truncated"),
    "another robot": (
        widen,
        r"spec\.action_maximum: expected \(1\.0, 1\.0\), got \(1\.0, 2\.0\); "
        r"spec\.horizon: expected 8, got 16",
    ),
    "gone": (lambda folder: (folder / checkpoint.MANIFEST).unlink(), r"manifest\.json"),
    "not JSON": (lambda folder: (folder / checkpoint.MANIFEST).write_text("{"), "not a usable"),
}


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A server, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("served")
    save(folder, "one")
    with running_server(folder, "--backend", "torch") as server:
        yield server, folder


def test_nothing_is_logged_while_all_is_well_or_clients_err(steady):
    server, _ = steady
    before = server.log
    with PolicyClient(server.address) as policy:
        policy.metadata(timeout_s=5.0)
        for number in range(100):
            policy.act(OBSERVATION, f"instruction {number % 5}", budget_s=BUDGET_S, timeout_s=5.0)
            with pytest.raises(DeadlineError):
                policy.act(OBSERVATION, INSTRUCTION, budget_s=2e-4, timeout_s=5.0)
    with zmq.Context() as context:
        with connected(context, server.address) as socket:
            for message in ([b"garbage"], request("robot", 1, num_steps=5000)):
                socket.send_multipart(message)
                assert isinstance(next_reply(socket), ErrorReply)
        for number in range(3):  # each is gone before its answer
            with connected(context, server.address) as socket:
                socket.send_multipart(request("robot", number, num_steps=200))
                time.sleep(0.05)
        with connected(context, server.address) as socket:
            socket.send_multipart(request("another", 1))
            assert isinstance(next_reply(socket), ActionChunk)
    assert server.log == before


def test_a_checkpoint_that_cannot_take_over_is_refused_and_the_old_one_goes_on(steady):
    server, folder = steady
    with PolicyClient(server.address) as policy:
        for name, (spoil, reason) in UNUSABLE.items():
            spoil(folder)
            line = hang_up(server, r".*goes on: .*")
            assert re.search(reason, line), (name, line)
            assert str(folder) in line
            assert "Traceback" not in server.log
            chunk = policy.act(OBSERVATION, INSTRUCTION, budget_s=BUDGET_S, timeout_s=5.0)
            assert chunk.model_id == policy.metadata().model_id == "one"
        save(folder, "two")
        hang_up(server, "two in place of one")
        assert policy.act(OBSERVATION, INSTRUCTION, budget_s=BUDGET_S).model_id == "two"
        assert policy.metadata().model_id == "two"


def end(server, number):
    """Seconds from a signal to the exit."""
    begun_s = time.monotonic()
    server.process.send_signal(number)
    assert server.process.wait(10.0) == 0
    return time.monotonic() - begun_s


ENDED_WITHIN_S = 2.0
"""A second, and as much again for whatever else runs here."""


def test_the_end_answers_or_refuses_whatever_was_sent(folder):
    """Over several connections, far more than is taken in between two network calls."""
    each = 60
    with ExitStack() as stack:
        server = stack.enter_context(running_server(folder, "--backend", "torch"))
        context = stack.enter_context(zmq.Context())
        sockets = [stack.enter_context(connected(context, server.address)) for _ in range(8)]
        for robot, socket in enumerate(sockets):
            socket.send_multipart(request(f"robot {robot}", 0))
            next_reply(socket)
        for number in range(1, each + 1):
            for robot, socket in enumerate(sockets):
                socket.send_multipart(request(f"robot {robot}", number, num_steps=1))
        assert end(server, signal.SIGTERM) < ENDED_WITHIN_S
        outcomes = Counter()
        for socket in sockets:
            replies = [next_reply(socket) for _ in range(each)]
            assert sorted(reply.request_id for reply in replies) == list(range(1, each + 1))
            outcomes.update(getattr(reply, "code", "answered") for reply in replies)
    assert outcomes.keys() <= {"answered", "overloaded", "superseded"}, outcomes
    assert outcomes["overloaded"] > 0, outcomes


def test_the_end_does_not_wait_for_what_takes_long(tmp_path):
    save_checkpoint(tmp_path, make_policy(width=1024))  # many seconds for all of them
    many = 60
    with (
        running_server(tmp_path, "--backend", "torch") as server,
        zmq.Context() as context,
        connected(context, server.address) as socket,
    ):
        for number in range(many):
            fields = {"num_steps": 1000, "guidance_scale": 1.0, "budget_s": 100.0}
            socket.send_multipart(request(f"robot {number}", number, **fields))
        time.sleep(0.5)  # some have begun by then, whatever else runs here
        assert end(server, signal.SIGINT) < ENDED_WITHIN_S
        outcomes = Counter(getattr(next_reply(socket), "code", "answered") for _ in range(many))
    assert outcomes.keys() <= {"answered", "overloaded"}, outcomes
    assert outcomes["overloaded"] > 0, outcomes


SLOW_SWAP = """
import logging, sys, time
from pathlib import Path
from policy_server import server

logging.basicConfig(level=logging.INFO)
load, loads = server.load_model, []

def load_model(*args):
    loads.append(args)
    if len(loads) > 1:
        time.sleep(60)
    return load(*args)

server.load_model = load_model
server.serve(server.ServerConfig(Path(sys.argv[1]), bind="tcp://127.0.0.1:*", backend="torch"))
"""


def test_the_end_does_not_wait_for_another_model(folder, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with running_command([sys.executable, "-c", SLOW_SWAP, str(folder)]) as server:
        hang_up(server, "loading")
        time.sleep(0.5)
        assert end(server, signal.SIGTERM) < ENDED_WITHIN_S
        assert "Traceback" not in server.log
    assert list(scratch.glob("policy_server_*")) == []


def test_a_model_that_is_being_loaded_is_given_up(folder, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with (
        running_server(folder, "--backend", "torch") as server,
        PolicyClient(server.address) as policy,
    ):
        metadata = policy.metadata()
    begun, go_on = threading.Event(), threading.Event()

    def load(_):
        begun.set()
        go_on.wait(30.0)
        raise checkpoint.CheckpointError("too late")

    swap = ModelSwap(folder, metadata, load)
    swap.ask()
    swap.look()
    assert begun.wait(30.0)
    assert list(scratch.glob("policy_server_*"))
    assert swap.close()
    assert list(scratch.glob("policy_server_*")) == []
    go_on.set()


def test_signals_while_it_loads_are_taken_in_order(folder):
    command = [sys.executable, "-m", "policy_server", "--checkpoint", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        if not status.exists():
            process.kill()
            pytest.skip("no /proc: nothing tells when the signals would be taken")
        until_s = time.monotonic() + 60
        caught = 0
        while not caught >> (signal.SIGHUP - 1) & 1:
            assert time.monotonic() < until_s
            time.sleep(0.01)
            caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text()).group(1), 16)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr


SWALLOWED = """
import sys, time
from pathlib import Path
from policy_server import server

def load_model(*args):
    print("loading", flush=True)
    try:
        time.sleep(60)
    except SystemExit:  # as torch does when it looks for the shape of something
        raise RuntimeError("could not determine the shape") from None

server.load_model = load_model
server.serve(server.ServerConfig(Path(sys.argv[1]), bind="tcp://127.0.0.1:*"))
"""


def test_an_end_that_native_code_makes_an_error_of_is_an_end(folder):
    command = [sys.executable, "-c", SWALLOWED, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")
