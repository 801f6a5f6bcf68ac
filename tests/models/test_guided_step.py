"""Guidance, prediction types, clipping and row layout of the module that backends run."""

import numpy as np
import pytest
import torch

from models.guidance import branch_rows, network_rows
from models.guided_step import GuidedStep, x0_conversion
from models.instruction_encoder import INSTRUCTION_DIM
from models.samplers import draw_noise
from models.sampling import Sampling, denoise, sample_chunks
from models.schedules import make_alpha_bar
from tests.policies import make_policy

ALPHA_BAR = make_alpha_bar("cosine", 1000)


class Branches(torch.nn.Module):
    """Says what its condition is: FiLM parameters are the output, whatever x_t is."""

    film_dim = 8

    def time_part(self, timesteps):
        return torch.zeros(len(timesteps), self.film_dim)

    def denoise(self, x_t, film):
        return film.view_as(x_t)


def run_step(step, w, conditions, x_t, t=500, clip_free=(0.0, 1.0, 0.0, 0.0)):
    w = np.asarray(w, np.float32)
    rows = branch_rows(w, np.arange(len(w)))
    indices = [
        torch.from_numpy(i)
        for i in (rows.request_of, rows.condition_of, rows.cond_row, rows.uncond_row)
    ]
    return step(
        x_t,
        torch.zeros_like(x_t),
        torch.full((len(w),), t),
        conditions,
        *indices,
        torch.from_numpy(w),
        torch.tensor([clip_free]).repeat(len(w), 1),
        torch.zeros_like(x_t),
    )


@pytest.mark.parametrize(("w", "rows"), [(0.0, 1), (-1.0, 1), (1.0, 2), (0.5, 2), (-0.5, 2)])
def test_network_rows(w, rows):
    assert network_rows(w) == rows
    assert len(branch_rows(np.array([w], np.float32), np.array([0])).request_of) == rows


def test_guidance_is_the_formula_of_ho_and_salimans_in_any_mix_of_scales():
    step = GuidedStep(Branches(), ALPHA_BAR, "sample", clip=1e9)
    w = np.array([0.0, 1.0, -1.0, 3.0, 0.0, 0.5])
    conditions = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    _, x0 = run_step(step, w, conditions, torch.zeros(6, 4, 2))
    cond, uncond = conditions[0::2].double(), conditions[1::2].double()
    expected = (1 + w)[:, None] * cond.numpy() - w[:, None] * uncond.numpy()
    np.testing.assert_allclose(x0.flatten(1).numpy(), expected, rtol=1e-5, atol=1e-6)
    # w = 0 is bit-equal to the conditional branch, w = −1 to the unconditional one
    assert torch.equal(x0[0].flatten(), conditions[0])
    assert torch.equal(x0[2].flatten(), conditions[5])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("t", [0, 10, 500, 990])
def test_every_prediction_type_recovers_x0(prediction_type, t):
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 100))
    signal, sigma = np.sqrt(ALPHA_BAR[t]), np.sqrt(1 - ALPHA_BAR[t])
    x_t = signal * x0 + sigma * eps
    output = {"epsilon": eps, "v": signal * eps - sigma * x0, "sample": x0}[prediction_type]
    p, q = x0_conversion(prediction_type, ALPHA_BAR)[t]
    np.testing.assert_allclose(p * x_t + q * output, x0, atol=1e-9)


def test_clipping_acts_after_guidance_and_everything_after_uses_the_clipped_x0():
    step = GuidedStep(Branches(), ALPHA_BAR, "sample", clip=1.0)
    cond, uncond = torch.full((8,), 0.9), torch.full((8,), -0.9)
    x_prev, x0 = run_step(
        step, [3.0], torch.stack([cond, uncond]), torch.zeros(1, 4, 2), clip_free=(0, 0.5, 0, 0)
    )
    assert torch.equal(x0, torch.ones(1, 4, 2))  # (1 + 3)·0.9 + 3·0.9 = 6.3, clipped
    assert torch.equal(x_prev, torch.full((1, 4, 2), 0.5))


class Timed(Branches):
    """Time acts on the first three numbers only."""

    def time_part(self, timesteps):
        return torch.nn.functional.pad(timesteps[:, None].float() * torch.ones(3), (0, 5))


def test_numbers_that_know_no_time_are_not_in_the_table_of_time():
    step = GuidedStep(Timed(), ALPHA_BAR, "sample", clip=1e9)
    assert step.time_table.shape == (1000, 3)
    conditions = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    _, x0 = run_step(step, [0.0], conditions, torch.zeros(1, 4, 2), t=7)
    assert torch.equal(x0.flatten(), conditions[0] + torch.tensor([7.0] * 3 + [0.0] * 5))


