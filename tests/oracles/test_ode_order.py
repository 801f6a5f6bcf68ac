"""Convergence order: samplers against SciPy's solution of the probability-flow ODE of a mixture."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from models.samplers import ddim_coefficients, dpmpp_2m_coefficients

MEANS = np.array([-0.7, 0.1, 0.8])
WEIGHTS = np.array([0.5, 0.3, 0.2])
STD = 0.35
LAMBDAS = (-1.5, 1.5)
"""Half log-SNR from where to where; inside, so that the last step of all is not in it."""
STARTS = np.linspace(-2, 2, 9)


def alpha_bar(lam):
    return 1 / (1 + np.exp(-2 * lam))


def responsibilities(x, ab):
    """How likely each mode is, given x [n]: [n, modes]; and x's distance to each, and variance."""
    variance = ab * STD**2 + 1 - ab
    away = x[:, None] - np.sqrt(ab) * MEANS
    likelihood = WEIGHTS * np.exp(-(away**2) / (2 * variance))
    return likelihood / likelihood.sum(1, keepdims=True), away, variance


def flow(lam, x):
    """dx/dlambda = sigma²·(x + score(x)) (Song et al. 2021, arXiv:2011.13456, eq. 13).

    There dx/dt = −beta/2·(x + score), and beta·dt = −d log(ab) = −2·sigma²·dlambda.
    """
    ab = alpha_bar(lam)
    likely, away, variance = responsibilities(x, ab)
    return (1 - ab) * (x - (likely * away).sum(1) / variance)


def denoised(x, ab):
    """E[x0 | x_t = x], mode by mode."""
    likely, away, variance = responsibilities(x, ab)
    return (likely * (MEANS + np.sqrt(ab) * STD**2 / variance * away)).sum(1)


EXACT = solve_ivp(flow, LAMBDAS, STARTS, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]


def solve(sampler, num_steps):
    levels = alpha_bar(np.linspace(*LAMBDAS, num_steps + 1))
    if sampler == "ddim":
        coefficients = ddim_coefficients(levels[:-1], levels[1:], 0.0)
    else:
        before = np.concatenate([[0], levels[:-2]])
        coefficients = dpmpp_2m_coefficients(before, levels[:-1], levels[1:])
    x, x0_prev = STARTS, np.zeros_like(STARTS)
    for ab, (a, b, c, _) in zip(levels[:-1], coefficients, strict=True):
        x0 = denoised(x, ab)
        x, x0_prev = a * x + b * x0 + c * x0_prev, x0
    return x


@pytest.mark.parametrize(("sampler", "order", "within"), [("ddim", 1, 0.15), ("dpmpp_2m", 2, 0.25)])
def test_error_falls_with_the_order_of_the_method(sampler, order, within):
    counts = np.array([20, 40, 80, 160, 320])
    errors = [np.abs(solve(sampler, n) - EXACT).max() for n in counts]
    slope, _ = np.polyfit(np.log(1 / counts), np.log(errors), 1)
    assert slope == pytest.approx(order, abs=within)
    # and it is small, not only falling
    assert errors[-1] < {1: 5e-3, 2: 1e-5}[order]


def test_ten_steps_of_2m_are_better_than_a_hundred_of_ddim():
    errors = {s: np.abs(solve(s, n) - EXACT).max() for s, n in (("dpmpp_2m", 10), ("ddim", 100))}
    assert errors["dpmpp_2m"] < errors["ddim"]


def test_the_first_step_of_2m_is_ddims():
    levels = alpha_bar(np.linspace(-9, 9, 200))
    np.testing.assert_allclose(
        dpmpp_2m_coefficients(0.0, levels[:-1], levels[1:]),
        ddim_coefficients(levels[:-1], levels[1:], 0.0),
        rtol=1e-9,
        atol=1e-15,
    )


def test_the_oracles_own_score_and_denoiser_belong_together():
    """Tweedie's formula (Efron 2011): E[x0 | x] = (x + sigma²·score(x))/alpha, by quadrature."""
    x0, ab = np.linspace(-4, 4, 20001), alpha_bar(0.3)
    density = (WEIGHTS * np.exp(-((x0[:, None] - MEANS) ** 2) / (2 * STD**2))).sum(1)
    joint = density * np.exp(-((STARTS[:, None] - np.sqrt(ab) * x0) ** 2) / (2 * (1 - ab)))
    by_quadrature = (joint * x0).sum(1) / joint.sum(1)
    np.testing.assert_allclose(denoised(STARTS, ab), by_quadrature, rtol=1e-8)
    score = flow(0.3, STARTS) / (1 - ab) - STARTS
    np.testing.assert_allclose((STARTS + (1 - ab) * score) / np.sqrt(ab), by_quadrature, rtol=1e-8)
