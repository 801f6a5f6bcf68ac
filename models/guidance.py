"""Which network rows a guided request needs; the guidance formula itself is in `guided_step`.

w is the guidance scale of Ho & Salimans: 0 is conditional, −1 unconditional, and both need one
network row; every other w needs a conditional and an unconditional row.
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
        cond_row: int64 [R].
        uncond_row: int64 [R].
    """

    request_of: npt.NDArray[np.int64]
    condition_of: npt.NDArray[np.int64]
    cond_row: npt.NDArray[np.int64]
    uncond_row: npt.NDArray[np.int64]


def network_rows(guidance_scale: float) -> int:
    """Network rows of one step of one request: 1 for w = 0 and w = −1, otherwise 2."""
    return 1 if guidance_scale in (0.0, -1.0) else 2


def branch_rows(
    guidance_scale: npt.NDArray[np.float32], slots: npt.NDArray[np.int64]
) -> BranchRows:
    """Lay out the network rows of one call.

    Args:
        guidance_scale: [R], w of each request.
        slots: [R], where the request's conditions lie in the condition table.

    Returns:
        The index arrays; the first R network rows are one branch of each request, the rest are
        the unconditional branches of those that need two.
    """
    num_requests = len(guidance_scale)
    first = np.arange(num_requests)
    uncond_only = guidance_scale == -1
    two = np.flatnonzero((guidance_scale != 0) & ~uncond_only)
    uncond_row = first.copy()
    uncond_row[two] = num_requests + np.arange(len(two))
    return BranchRows(
        request_of=np.concatenate([first, two]),
        condition_of=np.concatenate([2 * slots + uncond_only, 2 * slots[two] + 1]),
        cond_row=first,
        uncond_row=uncond_row,
    )
