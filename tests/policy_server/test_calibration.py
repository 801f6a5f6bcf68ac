"""Warm-up on a simulated backend: the cost model that is measured is the one that was simulated."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_server.backends.protocol import BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from policy_server.calibration import (
    measure_calls,
    measure_cost,
    usual_max_call_s,
    warm_up,
    zero_observation,
)
from policy_server.requests import Answer
from tests.policies import CAMERA_SPEC, TINY_VISION, make_policy
from tests.policy_server.simulation import (
    NOTHING_SEEN,
    Clock,
    SimulatedBackend,
    World,
    expected_actions,
)


def backend(pace=lambda: 1.0, max_requests=16, **durations):
    simulated = SimulatedBackend(Clock(), max_requests, **durations)
    simulated.pace = pace
    return simulated


@settings(max_examples=25)
@given(st.floats(0, 0.01), st.floats(1e-5, 0.002), st.floats(1e-5, 0.01), st.floats(0, 0.001))
def test_what_was_simulated_is_measured(fixed_s, call_s, encode_s, finish_s):
    machine = backend(fixed_s=fixed_s, call_s=call_s, encode_s=encode_s, finish_s=finish_s)
    cost = measure_cost(machine, NOTHING_SEEN, machine.clock, 0.003)
    assert cost.per_call_s == pytest.approx(fixed_s, abs=1e-9)
    assert cost.per_row_s == pytest.approx(call_s, abs=1e-9)
    assert cost.encode.estimate_s == pytest.approx(encode_s, abs=1e-9)
    assert cost.finish.estimate_s == pytest.approx(finish_s, abs=1e-9)


@pytest.mark.parametrize(("row_s", "max_call_s"), [(0.0001, 0.003), (0.001, 0.008)])
def test_a_call_may_be_shared_even_if_one_request_takes_long(row_s, max_call_s):
    machine = backend(fixed_s=0.0, call_s=row_s, encode_s=0.0, finish_s=0.0)
    assert usual_max_call_s(machine, machine.clock) == pytest.approx(max_call_s)


def test_looking_at_cameras_is_part_of_encoding_once_a_request_and_of_no_step():
    """Each frame takes a millisecond here, and nothing else any time worth mentioning."""
    policy = make_policy(spec=CAMERA_SPEC, vision=TINY_VISION)
    clock = Clock()

    def looked_at(_encoder, images):
        clock.now_s += 0.001 * images[0].shape[:2].numel()

    for encoder in policy.camera_encoders.values():
        encoder.register_forward_pre_hook(looked_at)

    def read():
        clock.now_s += 1e-6
        return clock.now_s

    machine = TorchBackend(policy, BackendSettings(num_threads=1, max_requests=2))
    cost = measure_cost(machine, zero_observation(CAMERA_SPEC), read, 0.003)
    frames = 2 * CAMERA_SPEC.obs_steps  # of two cameras
    assert cost.encode.estimate_s == pytest.approx(0.001 * frames, abs=1e-5)
    assert cost.per_call_s + 4 * cost.per_row_s < 1e-4


def test_calls_are_guided_and_their_sizes_double_until_the_buffers_are_full():
    machine = backend(max_requests=12)
    measured = list(measure_calls(machine, machine.clock, 10))
    assert [rows for rows, _ in measured] == [2, 4, 8, 16]
    assert [rows for rows, _ in measure_calls(machine, machine.clock, 2)] == [2, 4]
    for rows, call_s in measured:
        assert call_s == pytest.approx(0.001 * rows)


@pytest.mark.parametrize(
    ("max_call_s", "largest"), [(0.001, 4), (0.005, 8), (0.0081, 16), (1.0, 32)]
)
def test_calls_that_would_not_be_made_are_not_measured_beyond_the_first(max_call_s, largest):
    machine = backend()
    rows = []
    step = machine.step

    def counted(requests, network_rows):
        rows.append(network_rows)
        step(requests, network_rows)

    machine.step = counted
    measure_cost(machine, NOTHING_SEEN, machine.clock, max_call_s)
    assert max(rows) == largest


def test_a_few_slow_calls_in_warm_up_do_not_matter():
    paces = itertools.cycle([1.0, 1.0, 30.0, 1.0, 1.0])
    machine = backend(pace=lambda: next(paces), fixed_s=0.001)
    cost = measure_cost(machine, NOTHING_SEEN, machine.clock, 0.01)
    assert cost.per_call_s == pytest.approx(0.001)
    assert cost.per_row_s == pytest.approx(0.001)


@pytest.mark.parametrize("max_in_flight", [1, 8, 16])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_warming_up_answers_all_its_requests_with_one_and_two_rows_with_and_without_noise(
    eta, max_in_flight
):
    world = World(max_in_flight=max_in_flight, call_s=0.0002)
    outcomes = warm_up(
        world.engine, NOTHING_SEEN, world.clock, max_in_flight=max_in_flight, eta=eta
    )
    assert not world.engine.busy
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    kinds = {(o.request.network_rows, o.request.eta) for o in outcomes}
    assert kinds >= {(1, 0.0), (1, eta)}
    assert max_in_flight == 1 or kinds == {(1, 0.0), (2, 0.0), (1, eta), (2, eta)}
    assert len(outcomes) == sum(min(number, max_in_flight) for number in range(1, 9))
    assert max(o.rows_per_call for o in outcomes) >= min(max_in_flight, 5)
    for outcome in outcomes:
        np.testing.assert_allclose(
            outcome.actions, expected_actions(outcome.request, outcome.timesteps), atol=1e-5
        )
