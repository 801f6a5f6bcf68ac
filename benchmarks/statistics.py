"""Statistics that every benchmark reports in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054
_RESAMPLES = 4000
_RESAMPLING_SEED = 0
MIN_SAMPLES_FOR_P99 = 1000
MIN_SAMPLES_FOR_P999 = 10_000


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927): sound near 0 and 1 and for few trials.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        msg = f"expected 0 <= successes <= trials > 0, got {successes} of {trials}"
        raise ValueError(msg)
    share = successes / trials
    centre = share + _Z95**2 / (2 * trials)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + _Z95**2 / (4 * trials**2))
    scale = 1 + _Z95**2 / trials
    # at the ends the formula gives 0 and 1 but for rounding
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def bootstrap_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean: percentiles of the means of resamples (Efron 1979), always the same.

    It stays within the range of the samples. Of one sample, or of equal ones, it is a point: they
    say nothing about chance.

    Raises:
        ValueError: no samples.
    """
    if not len(samples):
        raise ValueError("expected at least one sample, got none")
    x = np.asarray(samples, np.float64)
    rng = np.random.default_rng(_RESAMPLING_SEED)
    means = [x[rng.integers(len(x), size=len(x))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def quantile(samples: Sequence[float], q: float) -> float | None:
    """The q-quantile, None without samples."""
    return float(np.quantile(samples, q)) if len(samples) else None


def p99(samples: Sequence[float]) -> float | None:
    """The 99th percentile; None below 1,000 samples, where it would be a guess."""
    return quantile(samples, 0.99) if len(samples) >= MIN_SAMPLES_FOR_P99 else None


def p999(samples: Sequence[float]) -> float | None:
    """The 99.9th percentile; None below 10,000 samples, where it would be a guess."""
    return quantile(samples, 0.999) if len(samples) >= MIN_SAMPLES_FOR_P999 else None


def jain_index(shares: Sequence[float]) -> float | None:
    """How evenly something is shared: (Σx)² / (n·Σx²) (Jain, Chiu & Hawe 1984, DEC-TR-301, eq. 2).

    Args:
        shares: what each gets, at least 0.

    Returns:
        1 if all get the same, k/n if k of n get the same and the others nothing; None if nobody
        gets anything.
    """
    x = np.asarray(shares, np.float64)
    squares = float(np.sum(x**2))
    return float(np.sum(x)) ** 2 / (len(x) * squares) if squares > 0 else None


def least_share(shares: Sequence[float]) -> float | None:
    """What the worst off gets, over the mean; None if nobody gets anything."""
    mean = float(np.mean(shares))
    return float(np.min(shares)) / mean if mean > 0 else None
