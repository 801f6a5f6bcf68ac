"""How points are judged, and the figures that the samplers must reach with the exact score."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import points
from benchmarks.point_quality import quality, reference, sliced_w2
from benchmarks.points import PointModel, measure, truth_quality
from models.mixtures import QUADRANTS, Mixture
from models.sampling import Sampling

EXACT = PointModel.exact(QUADRANTS)


def test_sliced_w2_of_a_shift_and_of_a_scale():
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((5000, 2))
    assert sliced_w2(cloud, cloud[rng.permutation(5000)]) == 0
    shift = np.array([0.3, -0.4])
    # the mean of cos² over directions is a half
    assert sliced_w2(cloud, cloud + shift) == pytest.approx(0.5 / np.sqrt(2), rel=1e-9)
    # 1-D W2 between N(0, 1) and N(0, 4) is 1 in every direction
    assert sliced_w2(cloud, 2 * rng.standard_normal((5000, 2))) == pytest.approx(1, rel=0.05)


def test_the_target_itself_is_judged_perfect():
    truth = truth_quality(QUADRANTS, 1)
    assert truth["sw2"] < 0.012
    assert truth["on_mode"] == pytest.approx(1 - np.exp(-(3**2) / 2), abs=0.003)  # Rayleigh
    assert truth["accuracy"] == 1
    assert truth["mode_entropy"] == pytest.approx(np.log(3), abs=1e-3)
    assert truth["mode_coverage"] == 1


def test_each_fault_lowers_its_own_figure():
    def judged(change):
        samples = [change(reference(QUADRANTS, c, 3, 8000).copy(), c) for c in range(4)]
        return quality(QUADRANTS, samples, clip=1.0)

    mirrored = judged(lambda p, _: -p)
    assert mirrored["accuracy"] == 0
    assert mirrored["on_mode"] == 0
    one_mode = judged(lambda p, c: np.tile(QUADRANTS.modes[c][0], (len(p), 1)))
    assert one_mode["mode_entropy"] == 0
    assert one_mode["mode_coverage"] == pytest.approx(1 / 3)
    assert one_mode["on_mode"] == 1
    nowhere = judged(lambda p, _: np.random.default_rng(0).uniform(-1, 1, p.shape))
    assert nowhere["mode_coverage"] < 0.5  # what is on no mode covers none
    half = judged(lambda p, _: np.where(np.arange(len(p))[:, None] % 2 == 0, np.sign(p), p))
    assert half["at_bound"] == pytest.approx(0.5, abs=0.001)  # a few are beyond 1 anyway
    assert half["on_mode"] == pytest.approx(0.5, abs=0.01)


def test_accuracy_weighs_conditions_by_their_density_and_not_by_their_number_of_modes():
    crowded = Mixture((((0.3, 0.0),), ((-0.3, 0.0), (-0.3, 0.0), (-0.3, 0.01))), 0.2)
    x = np.linspace(-0.2, 0.2, points.NUM_POINTS)
    samples = [np.stack([x, np.zeros_like(x)], 1)] * 2
    judged = quality(crowded, samples, clip=1.0)
    assert judged["accuracy"] == pytest.approx(0.5, abs=0.01)  # the border is at x = 0


@pytest.mark.parametrize(
    ("sampling", "most"),
    [
        (Sampling(5, grid="leading"), 0.100),
        (Sampling(10, grid="leading"), 0.053),
        (Sampling(25, grid="leading"), 0.022),
        (Sampling(50, grid="leading"), 0.014),
        (Sampling(50), 0.0126),
        (Sampling(8, "dpmpp_2m", "logsnr"), 0.0126),
    ],
    ids=lambda value: (
        f"{value.sampler}-{value.grid}-{value.num_steps}" if isinstance(value, Sampling) else None
    ),
)
def test_with_the_exact_score_samplers_reach_what_is_known_of_them(sampling, most):
    """Sliced W2 that an independent implementation measured for this target."""
    assert measure(EXACT, sampling, num_sets=2)["sw2"] <= most


@pytest.mark.parametrize("sampling", [Sampling(10, "ddim"), Sampling(10, "dpmpp_2m")])
@pytest.mark.parametrize("w", [0.0, 1.0, 3.0, 15.0])
def test_guided_points_are_where_they_were_asked_to_be(sampling, w):
    found = measure(EXACT, dataclasses.replace(sampling, grid="logsnr", guidance_scale=w))
    assert found["accuracy"] >= 0.99
    assert found["on_mode"] >= 0.9


def test_unconditional_points_are_in_the_asked_quadrant_by_chance():
    found = measure(EXACT, Sampling(10, grid="logsnr", guidance_scale=-1.0))
    assert found["accuracy"] == pytest.approx(0.25, abs=0.02)


def test_w_zero_is_the_conditional_model_bit_for_bit_and_costs_one_row():
    sampling = Sampling(10, eta=0.5)
    alpha_bar = EXACT.diffusion.alpha_bar
    assert sampling.nfe(alpha_bar) == 10
    assert dataclasses.replace(sampling, guidance_scale=1.0).nfe(alpha_bar) == 20
    broken = EXACT.conditions.clone()
    broken[:, 1] = torch.nan  # what would be seen if the unconditional branch were used
    without = dataclasses.replace(EXACT, conditions=broken)
    ours, theirs = (model.sample(sampling, 2, 500, 1) for model in (EXACT, without))
    np.testing.assert_array_equal(ours, theirs)


def test_different_sets_and_conditions_begin_with_different_noise():
    seeds = {points._seed(index, c) for index in range(4) for c in range(4)}
    assert len(seeds) == 16
