"""Samplers against what probability theory says of them: forward marginals and Gaussian targets.

Here nothing is sampled. For a Gaussian target the exact denoiser is affine in x_t, so a sampler is
an affine map of its starting noise and its noises: rows that each have one noise at 1 and all
others at 0 show the whole map, and with it the exact mean and variance of every x_t.
"""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from models.grids import END, GridName, make_timesteps
from models.samplers import (
    alpha_bar_at,
    ddim_coefficients,
    ddpm_coefficients,
    dpmpp_2m_coefficients,
    sampler_coefficients,
)
from models.sampling import Sampling
from models.schedules import make_alpha_bar
from tests.oracles.loop import ALPHA_BAR, SAMPLERS, T, follow_denoise

GRIDS = get_args(GridName)


def levels(timesteps):
    """(alpha_bar_t, alpha_bar_prev) of every step."""
    return alpha_bar_at(ALPHA_BAR, timesteps), alpha_bar_at(ALPHA_BAR, [*timesteps[1:], END])


def posterior(ab_t, ab_prev):
    """(weight of x_t − sqrt(ab_t)·x0, variance) of q(x_prev | x_t, x0), by Gaussian conditioning.

    x_prev = sqrt(ab_prev)·x0 + u and x_t = sqrt(alpha)·x_prev + v, u and v independent.
    """
    alpha = ab_t / ab_prev
    variance_u, variance_v = 1 - ab_prev, 1 - alpha
    covariance, variance_t = np.sqrt(alpha) * variance_u, alpha * variance_u + variance_v
    return covariance / variance_t, variance_u - covariance**2 / variance_t


def textbook_steps(sampler, eta, timesteps, denoiser, start, noises):
    """x_t after every step, from the papers' equations one after the other, no coefficients."""
    x, x0_before, h_before = start, None, None
    kept = []
    for ab, ab_prev, noise in zip(*levels(timesteps), noises, strict=True):
        x0 = denoiser(x, ab)
        weight, variance = posterior(ab, ab_prev)
        away = x - np.sqrt(ab) * x0
        if sampler == "ddim":
            sigma = eta * np.sqrt(variance)
            direction = np.sqrt(1 - ab_prev - sigma**2) * away / np.sqrt(1 - ab)
            x = np.sqrt(ab_prev) * x0 + direction + sigma * noise
        elif sampler.startswith("ddpm"):
            if sampler == "ddpm_beta" and ab_prev < 1:
                variance = 1 - ab / ab_prev
            x = np.sqrt(ab_prev) * x0 + weight * away + np.sqrt(variance) * noise
        elif ab_prev == 1:
            x = x0
        else:
            alpha, sigma = np.sqrt([ab, ab_prev]), np.sqrt([1 - ab, 1 - ab_prev])
            h = np.diff(np.log(alpha / sigma))[0]
            estimate = x0
            if x0_before is not None and h <= 2 * h_before:  # a longer one is of first order
                r = h_before / h
                estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
            x = sigma[1] / sigma[0] * x - alpha[1] * np.expm1(-h) * estimate
            x0_before, h_before = x0, h
        kept.append(x)
    return np.stack(kept)


def one_noise_a_row(timesteps):
    """(start, noises [steps, rows]): row 0 has none, row 1 the starting one, then step by step."""
    start, *noises = np.eye(len(timesteps) + 2)[1:]
    return start, noises


def moments(kept):
    """Mean and variance of every x_t [steps, rows] whose rows are those of `one_noise_a_row`."""
    mean = kept[:, 0]
    return mean, ((kept - mean[:, None]) ** 2).sum(1)


def gaussian_denoiser(mean, std):
    """E[x0 | x_t] for x0 ~ N(mean, std²); arrays or tensors."""

    def denoiser(x_t, ab):
        gain = ab**0.5 * std**2 / (ab * std**2 + 1 - ab)
        return mean + gain * (x_t - ab**0.5 * mean)

    return denoiser


