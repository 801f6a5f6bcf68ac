"""Statistics against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks.statistics import p99, quantile, wilson_interval


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
