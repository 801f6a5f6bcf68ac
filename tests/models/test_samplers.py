"""What samplers refuse, and noise against its contract; what samplers do is in tests/oracles."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.samplers import (
    alpha_bar_at,
    ddim_coefficients,
    ddpm_coefficients,
    dpmpp_2m_coefficients,
    draw_noise,
    sampler_coefficients,
)
from models.schedules import make_alpha_bar

ALPHA_BAR = make_alpha_bar("cosine", 1000)
TIMESTEPS = [900, 500, 100]


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_beta", "dpmpp_2m"])
def test_eta_belongs_to_ddim_alone(sampler):
    with pytest.raises(ValueError, match=f"eta: {sampler} takes 0 only .* got 0.5"):
        sampler_coefficients(sampler, ALPHA_BAR, TIMESTEPS, 0.5)


@pytest.mark.parametrize("eta", [-0.1, 1.5, np.nan])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta: expected 0\.\.1"):
        sampler_coefficients("ddim", ALPHA_BAR, TIMESTEPS, eta)


def test_unknown_names_are_refused_and_the_known_ones_named():
    with pytest.raises(
        ValueError, match="sampler: expected one of ddim, ddpm, ddpm_beta, dpmpp_2m, got 'euler'"
    ):
        sampler_coefficients("euler", ALPHA_BAR, TIMESTEPS, 0.0)
    with pytest.raises(ValueError, match="variance: expected 'posterior' or 'beta', got 'large'"):
        ddpm_coefficients(0.2, 0.5, "large")


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "ddpm_beta", "dpmpp_2m"])
@pytest.mark.parametrize("timesteps", [[100, 500, 900], [900, 500, 500]])
def test_timesteps_that_do_not_fall_are_refused(sampler, timesteps):
    with pytest.raises(ValueError, match="alpha_bar_t < alpha_bar_prev"):
        sampler_coefficients(sampler, ALPHA_BAR, timesteps, 0.0)


def test_a_prediction_from_a_cleaner_sample_is_refused():
    with pytest.raises(ValueError, match="alpha_bar_before < alpha_bar_t"):
        dpmpp_2m_coefficients(0.6, 0.5, 0.7)


@pytest.mark.parametrize("before", [800, 900])
def test_a_step_before_that_was_not_before_is_refused(before):
    """Were it taken for a stretched step, the mistake would pass unseen."""
    with pytest.raises(ValueError, match="before"):
        sampler_coefficients("dpmpp_2m", ALPHA_BAR, [900, 500, 100], 0.0, before=before)


@pytest.mark.parametrize("alpha_bars", [(0.0, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.5, np.nan)])
def test_alpha_bar_outside_its_range_is_refused(alpha_bars):
    with pytest.raises(ValueError, match="0 < alpha_bar_t < alpha_bar_prev <= 1"):
        ddim_coefficients(*alpha_bars, 0.0)


def test_alpha_bar_after_the_last_timestep_is_1():
    np.testing.assert_array_equal(
        alpha_bar_at(ALPHA_BAR, [999, 0, -1]), [ALPHA_BAR[999], ALPHA_BAR[0], 1.0]
    )


def test_noise_depends_on_seed_and_timestep_alone():
    first = draw_noise(7, 500, (16, 4))
    draw_noise(8, 499, (3,))
    np.testing.assert_array_equal(first, draw_noise(7, 500, (16, 4)))
    assert not np.array_equal(first, draw_noise(7, 501, (16, 4)))
    assert not np.array_equal(first, draw_noise(8, 500, (16, 4)))
    assert draw_noise(2**63 - 1, 1000, (2,)).dtype == np.float32


@pytest.mark.parametrize("seed", [0, 7, 2**53 + 1, 2**63 - 1])
@pytest.mark.parametrize("timestep", [0, 1, 1000])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (16, 4)])
def test_noise_is_that_of_a_new_philox_whatever_was_drawn_before(seed, timestep, shape):
    draw_noise(1, 2, (3,))  # leaves a part of a block behind
    bits = np.random.Philox(key=np.array([seed, timestep], np.uint64))
    expected = np.random.Generator(bits).standard_normal(shape, dtype=np.float32)
    np.testing.assert_array_equal(draw_noise(seed, timestep, shape), expected)


def test_noise_drawn_by_several_threads_at_once_is_the_same():
    keys = [(seed, 500) for seed in range(100)]
    expected = [draw_noise(*key, (5000,)) for key in keys]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            drawn = list(threads.map(lambda key: draw_noise(*key, (5000,)), keys))
    finally:
        sys.setswitchinterval(interval)
    np.testing.assert_array_equal(drawn, expected)


def test_noise_is_standard_normal():
    sample = np.concatenate([draw_noise(seed, 3, (1000,)) for seed in range(100)])
    assert abs(sample.mean()) < 0.02
    assert abs(sample.std() - 1) < 0.02
    # neighbouring seeds and timesteps are independent
    a = np.stack([draw_noise(s, 5, (2000,)) for s in (1, 2)] + [draw_noise(1, 6, (2000,))])
    assert np.abs(np.corrcoef(a) - np.eye(3)).max() < 0.1
