"""One suite for every backend: add a line to BACKENDS and all of this runs over it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.instruction_encoder import INSTRUCTION_DIM
from models.samplers import draw_noise
from policy_server.backends.onnx_backend import OnnxBackend
from policy_server.backends.protocol import BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from tests.policies import TINY_SPEC, make_policy

SETTINGS = BackendSettings(num_threads=1, max_requests=4)
BACKENDS = {
    "torch": lambda policy: TorchBackend(policy, SETTINGS),
    "onnx": lambda policy: OnnxBackend(policy, SETTINGS, None),
}
TOLERANCE = 1e-5
"""Largest difference from the float64 reference, in normalised units (samples are within ±1)."""


@pytest.fixture(scope="module", params=BACKENDS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def backend(name, policy):
    return BACKENDS[name](policy)


def fill(backend, w, seed=0):
    """Random rows for requests with these guidance scales; returns (requests, network rows)."""
    rng = np.random.default_rng(seed)
    buffers, requests = backend.buffers, len(w)
    buffers.conditions[:] = rng.standard_normal(buffers.conditions.shape)
    for array in (buffers.x_t, buffers.x0_prev, buffers.noise):
        array[:requests] = rng.standard_normal(array[:requests].shape)
    buffers.timesteps[:requests] = rng.integers(1000, size=requests)
    buffers.coefficients[:requests] = rng.random((requests, 4))
    slots = rng.permutation(buffers.max_requests)[:requests]
    return requests, buffers.lay_out(np.array(w, np.float32), slots)


MIXES = [[0.0], [1.0], [-1.0], [0.0, 2.0], [3.0, 0.0, -1.0, 0.5], [1.0] * 4]


@pytest.mark.parametrize("w", MIXES)
def test_step_equals_a_float64_reference(backend, w):
    requests, network_rows = fill(backend, w)
    reference = make_policy().guided_step().double()
    inputs = [
        torch.from_numpy(a.astype(np.float64) if a.dtype == np.float32 else a)
        for a in backend.buffers.inputs(requests, network_rows).values()
    ]
    with torch.inference_mode():
        x_prev, x0 = reference(*inputs)
    backend.step(requests, network_rows)
    np.testing.assert_allclose(backend.buffers.x_prev[:requests], x_prev, atol=TOLERANCE)
    np.testing.assert_allclose(backend.buffers.x0[:requests], x0, atol=TOLERANCE)


def test_a_row_is_the_same_alone_and_in_company(backend):
    requests, network_rows = fill(backend, [2.0, 0.0, 1.0, -1.0])
    backend.step(requests, network_rows)
    together = backend.buffers.x_prev.copy()
    inputs = {k: v.copy() for k, v in backend.buffers.inputs(requests, network_rows).items()}
    slots = inputs["condition_of"][:requests] // 2
    for i in range(requests):
        buffers = backend.buffers
        for key in ("x_t", "x0_prev", "noise", "timesteps", "coefficients"):
            getattr(buffers, key)[0] = inputs[key][i]
        rows = buffers.lay_out(inputs["guidance_scale"][i : i + 1], slots[i : i + 1])
        backend.step(1, rows)
        np.testing.assert_allclose(buffers.x_prev[0], together[i], atol=TOLERANCE)


NOT_FINITE = [(w, bad, branches) for w in (0, 1) for bad in (np.nan, np.inf) for branches in (1, 2)]


@pytest.mark.parametrize(
    ("w", "bad", "branches"),
    [*NOT_FINITE, (3e38, 1e38, 1)],  # the last: finite branches whose guided sum is not
)
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(backend, w, bad, branches):
    requests, network_rows = fill(backend, [w, 0.5])
    slot = backend.buffers.condition_of[0] // 2
    backend.buffers.conditions[2 * slot : 2 * slot + branches] = bad
    backend.step(requests, network_rows)
    # a clip that turned it into a bound would hand a full-speed action to the robot
    assert not np.isfinite(backend.buffers.x_prev[0]).any()
    assert np.isfinite(backend.buffers.x_prev[1]).all()


def test_encode_fills_its_slot_alone_with_both_branches(backend, policy):
    rng = np.random.default_rng(3)
    observation = {"state": rng.standard_normal((2, 3)).astype(np.float32)}
    observation["state"].flags.writeable = False  # as it comes from the wire
    instruction = rng.standard_normal(INSTRUCTION_DIM).astype(np.float32)
    before = backend.buffers.conditions.copy()
    backend.encode(1, observation, instruction)
    after = backend.buffers.conditions
    np.testing.assert_array_equal(np.delete(after, [2, 3], 0), np.delete(before, [2, 3], 0))
    with torch.inference_mode():
        for row, drop in ((2, False), (3, True)):
            expected = policy.condition_part(
                {"state": torch.tensor(observation["state"][None])},
                torch.tensor(instruction[None]),
                torch.tensor([drop]),
            )[0]
            np.testing.assert_allclose(after[row], expected, atol=1e-5)
    assert not np.allclose(after[2], after[3])


def test_to_actions_undoes_the_normalisation_and_keeps_the_limits(name):
    policy = make_policy(
        spec=replace(TINY_SPEC, action_minimum=(-9.0, 6.0), action_maximum=(9.0, 9.0))
    )
    policy.action_normalizer.fit_range(torch.tensor([[-2.0, 5.0], [4.0, 9.0]]))
    actions = BACKENDS[name](policy).to_actions(np.array([[-1, -1], [1, 1]] * 4, np.float32))
    np.testing.assert_allclose(actions[:2], [[-2, 6], [4, 9]], rtol=1e-6)
    assert actions.dtype == np.float32


def test_a_second_call_of_the_same_size_sees_what_was_written_meanwhile(backend):
    requests, network_rows = fill(backend, [1.0])
    backend.step(requests, network_rows)
    first = backend.buffers.x_prev[:1].copy()
    backend.buffers.x_t[0] = draw_noise(5, 0, backend.buffers.x_t[0].shape)
    backend.step(requests, network_rows)
    assert not np.array_equal(first, backend.buffers.x_prev[:1])
