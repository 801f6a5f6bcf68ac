"""Mixtures, and the exact denoiser against quadrature and brute force."""

import numpy as np
import pytest
import torch

from models.mixtures import QUADRANTS, ExactDenoiser, Mixture
from models.schedules import make_alpha_bar

ALPHA_BAR = make_alpha_bar("cosine", 1000)
UNEVEN = Mixture(modes=(((0.5, 0.4), (-0.2, 0.7)), ((-0.6, -0.1),)), std=0.15)
"""Conditions with different numbers of modes: each condition, not each mode, is equally likely."""


def mean_by_quadrature(mixture, x_t, ab, condition):
    """E[x0 | x_t] by Bayes on a grid of x0, in float64; `condition` None: all equally likely."""
    axis = np.linspace(-2, 2, 201)  # a third of the narrowest mode: exact to rounding
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    conditions = range(mixture.num_conditions) if condition is None else [condition]
    prior = np.zeros(grid.shape[:2])
    for i in conditions:
        for mode in mixture.modes[i]:
            squared = np.sum((grid - mode) ** 2, axis=-1)
            prior += np.exp(-squared / (2 * mixture.std**2)) / len(mixture.modes[i])
    squared = np.sum((x_t - np.sqrt(ab) * grid) ** 2, axis=-1)
    log_likelihood = -squared / (2 * (1 - ab))
    weight = prior * np.exp(log_likelihood - log_likelihood.max())
    return (weight[..., None] * grid).sum((0, 1)) / weight.sum()


def exact(mixture, x_t, t, condition):
    """The denoiser's answer in float64, for one point; `condition` None drops it."""
    denoiser = ExactDenoiser(mixture, ALPHA_BAR)
    one_hot = torch.zeros(1, mixture.num_conditions)
    one_hot[0, condition or 0] = 1
    drop = torch.tensor([condition is None])
    film = denoiser.time_part(torch.tensor([t])) + denoiser.condition_part(
        torch.empty(1, 0), one_hot, drop
    )
    return denoiser.denoise(torch.tensor([[x_t]], dtype=torch.float64), film)[0, 0].numpy()


@pytest.mark.parametrize("mixture", [QUADRANTS, UNEVEN])
@pytest.mark.parametrize("t", [100, 400, 700, 999])
@pytest.mark.parametrize("condition", [None, 0, 1])
def test_the_exact_denoiser_is_bayes_by_quadrature(mixture, t, condition):
    for x_t in np.random.default_rng(t).normal(size=(3, 2)):
        expected = mean_by_quadrature(mixture, x_t, ALPHA_BAR[t], condition)
        assert exact(mixture, x_t.tolist(), t, condition) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("t", [200, 600])
def test_the_exact_denoiser_is_the_mean_of_what_was_noised_to_about_there(t):
    """Brute force: draw pairs (x0, x_t), keep those with x_t near a point."""
    rng = np.random.default_rng(5)
    ab = ALPHA_BAR[t]
    x0 = QUADRANTS.draw(1, 400_000, rng)
    x_t = np.sqrt(ab) * x0 + np.sqrt(1 - ab) * rng.standard_normal(x0.shape)
    at = np.sqrt(ab) * np.array([-0.5, 0.5])
    kept = x0[np.linalg.norm(x_t - at, axis=1) < 0.05]
    error = kept.std(0) / np.sqrt(len(kept))
    assert len(kept) > 300
    assert np.all(np.abs(exact(QUADRANTS, at.tolist(), t, 1) - kept.mean(0)) < 4 * error + 0.01)


def test_rows_of_a_call_do_not_mix():
    denoiser = ExactDenoiser(QUADRANTS, ALPHA_BAR)
    one_hot, drop = torch.eye(4), torch.tensor([False, True, False, True])
    t = torch.tensor([10, 400, 700, 999])
    x_t = torch.randn(4, 1, 2, generator=torch.Generator().manual_seed(0))
    film = denoiser.time_part(t) + denoiser.condition_part(torch.empty(4, 0), one_hot, drop)
    together = denoiser.denoise(x_t, film)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], denoiser.denoise(x_t[i : i + 1], film[[i]]))


def test_draws_have_the_moments_of_the_mixture():
    samples = UNEVEN.draw(0, 100_000, np.random.default_rng(0))
    means = np.array(UNEVEN.modes[0])
    covariance = UNEVEN.std**2 * np.eye(2) + np.cov(means.T, bias=True)
    np.testing.assert_allclose(samples.mean(0), means.mean(0), atol=0.006)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.003)


def test_the_built_in_target_has_three_modes_in_each_quadrant():
    signs = [np.unique(np.sign(modes), axis=0) for modes in np.array(QUADRANTS.modes)]
    assert np.array(QUADRANTS.modes).shape == (4, 3, 2)
    assert {tuple(sign[0]) for sign in signs} == {(1, 1), (-1, 1), (-1, -1), (1, -1)}
    assert all(len(sign) == 1 for sign in signs)


def test_a_file_is_read_as_written(tmp_path):
    path = tmp_path / "two.json"
    path.write_text('{"modes": [[[0.5, 0.4], [-0.2, 0.7]], [[-0.6, -0.1]]], "std": 0.15}')
    assert Mixture.load(path) == UNEVEN


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("not JSON", "Expecting value"),
        ('{"std": 0.1}', "modes"),
        ('{"modes": [[[0, 0]]]}', "std"),
        ('{"modes": [[[0, 0]]], "std": 0}', "std"),
        ('{"modes": [], "std": 0.1}', "modes"),
        ('{"modes": [[]], "std": 0.1}', "modes"),
        ('{"modes": [[[0, 0, 0]]], "std": 0.1}', "modes"),
        ('{"modes": [[[0, 1.5]]], "std": 0.1}', r"modes.*1\.5"),
        ('{"modes": [[0.5, 0.5]], "std": 0.1}', "modes"),
        ('{"modes": [[[0, NaN]]], "std": 0.1}', "modes.*nan"),
        ("[1, 2]", "modes"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_field(tmp_path, content, field):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"(?s)bad\.json.*{field}"):
        Mixture.load(path)
