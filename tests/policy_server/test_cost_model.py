"""The duration quantile: high, quick on a change of regime, unmoved by one outlier."""

import numpy as np
import pytest

from policy_server.cost_model import DurationQuantile


def fed(*durations):
    quantile = DurationQuantile()
    for duration_s in durations:
        quantile.observe(duration_s)
    return quantile


def test_it_is_a_high_quantile_not_the_mean():
    samples = np.random.default_rng(0).gamma(4, 0.00025, 2000)
    estimate_s = fed(*samples).estimate_s
    assert np.quantile(samples, 0.85) < estimate_s < np.quantile(samples, 0.995)


def test_one_outlier_does_not_move_it():
    assert fed(*[0.001] * 100, 0.5, *[0.001] * 7).estimate_s == pytest.approx(0.001)


@pytest.mark.parametrize("before", range(193, 209))
def test_a_slower_regime_is_followed_within_eight_samples(before):
    assert fed(*[0.001] * before, *[0.003] * 8).estimate_s == pytest.approx(0.003)


def test_a_slow_spell_is_forgotten_after_its_window():
    assert fed(*[0.003] * 50, *[0.001] * 200).estimate_s == pytest.approx(0.001)


def test_before_any_measurement_it_is_cautious():
    assert DurationQuantile().estimate_s >= 0.001