def test_all_four_coefficients_act_on_their_own_input():
    step = GuidedStep(Branches(), ALPHA_BAR, "sample", clip=1e9)
    x_t, x0_prev, noise = (torch.full((1, 4, 2), v) for v in (2.0, 3.0, 5.0))
    rows = [torch.tensor([i]) for i in (0, 0, 0, 0)]
    x_prev, _ = step(
        x_t,
        x0_prev,
        torch.tensor([3]),
        torch.full((2, 8), 7.0),
        *rows,
        torch.zeros(1),
        torch.tensor([[1.0, 10.0, 100.0, 1000.0]]),
        noise,
    )
    assert torch.equal(x_prev, torch.full((1, 4, 2), 2.0 + 70.0 + 300.0 + 5000.0))


def _sample(policy, observation, instruction, seeds, **options):
    sampling = Sampling(**{"num_steps": 5, "guidance_scale": 1.0, "eta": 0.5, **options})
    return sample_chunks(policy, {"state": observation}, instruction, sampling, seeds)


def test_a_chunk_is_the_same_alone_and_in_company():
    policy = make_policy()
    rng = np.random.default_rng(0)
    observation = rng.standard_normal((6, 2, 3)).astype(np.float32)
    instruction = rng.standard_normal((6, INSTRUCTION_DIM)).astype(np.float32)
    together = _sample(policy, observation, instruction, range(6))
    for i in range(6):
        alone = _sample(policy, observation[i : i + 1], instruction[i : i + 1], [i])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert not np.allclose(together[0], together[1])


def test_guidance_drops_the_instruction_and_never_the_observation():
    policy = make_policy()
    rng = np.random.default_rng(1)
    observation = rng.standard_normal((1, 2, 3)).astype(np.float32)
    one, two = rng.standard_normal((2, 1, INSTRUCTION_DIM)).astype(np.float32)
    unconditional = _sample(policy, observation, one, [0], guidance_scale=-1.0)
    np.testing.assert_array_equal(
        unconditional, _sample(policy, observation, two, [0], guidance_scale=-1.0)
    )
    assert not np.allclose(
        unconditional, _sample(policy, observation + 1, one, [0], guidance_scale=-1.0)
    )
    conditional = _sample(policy, observation, one, [0], guidance_scale=0.0)
    assert not np.allclose(conditional, _sample(policy, observation, two, [0], guidance_scale=0.0))


def test_the_served_split_of_the_conditioning_is_exact():
    """A step with table and condition part equals the network called with all of it at once."""
    policy = make_policy()
    generator = torch.Generator().manual_seed(2)
    condition = torch.randn(2, policy.network.film_dim, generator=generator)
    x_t = torch.randn(1, *policy.chunk_shape, generator=generator)
    for t in (0, 17, 999):
        with torch.inference_mode():
            _, x0 = run_step(policy.guided_step(), [0.0], condition, x_t, t=t)
            film = policy.network.time_part(torch.tensor([t])) + condition[:1]
            expected = policy.network.denoise(x_t, film).clamp(-1, 1)
        np.testing.assert_allclose(x0.numpy(), expected.numpy(), atol=1e-6)


def test_prediction_types_agree_on_the_same_denoiser():
    """One denoiser x0(x_t) written as eps, v and x0 gives the same samples from all three paths."""

    class Denoiser(torch.nn.Module):
        film_dim = 1

        def __init__(self, prediction_type):
            super().__init__()
            self.prediction_type = prediction_type

        def time_part(self, timesteps):
            return timesteps.float()[:, None]

        def denoise(self, x_t, film):
            ab = torch.from_numpy(ALPHA_BAR)[film[:, 0].long()][:, None, None]
            signal, sigma = ab.sqrt(), (1 - ab).sqrt()
            x0 = 0.8 * torch.tanh(x_t)
            eps = (x_t - signal * x0) / sigma
            return {"sample": x0, "epsilon": eps, "v": signal * eps - sigma * x0}[
                self.prediction_type
            ]

    chunks = []
    for prediction_type in ("sample", "epsilon", "v"):
        step = GuidedStep(Denoiser(prediction_type), ALPHA_BAR, prediction_type, 1.0).double()
        step.register_buffer(
            "conversion", torch.from_numpy(x0_conversion(prediction_type, ALPHA_BAR))
        )
        x = denoise(
            step,
            ALPHA_BAR,
            torch.zeros(4, 1, dtype=torch.float64),
            Sampling(num_steps=10),
            lambda t: draw_noise(1, t, (2, 3, 2)),
        )
        chunks.append(x.numpy())
    np.testing.assert_allclose(chunks[1], chunks[0], atol=1e-4)
    np.testing.assert_allclose(chunks[2], chunks[0], atol=1e-4)
