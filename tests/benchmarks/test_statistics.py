"""Statistics against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from benchmarks.statistics import bootstrap_interval, p99, quantile, wilson_interval


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_interval_equals_scipy(trials, share):
    successes = round(share * trials)
    theirs = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes <= trials"):
        wilson_interval(successes, trials)


def test_no_p99_below_a_thousand_samples():
    assert p99([0.1] * 999) is None
    samples = np.random.default_rng(0).random(1000)
    assert p99(samples) == pytest.approx(np.percentile(samples, 99))
    assert quantile([], 0.5) is None


def test_the_bootstrap_interval_of_many_samples_is_that_of_the_t_test():
    samples = np.random.default_rng(0).beta(2, 1, 400)
    theirs = ttest_1samp(samples, 0).confidence_interval(0.95)
    assert bootstrap_interval(samples) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert bootstrap_interval(samples) == bootstrap_interval(samples)


def test_the_bootstrap_interval_stays_within_what_was_seen():
    low, high = bootstrap_interval([1.0] * 9 + [0.0])
    assert 0.6 <= low < 0.9 < high == 1.0
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
