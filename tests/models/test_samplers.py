"""DDIM coefficients against closed forms and diffusers; noise against its contract."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from models.grids import END, make_timesteps
from models.samplers import alpha_bar_at, ddim_coefficients, draw_noise
from models.schedules import make_alpha_bar

ALPHA_BAR = make_alpha_bar("cosine", 1000)


def pairs(grid, num_steps):
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    return list(zip(timesteps, [*timesteps[1:], END], strict=True))


def update(x_t, x0, t, t_prev, eta, noise):
    a, b, c, d = ddim_coefficients(
        alpha_bar_at(ALPHA_BAR, t), alpha_bar_at(ALPHA_BAR, t_prev), eta
    )[0]
    assert c == 0
    return a * x_t + b * x0 + d * noise


@pytest.mark.parametrize("num_steps", [1, 7, 8, 16, 1000])
@pytest.mark.parametrize("grid", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_perfect_predictor_returns_x0(grid, num_steps, eta):
    rng = np.random.default_rng(0)
    x0, x = rng.standard_normal(32), rng.standard_normal(32)
    for t, t_prev in pairs(grid, num_steps):
        x = update(x, x0, t, t_prev, eta, rng.standard_normal(32))
    # fails if the last step stops at alpha_bar[0], or if t and t_prev are swapped
    np.testing.assert_allclose(x, x0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", ["trailing", "linspace"])
def test_a_gaussian_target_is_reached_from_pure_noise(grid, eta):
    """For x0 ~ N(0, s²) and its exact denoiser an update is linear, its variance known."""
    s2 = 0.3**2
    variance = 1.0  # of the starting noise
    for t, t_prev in pairs(grid, 1000):
        ab, ab_prev = ALPHA_BAR[t], 1.0 if t_prev == END else ALPHA_BAR[t_prev]
        gain = np.sqrt(ab) * s2 / (ab * s2 + 1 - ab)  # E[x0 | x_t] = gain · x_t
        a, b, _, d = ddim_coefficients(ab, ab_prev, eta)[0]
        variance = (a + b * gain) ** 2 * variance + d**2
    # 1000 steps are near the continuous limit, whose end is the target's own variance
    assert variance == pytest.approx(s2, rel=0.02)


def test_eta_one_has_the_posterior_variance_of_ddpm():
    betas = 1 - ALPHA_BAR[1:] / ALPHA_BAR[:-1]
    posterior = betas * (1 - ALPHA_BAR[:-1]) / (1 - ALPHA_BAR[1:])  # Ho et al. 2020, eq. 7
    d = ddim_coefficients(ALPHA_BAR[1:], ALPHA_BAR[:-1], 1.0)[:, 3]
    np.testing.assert_allclose(d**2, posterior, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [1, 5, 10, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_trajectories_equal_diffusers(grid, num_steps, eta, prediction_type):
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        timestep_spacing=grid,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(num_steps)
    rng = np.random.default_rng(1)
    ours = rng.standard_normal((3, 4))
    theirs = torch.from_numpy(ours.copy())
    for (t, t_prev), t_theirs in zip(pairs(grid, num_steps), scheduler.timesteps, strict=True):
        assert t == t_theirs
        signal, sigma = np.sqrt(ALPHA_BAR[t]), np.sqrt(1 - ALPHA_BAR[t])
        noise = rng.standard_normal(ours.shape)
        x0 = np.tanh(ours)  # any deterministic denoiser
        eps = (ours - signal * x0) / sigma
        output = {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - sigma * x0}
        theirs = scheduler.step(
            torch.from_numpy(output[prediction_type]),
            t_theirs,
            theirs,
            eta=eta if t_prev != END else 0.0,  # no noise in the last step
            variance_noise=torch.from_numpy(noise),
        ).prev_sample
        ours = update(ours, x0, t, t_prev, eta, noise)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-7)


def test_swapped_timesteps_and_bad_eta_are_refused():
    with pytest.raises(ValueError, match="alpha_bar_t < alpha_bar_prev"):
        ddim_coefficients(ALPHA_BAR[10], ALPHA_BAR[20], 0.0)
    with pytest.raises(ValueError, match="eta"):
        ddim_coefficients(ALPHA_BAR[20], ALPHA_BAR[10], 1.5)


def test_noise_depends_on_seed_and_timestep_alone():
    first = draw_noise(7, 500, (16, 4))
    draw_noise(8, 499, (3,))
    np.testing.assert_array_equal(first, draw_noise(7, 500, (16, 4)))
    assert not np.array_equal(first, draw_noise(7, 501, (16, 4)))
    assert not np.array_equal(first, draw_noise(8, 500, (16, 4)))
    assert draw_noise(2**63 - 1, 1000, (2,)).dtype == np.float32


def test_noise_is_standard_normal():
    sample = np.concatenate([draw_noise(seed, 3, (1000,)) for seed in range(100)])
    assert abs(sample.mean()) < 0.02
    assert abs(sample.std() - 1) < 0.02
    # neighbouring seeds and timesteps are independent
    a = np.stack([draw_noise(s, 5, (2000,)) for s in (1, 2)] + [draw_noise(1, 6, (2000,))])
    assert np.abs(np.corrcoef(a) - np.eye(3)).max() < 0.1
