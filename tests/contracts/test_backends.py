"""One suite for every backend: add a line to BACKENDS and all of this runs over it."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from benchmarks.in_process import InProcess
from client.specs import ArraySpec
from models import checkpoint
from models.export import export_graphs
from models.guidance import branch_rows
from models.instruction_encoder import INSTRUCTION_DIM
from models.samplers import draw_noise
from policy_server.backends.onnx_backend import OnnxBackend
from policy_server.backends.protocol import BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from tests.policies import CAMERA_SPEC, TINY_SPEC, TINY_VISION, export_with_int8, make_policy

SETTINGS = BackendSettings(num_threads=1, max_requests=4)


def make_onnx(policy, *, int8=False):
    with TemporaryDirectory() as folder:
        export_with_int8(policy, Path(folder))
        return OnnxBackend(policy, SETTINGS, Path(folder), int8=int8)


BACKENDS = {
    "torch": lambda policy: TorchBackend(policy, SETTINGS),
    "onnx": make_onnx,
    "onnx-int8": partial(make_onnx, int8=True),
}
ROUNDING = 1e-5
TOLERANCE = {"torch": ROUNDING, "onnx": ROUNDING, "onnx-int8": 0.2}
"""Largest difference from the float64 reference, in normalised units (samples are within ±1); the
last is of networks without training, guided with w up to 3, which multiplies differences."""
COMPANY = {"torch": ROUNDING, "onnx": ROUNDING, "onnx-int8": 0.01}
"""Likewise from the same row alone: a sum that is different in its last bit, as it may be with
another number of rows, can be rounded to the next of 127 numbers."""


@pytest.fixture(scope="module", params=BACKENDS)
def name(request):
    return request.param


POLICIES = {
    "state": make_policy,
    "cameras": lambda: make_policy(spec=CAMERA_SPEC, vision=TINY_VISION),
}


@pytest.fixture(scope="module", params=POLICIES)
def policy(request):
    return POLICIES[request.param]()


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
def test_step_equals_a_float64_reference(backend, policy, w):
    requests, network_rows = fill(backend, w)
    reference = deepcopy(policy).guided_step().double()
    inputs = [
        torch.from_numpy(a.astype(np.float64) if a.dtype == np.float32 else a)
        for a in backend.buffers.inputs(requests, network_rows).values()
    ]
    with torch.inference_mode():
        x_prev, x0 = reference(*inputs)
    backend.step(requests, network_rows)
    tolerance = TOLERANCE[backend.name]
    np.testing.assert_allclose(backend.buffers.x_prev[:requests], x_prev, atol=tolerance)
    np.testing.assert_allclose(backend.buffers.x0[:requests], x0, atol=tolerance)


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
        np.testing.assert_allclose(buffers.x_prev[0], together[i], atol=COMPANY[backend.name])


NOT_FINITE = [(w, bad, branches) for w in (0, 1) for bad in (np.nan, np.inf) for branches in (1, 2)]


@pytest.mark.parametrize(
    ("w", "bad", "branches"),
    [*NOT_FINITE, (3e38, 1e38, 1)],  # the last: finite branches whose guided sum is not
)
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(backend, w, bad, branches):
    requests, network_rows = fill(backend, [w, 0.5])
    slot = backend.buffers.rows.condition_of[0] // 2
    backend.buffers.conditions[2 * slot : 2 * slot + branches] = bad
    backend.step(requests, network_rows)
    # a clip that turned it into a bound would hand a full-speed action to the robot
    assert not np.isfinite(backend.buffers.x_prev[0]).any()
    assert np.isfinite(backend.buffers.x_prev[1]).all()


def asked(spec, count, seed=3):
    """Random (observations, instructions) of so many requests."""
    rng = np.random.default_rng(seed)
    observations = []
    for _ in range(count):
        arrays = {}
        for key, array in spec.observation.items():
            values = 255 * rng.random(array.shape) if array.dtype == "uint8" else None
            values = rng.standard_normal(array.shape) if values is None else values
            arrays[key] = values.astype(array.dtype)
            arrays[key].flags.writeable = False  # as it comes from the wire
        observations.append(arrays)
    return observations, list(rng.standard_normal((count, INSTRUCTION_DIM)).astype(np.float32))


def expected_parts(policy, observation, instruction):
    """[2, film_dim]: the conditional and the unconditional part, straight from the network."""
    with torch.inference_mode():
        return torch.cat(
            [
                policy.condition_part(
                    {key: torch.tensor(array[None]) for key, array in observation.items()},
                    torch.tensor(instruction[None]),
                    torch.tensor([drop]),
                )
                for drop in (False, True)
            ]
        ).numpy()


@pytest.mark.parametrize("slots", [[1], [2, 0], [3, 0, 2, 1]])
def test_encode_fills_its_slots_alone_with_both_branches(backend, policy, slots):
    observations, instructions = asked(policy.spec, len(slots))
    conditions = backend.buffers.conditions
    conditions[:] = np.random.default_rng(0).standard_normal(conditions.shape)
    expected = conditions.copy()
    for slot, *request in zip(slots, observations, instructions, strict=True):
        expected[2 * slot : 2 * slot + 2] = expected_parts(policy, *request)
    backend.encode(slots, observations, instructions)
    np.testing.assert_allclose(conditions, expected, atol=1e-5)
    others = [row for row in range(len(conditions)) if row // 2 not in slots]
    np.testing.assert_array_equal(conditions[others], expected[others])
    assert not np.allclose(conditions[2 * slots[0]], conditions[2 * slots[0] + 1])


def test_encoding_together_is_encoding_one_by_one(backend, policy):
    observations, instructions = asked(policy.spec, 4)
    backend.encode([3, 1, 0, 2], observations, instructions)
    together = backend.buffers.conditions.copy()
    backend.buffers.conditions[:] = np.nan
    for slot, observation, instruction in zip(
        [3, 1, 0, 2], observations, instructions, strict=True
    ):
        backend.encode([slot], [observation], [instruction])
    np.testing.assert_allclose(backend.buffers.conditions, together, atol=ROUNDING)


def test_any_observation_can_be_encoded(name):
    """Several arrays, of every dtype, with any number of axes, whatever they are called."""
    observation = {
        "instruction": ArraySpec((2, 3), "float32"),
        "bytes": ArraySpec((2, 4, 5), "uint8"),
        "a name": ArraySpec((2, 1), "float32"),
    }
    policy = make_policy(spec=replace(TINY_SPEC, observation=observation))
    backend = BACKENDS[name](policy)
    requests = asked(policy.spec, 2)
    backend.encode([1, 2], *requests)
    expected = np.concatenate([expected_parts(policy, *r) for r in zip(*requests, strict=True)])
    np.testing.assert_allclose(backend.buffers.conditions[2:6], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("w", MIXES)
def test_the_layout_of_a_call_does_not_depend_on_the_one_before(backend, w):
    scales, slots = np.array(w, np.float32), np.arange(len(w))[::-1]
    fill(backend, [1.0, 0.0, -1.0, 2.0], seed=9)
    network_rows = backend.buffers.lay_out(scales, slots)
    inputs = backend.buffers.inputs(len(w), network_rows)
    for key, array in vars(branch_rows(scales, slots)).items():
        np.testing.assert_array_equal(inputs[key], array, strict=True)
    np.testing.assert_array_equal(inputs["guidance_scale"], scales, strict=True)


def test_to_actions_undoes_the_normalisation_and_keeps_the_limits(name):
    policy = make_policy(
        spec=replace(TINY_SPEC, action_minimum=(-9.0, 6.0), action_maximum=(3.0, 9.0))
    )
    policy.action_normalizer.fit_range(torch.tensor([[-2.0, 5.0], [4.0, 9.0]]))
    x0 = np.array([[[-1, -1], [1, 1]] * 4, [[1, 1], [0, 0]] * 4], np.float32)
    actions = BACKENDS[name](policy).to_actions(x0)
    np.testing.assert_allclose(actions[:, :2], [[[-2, 6], [3, 9]], [[3, 9], [1, 7]]], rtol=1e-6)
    assert (actions.dtype, actions.shape) == (np.float32, x0.shape)
    assert not np.shares_memory(actions, x0)


def test_calls_of_many_sizes_one_after_another_are_as_if_each_were_the_first(backend, policy):
    sizes = np.random.default_rng(1).integers(1, 5, 30)
    for seed, size in enumerate(sizes):
        w = np.random.default_rng(seed).choice([0.0, -1.0, 1.5], size)
        requests, network_rows = fill(backend, w, seed)
        inputs = backend.buffers.inputs(requests, network_rows)
        with torch.inference_mode():
            x_prev, _ = policy.guided_step()(
                *(torch.from_numpy(array) for array in inputs.values())
            )
        backend.step(requests, network_rows)
        tolerance = TOLERANCE[backend.name]
        np.testing.assert_allclose(backend.buffers.x_prev[:requests], x_prev, atol=tolerance)


def test_the_exports_of_a_checkpoint_are_used(tmp_path, policy):
    export_graphs(policy, tmp_path, int8=True)
    other = make_policy(spec=policy.spec, vision=policy.vision, seed=1)  # were it exported anew
    backend = OnnxBackend(other, SETTINGS, tmp_path)
    observations, instructions = asked(policy.spec, 1)
    backend.encode([0], observations, instructions)
    expected = expected_parts(policy, observations[0], instructions[0])
    np.testing.assert_allclose(backend.buffers.conditions[:2], expected, atol=ROUNDING)
    assert not np.allclose(expected, expected_parts(other, observations[0], instructions[0]))


def test_a_second_call_of_the_same_size_sees_what_was_written_meanwhile(backend):
    requests, network_rows = fill(backend, [1.0])
    backend.step(requests, network_rows)
    first = backend.buffers.x_prev[:1].copy()
    backend.buffers.x_t[0] = draw_noise(5, 0, backend.buffers.x_t[0].shape)
    backend.step(requests, network_rows)
    assert not np.array_equal(first, backend.buffers.x_prev[:1])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("bundled", "company"), [("desk", 8), ("pusht", 2)])
def test_whole_chunks_are_the_same_alone_and_in_company(tmp_path, bundled, company, int8):
    """Of trained networks, whose activations have outliers; in ten steps rounding adds up."""
    manifest, policy = checkpoint.load(checkpoint.PRETRAINED / bundled)
    export_graphs(policy, tmp_path, int8=int8)
    settings = BackendSettings(num_threads=1, max_requests=16)
    backend = OnnxBackend(policy, settings, tmp_path, int8=int8)
    server = InProcess(policy, backend, manifest.defaults, max_call_s=1.0)
    observations, instructions = asked(policy.spec, 16)
    seeds = list(range(16))
    how = {"num_steps": 10, "guidance_scale": 1.0, "eta": 0.0}
    together = server.answers(server.requests(observations, instructions, seeds, **how))
    assert max(answer.rows_per_call for answer in together) > company
    for i in (0, 7, 15):
        one = server.requests(observations[i : i + 1], instructions[i : i + 1], [i], **how)
        (alone,) = server.answers(one)
        np.testing.assert_allclose(together[i].actions, alone.actions, atol=COMPANY[backend.name])