def served_steps(sampler, eta, grid, num_steps, denoiser):
    """The offline loop on one noise a row: [steps, rows]."""
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    start, noises = one_noise_a_row(timesteps)
    by_timestep = {T: start, **dict(zip(timesteps.tolist(), noises, strict=True))}
    kept = follow_denoise(
        denoiser,
        Sampling(num_steps, sampler, grid, eta),
        lambda t: by_timestep[t][:, None, None].copy(),
    )
    return kept[:, :, 0, 0]


def test_all_timesteps_are_one_grid():
    """So what is shown for one grid of 1000 steps is shown for all."""
    for grid in GRIDS:
        np.testing.assert_array_equal(make_timesteps(grid, T, ALPHA_BAR), np.arange(T)[::-1])


@pytest.mark.parametrize(
    ("grid", "num_steps"),
    [*((grid, n) for grid in GRIDS for n in (1, 7, 8, 16)), ("trailing", 1000)],
)
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_a_perfect_predictor_returns_x0(sampler, eta, grid, num_steps):
    rng = np.random.default_rng(0)
    x0 = torch.from_numpy(rng.standard_normal((4, 2, 3)))
    kept = follow_denoise(
        lambda x_t, ab: x0,
        Sampling(num_steps, sampler, grid, eta),
        lambda t: rng.standard_normal(x0.shape),
    )
    # fails if the last step stops at alpha_bar[0], or if it has noise
    np.testing.assert_allclose(kept[-1], x0.numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_steps", [2, 7, 16, 1000])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("sampler", "eta"), [s for s in SAMPLERS if s[0] != "ddpm_beta"])
def test_every_step_goes_from_one_marginal_of_q_to_the_next(sampler, eta, grid, num_steps):
    """If x_t ~ q(x_t | x0), then x_prev ~ q(x_prev | x0); what DDIM is built on (its eq. 7).

    Swapped t and t_prev cannot pass: the two marginals differ.
    """
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    ab_t, ab_prev = levels(timesteps)
    a, b, c, d = sampler_coefficients(sampler, ALPHA_BAR, timesteps, eta).T
    np.testing.assert_allclose(a * np.sqrt(ab_t) + b + c, np.sqrt(ab_prev), rtol=1e-10)
    np.testing.assert_allclose(a**2 * (1 - ab_t) + d**2, 1 - ab_prev, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("grid", "num_steps"), [*((grid, n) for grid in GRIDS for n in (2, 7, 16)), ("trailing", 1000)]
)
def test_the_beta_variance_keeps_standard_normal_data_standard_normal(grid, num_steps):
    """For such data x_t ~ N(0, 1) at every t, however many timesteps are skipped."""
    kept = served_steps("ddpm_beta", 0.0, grid, num_steps, gaussian_denoiser(0.0, 1.0))
    mean, variance = moments(kept)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(variance[:-1], 1, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 37])
def test_eta_one_is_ddpm_with_the_posterior_variance(stride):
    timesteps = np.arange(T - 1, -1, -stride)
    ab_t, ab_prev = levels(timesteps)
    weight, variance = posterior(ab_t, ab_prev)
    ddim = sampler_coefficients("ddim", ALPHA_BAR, timesteps, 1.0)
    ddpm = sampler_coefficients("ddpm", ALPHA_BAR, timesteps, 0.0)
    np.testing.assert_allclose(ddpm[:, 0], weight, rtol=1e-9)
    # 1e-16: the oracle's own subtraction, in the last step
    np.testing.assert_allclose(ddpm[:, 3] ** 2, variance, rtol=1e-6, atol=1e-16)
    np.testing.assert_allclose(ddim, ddpm, rtol=1e-9, atol=1e-12)
    assert ddpm[-1].tolist() == [0, 1, 0, 0]


