"""What a step costs and how many fit a budget: arithmetic on measured latencies (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9


def samples_for(miss_rate: float, beyond: int) -> int:
    """Samples of which `beyond` may exceed the (1 − miss_rate) quantile; at least 100."""
    return max(100, math.ceil(beyond / miss_rate - _ROUNDING))


def latency_quantile(samples_s: Sequence[float], miss_rate: float) -> float | None:
    """The smallest sample that no more than `miss_rate` of all samples exceed.

    Returns:
        Seconds; None for fewer than 1 / miss_rate samples, of which none may exceed it.
    """
    may_exceed = int(len(samples_s) * miss_rate + _ROUNDING)
    return sorted(samples_s)[-1 - may_exceed] if may_exceed else None


def largest_within(latencies_s: Mapping[int, float], budget_s: float) -> int | None:
    """The largest step count whose latency is within a budget, as far as was measured.

    Between two measured counts it is interpolated; where noise makes more steps look faster, the
    slower of the two counts. Nothing is said of counts above the largest measured one.

    Args:
        latencies_s: step count → a latency, in seconds.
        budget_s: what it must not exceed.

    Returns:
        None if not even the smallest measured count fits.
    """
    fits: int | None = None
    slowest_s = 0.0
    for count in sorted(latencies_s):
        before_s, slowest_s = slowest_s, max(slowest_s, latencies_s[count])
        if slowest_s <= budget_s:
            fits = count
        else:
            if fits is not None:
                fits += math.floor((count - fits) * (budget_s - before_s) / (slowest_s - before_s))
            break
    return fits


@dataclass(frozen=True)
class StepCost:
    """Latency as a line: fixed_s + steps · step_s."""

    fixed_s: float
    step_s: float

    def latency_s(self, num_steps: int) -> float:
        """Predicted latency of an answer with so many steps."""
        return self.fixed_s + num_steps * self.step_s

    def steps_within(self, budget_s: float, most: int) -> int:
        """The largest step count, 0 .. most, that is predicted to fit."""
        left_s = budget_s - self.fixed_s
        if left_s >= most * self.step_s:
            return most
        return max(0, math.floor(left_s / self.step_s + _ROUNDING)) if self.step_s > 0 else 0


def fit_step_cost(latencies_s: Mapping[int, float]) -> StepCost:
    """The line with the least squared *relative* error, since latencies span decades.

    Args:
        latencies_s: step count → a latency, in seconds; at least two counts.

    Returns:
        Neither part is negative.

    Raises:
        ValueError: fewer than two counts.
    """
    if len(latencies_s) < 2:
        msg = f"num_steps: expected at least two measured counts for a line, got {len(latencies_s)}"
        raise ValueError(msg)
    counts, values = np.array(sorted(latencies_s.items()), np.float64).T
    columns = np.stack([np.ones_like(counts), counts], axis=1) / values[:, None]
    fixed_s, step_s = np.linalg.lstsq(columns, np.ones_like(values), rcond=None)[0]
    if fixed_s < 0:  # then the best line that is allowed goes through the origin
        fixed_s, step_s = 0.0, columns[:, 1].sum() / (columns[:, 1] ** 2).sum()
    if step_s < 0:
        fixed_s, step_s = columns[:, 0].sum() / (columns[:, 0] ** 2).sum(), 0.0
    return StepCost(float(fixed_s), float(step_s))
