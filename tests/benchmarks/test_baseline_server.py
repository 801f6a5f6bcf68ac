"""The engines that the deadline engine is compared with: what they answer, and in which order."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.baseline_server import BaselineConfig, FifoEngine, NullEngine
from benchmarks.server_process import running_server
from client import PolicyClient
from client.errors import CancelledError, OverloadedError, ServerFaultError
from models.grids import make_timesteps
from models.instruction_encoder import INSTRUCTION_DIM
from models.sampling import Sampling, sample_chunks
from models.schedules import make_alpha_bar
from policy_server.backends.protocol import BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from policy_server.planner import Planner, StepRange
from policy_server.requests import Answer, EngineRequest
from tests.policies import make_policy, save_checkpoint

ALPHA_BAR = make_alpha_bar("cosine", 1000)


class Clock:
    """Every look at it takes a millisecond."""

    def __init__(self):
        self.now_s = 50.0

    def __call__(self):
        self.now_s += 0.001
        return self.now_s


def make_request(number, **fields):
    options = {
        "observation": {"state": np.full((2, 3), number / 10, np.float32)},
        "instruction": np.full(INSTRUCTION_DIM, 0.1, np.float32),
        "arrived_s": 50.0,
        "deadline_s": 50.08,
        "num_steps": None,
        "guidance_scale": 1.0,
        "eta": 0.0,
        "seed": number,
        "best_effort": False,
    }
    return EngineRequest(key=(f"robot {number}", number), **{**options, **fields})


def make_fifo(max_waiting=8, default_steps=6, guidance_interval=(0.0, 1.0)):
    backend = TorchBackend(make_policy(), BackendSettings(max_requests=1))
    planner = Planner(StepRange(2, 8, 1000), ALPHA_BAR, "trailing", "ddim", guidance_interval)
    return FifoEngine(backend, planner, Clock(), default_steps, max_waiting)


def make_null(max_waiting=8):
    return NullEngine((8, 2), Clock(), max_waiting)


def test_fifo_answers_in_the_order_of_arrival_whatever_the_deadlines():
    engine = make_fifo()
    requests = [make_request(i, deadline_s=50.0 + 1.0 / i) for i in range(1, 6)]
    for request in requests:
        assert engine.submit(request) == []
    answers = []
    while engine.busy:
        answers += engine.advance()
    assert [answer.request for answer in answers] == requests
    assert engine.advance() == []


def test_fifo_takes_its_fixed_number_of_steps_however_late_it_is():
    engine = make_fifo(default_steps=6)
    for request in (
        make_request(1),
        make_request(2, num_steps=3),
        make_request(3, deadline_s=40.0),  # over before it came
    ):
        engine.submit(request)
    default, asked, late = (engine.advance()[0] for _ in range(3))
    grid = {n: tuple(make_timesteps("trailing", n, ALPHA_BAR).tolist()) for n in (3, 6)}
    assert (default.timesteps, asked.timesteps, late.timesteps) == (grid[6], grid[3], grid[6])
    assert (default.nfe, asked.nfe) == (12, 6)
    assert (default.deadline_met, late.deadline_met) == (True, False)
    assert default.queue_s < asked.queue_s < late.queue_s


@pytest.mark.parametrize("w", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize(
    ("eta", "interval"), [(0.0, (0.0, 1.0)), (1.0, (0.0, 1.0)), (0.0, (0.4, 0.9))]
)
def test_fifo_answers_what_offline_sampling_gives(w, eta, interval):
    engine = make_fifo(guidance_interval=interval)
    for number in (1, 2):  # the second one on buffers that the first one used
        engine.submit(make_request(number, guidance_scale=w, eta=eta, num_steps=5))
        (answer,) = engine.advance()
    request = answer.request
    expected = sample_chunks(
        make_policy(),
        {"state": request.observation["state"][None]},
        request.instruction[None],
        (how := Sampling(num_steps=5, guidance_scale=w, eta=eta, guidance_interval=interval)),
        seeds=[2],
    )[0]
    np.testing.assert_allclose(answer.actions, expected, atol=1e-4)
    assert answer.nfe == how.nfe(ALPHA_BAR) == 5 + (w == 2.0) * (2 if interval[0] else 5)


@pytest.mark.parametrize("make_engine", [make_fifo, make_null])
def test_only_a_full_queue_refuses(make_engine):
    engine = make_engine(max_waiting=3)
    # one session's newer requests do not replace its older ones, and no deadline is too short
    requests = [make_request(i, deadline_s=0.0) for i in range(1, 5)]
    refusals = [refusal for request in requests for refusal in engine.submit(request)]
    assert [refusal.request for refusal in refusals] == requests[3:]
    assert isinstance(refusals[0].error, OverloadedError)
    engine.advance()
    assert engine.submit(make_request(5)) == []


@pytest.mark.parametrize("make_engine", [make_fifo, make_null])
def test_what_is_cancelled_or_drained_is_answered_once(make_engine):
    engine = make_engine()
    first, second, third = requests = [make_request(i) for i in range(1, 4)]
    for request in requests:
        engine.submit(request)
    (cancelled,) = engine.cancel(second.key)
    assert cancelled.request is second
    assert isinstance(cancelled.error, CancelledError)
    assert engine.cancel(second.key) == []
    drained = engine.drain()
    assert [refusal.request for refusal in drained] == [first, third]
    assert all(isinstance(refusal.error, OverloadedError) for refusal in drained)
    assert not engine.busy


def test_a_model_that_fails_costs_fifo_the_request_it_failed_on(monkeypatch):
    engine = make_fifo()
    first, second = make_request(1), make_request(2)
    engine.submit(first)
    engine.submit(second)
    with monkeypatch.context() as patch:
        patch.setattr(engine._backend, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.advance()
    fault = ServerFaultError("the model failed")
    (refusal,) = engine.fail(fault)
    assert (refusal.request, refusal.error) == (first, fault)
    assert engine.fail(fault) == []
    (answer,) = engine.advance()
    assert answer.request is second
    assert engine.fail(fault) == []  # whoever has been answered is not to blame


def test_a_chunk_that_is_not_finite_is_not_sent_and_spoils_no_other():
    engine = make_fifo()
    engine.submit(make_request(1, observation={"state": np.full((2, 3), np.nan, np.float32)}))
    engine.submit(make_request(2))
    (refusal,) = engine.advance()
    assert isinstance(refusal.error, ServerFaultError)
    (answer,) = engine.advance()
    assert np.isfinite(answer.actions).all()


def test_null_answers_everybody_at_once_with_zeros():
    engine = make_null()
    requests = [make_request(i) for i in range(1, 6)]
    for request in requests:
        engine.submit(request)
    answers = engine.advance()
    assert [answer.request for answer in answers] == requests
    assert not engine.busy
    for answer in answers:
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(answer.actions, np.zeros((8, 2), np.float32))
        assert (len(answer.timesteps), answer.nfe) == (1, 0)


@pytest.mark.parametrize("name", ["default_steps", "max_waiting", "num_threads"])
def test_bad_options_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        BaselineConfig(**{name: 0})


def test_an_engine_that_there_is_not_is_refused():
    command = [sys.executable, "-m", "benchmarks.baseline_server", "--engine", "lifo"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "lifo" in ended.stdout + ended.stderr


@pytest.mark.realtime
@pytest.mark.parametrize(("engine", "steps"), [("fifo", 4), ("null", 1)])
def test_a_real_server_with_another_engine(tmp_path, engine, steps):
    save_checkpoint(tmp_path, make_policy())
    options = ("--backend", "torch", "--engine", engine, "--default-steps", "4")
    with (
        running_server(tmp_path, *options, module="benchmarks.baseline_server") as server,
        PolicyClient(server.address) as policy,
    ):
        assert policy.metadata(timeout_s=5.0).model_id == "tiny"
        observation = {"state": np.ones((2, 3), np.float32)}
        chunk = policy.act(observation, "open the drawer", budget_s=5.0, timeout_s=5.0)
        assert chunk.num_steps == steps
        assert chunk.actions.shape == (8, 2)
        assert (chunk.actions == 0).all() == (engine == "null")
        assert policy.ping(timeout_s=5.0) > 0