def test_the_variance_of_ddpm_beta_is_beta():
    alpha_bar = make_alpha_bar("linear", T)
    betas = np.linspace(1e-4, 0.02, T)  # of Ho et al. 2020, §4
    d = sampler_coefficients("ddpm_beta", alpha_bar, np.arange(T)[::-1], 0.0)[:, 3]
    np.testing.assert_allclose(d[:-1] ** 2, betas[:0:-1], rtol=1e-9)
    assert d[-1] == 0  # into clean data
    # over skipped timesteps: the variance of q(x_t | x_prev), from products of alphas
    timesteps = np.arange(T - 1, -1, -37)
    d = sampler_coefficients("ddpm_beta", alpha_bar, timesteps, 0.0)[:, 3]
    pairs = itertools.pairwise(timesteps)
    skipped = [1 - np.prod(1 - betas[prev + 1 : t + 1]) for t, prev in pairs]
    np.testing.assert_allclose(d[:-1] ** 2, skipped, rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 8, 50])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_every_step_on_a_gaussian_is_the_textbooks_affine_map(sampler, eta, grid, num_steps):
    denoiser = gaussian_denoiser(-0.4, 0.3)
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    kept = served_steps(sampler, eta, grid, num_steps, denoiser)
    expected = textbook_steps(sampler, eta, timesteps, denoiser, *one_noise_a_row(timesteps))
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-6)
    for ours, theirs in zip(moments(kept), moments(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_all_steps_turn_noise_into_the_gaussian_target(sampler, eta):
    """1000 steps are near the continuous limit, whose end is the target itself."""
    kept = served_steps(sampler, eta, "trailing", 1000, gaussian_denoiser(-0.4, 0.3))
    mean, variance = moments(kept)
    assert mean[-1] == pytest.approx(-0.4, rel=1e-3)
    assert variance[-1] == pytest.approx(0.3**2, rel=0.02)


@pytest.mark.parametrize(
    ("sampler", "grid", "num_steps", "within"),
    [
        ("ddim", "trailing", 1000, 0.005),
        ("dpmpp_2m", "trailing", 1000, 0.0005),
        ("ddim", "logsnr", 100, 0.05),
        ("dpmpp_2m", "logsnr", 100, 0.01),
    ],
)
def test_samples_stay_on_their_trajectory_of_the_probability_flow(sampler, grid, num_steps, within):
    """On a Gaussian the flow keeps (x_t − sqrt(ab)·m)/sqrt(ab·s² + 1 − ab) constant.

    By its ODE, dx/dlambda = sigma²·(x + score(x)) and score(x) = −(x − sqrt(ab)·m)/variance.
    """
    mean, std = -0.4, 0.3
    kept = served_steps(sampler, 0.0, grid, num_steps, gaussian_denoiser(mean, std))[:, :2]
    timesteps = make_timesteps(grid, num_steps, ALPHA_BAR)
    ab_start = ALPHA_BAR[timesteps[0]]
    _, ab = levels(timesteps)

    def invariant(x, ab):
        return (x - np.sqrt(ab) * mean) / np.sqrt(ab * std**2 + 1 - ab)

    expected = invariant(np.array([0.0, 1.0]), ab_start)
    np.testing.assert_allclose(invariant(kept, ab[:, None]), [expected] * num_steps, atol=within)


@pytest.mark.parametrize(
    "update",
    [
        lambda ab_t, ab_prev: ddim_coefficients(ab_t, ab_prev, 0.0),
        lambda ab_t, ab_prev: ddpm_coefficients(ab_t, ab_prev, "posterior"),
        lambda ab_t, ab_prev: ddpm_coefficients(ab_t, ab_prev, "beta"),
        lambda ab_t, ab_prev: dpmpp_2m_coefficients(0.0, ab_t, ab_prev),
    ],
)
def test_an_update_towards_more_noise_is_refused(update):
    clean, noisy = ALPHA_BAR[10], ALPHA_BAR[20]
    update(noisy, clean)
    with pytest.raises(ValueError, match="alpha_bar_t < alpha_bar_prev"):
        update(clean, noisy)
