"""Which network rows a guided request needs; the guidance formula itself is in `guided_step`.

w is the guidance scale of Ho & Salimans: 0 is conditional, −1 unconditional, and both need one
network row; every other w needs a conditional and an unconditional row, at those noise levels at
which it acts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BranchRows:
    """How R request rows map to N network rows; the index inputs of `GuidedStep`.

    Attributes:
        request_of: int64 [N].
        condition_of: int64 [N], into a table with the conditional part of slot s at 2s and its
            unconditional (instruction dropped) part at 2s + 1.
        cond_row: int64 [R], always 0 .. R − 1.
        uncond_row: int64 [R].
    """

    request_of: npt.NDArray[np.int64]
    condition_of: npt.NDArray[np.int64]
    cond_row: npt.NDArray[np.int64]
    uncond_row: npt.NDArray[np.int64]

    @classmethod
    def room_for(cls, max_requests: int) -> BranchRows:
        """Arrays in which `fill` can lay out any call of up to so many requests."""
        rows, twice = np.arange(max_requests), np.zeros(2 * max_requests, np.int64)
        return cls(twice, twice.copy(), rows, rows.copy())

    def fill(self, guidance_scale: npt.NDArray[np.float32], slots: npt.NDArray[np.int64]) -> int:
        """Lay out the network rows of one call in the first places of these arrays.

        Args:
            guidance_scale: [R], w of each request.
            slots: int64 [R], where the request's conditions lie in the condition table.

        Returns:
            N: the first R network rows are one branch of each request, the rest are the
            unconditional branches of those that need two.
        """
        requests = len(guidance_scale)
        rows = self.cond_row[:requests]
        uncond_only = guidance_scale == -1
        (two,) = ((guidance_scale != 0) & ~uncond_only).nonzero()
        total = requests + len(two)
        self.request_of[:requests] = rows
        self.uncond_row[:requests] = rows
        condition_of = self.condition_of[:requests]
        np.add(slots, slots, out=condition_of)
        condition_of += uncond_only
        if total > requests:
            self.request_of[requests:total] = two
            self.uncond_row[two] = np.arange(requests, total)
            self.condition_of[requests:total] = condition_of[two] + 1
        return total


Interval = tuple[float, float]
"""Lowest and highest noise level, 0 (clean) .. 1 (nothing but noise)."""
EVERYWHERE: Interval = (0.0, 1.0)


def check_interval(field: str, interval: Interval) -> None:
    """Refuse what is no interval of noise levels.

    Raises:
        ValueError: naming the field.
    """
    if not (len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1):
        msg = f"{field}: expected noise levels 0 <= low < high <= 1, got {interval}"
        raise ValueError(msg)


def acts_at(interval: Interval, alpha_bar: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether guidance acts on samples with this alpha_bar (Kynkäänniemi et al. 2024).

    The noise level of x_t is the standard deviation of the noise in it, sqrt(1 − alpha_bar); the
    paper's sigma (arXiv:2404.07724) is that over the signal's, so its numbers are sigma / sqrt(1 +
    sigma²) here. Beyond the interval the conditional branch alone is evaluated, as for w = 0.
    """
    level = np.sqrt(1 - alpha_bar)
    acts: npt.NDArray[np.bool_] = (interval[0] <= level) & (level <= interval[1])
    return acts


def scale_at(w: float, acts: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The w of each step: 0 where guidance does not act; −1 stays, as it needs one row anyhow."""
    return np.full(len(acts), w, np.float32) if w == -1 else np.multiply(acts, np.float32(w))


def network_rows(guidance_scale: float) -> int:
    """Network rows of a step in which w acts: 1 for w = 0 and w = −1, otherwise 2."""
    return 1 if guidance_scale in (0.0, -1.0) else 2


def branch_rows(
    guidance_scale: npt.NDArray[np.float32], slots: npt.NDArray[np.int64]
) -> BranchRows:
    """The same in arrays of their own, [R] and [N] long; see `BranchRows.fill`."""
    requests = len(guidance_scale)
    rows = BranchRows.room_for(requests)
    total = rows.fill(guidance_scale, slots)
    return BranchRows(
        rows.request_of[:total], rows.condition_of[:total], rows.cond_row, rows.uncond_row
    )
