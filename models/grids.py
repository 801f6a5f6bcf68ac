"""Timestep grids: which timesteps a sampler visits, strictly decreasing integers.

A grid covers 0..start, not only 0..T−1, so that a request in mid-flight at timestep `start` can be
re-planned with more or fewer steps. After the last timestep a sampler always goes to alpha_bar = 1
(`END`), never to alpha_bar[0], which would leave noise in every sample.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

GridName = Literal["trailing", "linspace", "leading"]

END = -1
"""t_prev of the last step: no timestep, but clean data (alpha_bar = 1)."""


def _round_half_up(x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    # np.round goes to even, which maps 1.5 and 2.5 to the same timestep.
    return np.floor(x + 0.5).astype(np.int64)


def trailing(num_steps: int, start: int) -> npt.NDArray[np.int64]:
    """Equal spacing that includes `start` (Lin et al. 2023, arXiv:2305.08891, table 2)."""
    fractions = np.arange(num_steps, 0, -1, dtype=np.float64) / num_steps
    return _round_half_up(fractions * (start + 1)) - 1


def linspace(num_steps: int, start: int) -> npt.NDArray[np.int64]:
    """Equal spacing that includes both `start` and 0 (same table); one step visits `start`."""
    return _round_half_up(np.linspace(start, 0, num_steps, dtype=np.float64))


def leading(num_steps: int, start: int) -> npt.NDArray[np.int64]:
    """Multiples of an integer stride, from 0 (Song et al. 2021, as in diffusers' default).

    Does not include `start`: the first timestep depends on num_steps, so this grid is for
    comparisons, not for elastic serving.
    """
    stride = (start + 1) // num_steps
    return np.arange(num_steps - 1, -1, -1, dtype=np.int64) * stride


def make_timesteps(grid: GridName, num_steps: int, start: int) -> npt.NDArray[np.int64]:
    """Timesteps that `num_steps` denoising steps visit, from `start` or below down to >= 0.

    Args:
        grid: name of the spacing.
        num_steps: network calls; 1 .. start + 1.
        start: highest timestep available, T − 1 for a new sample.

    Returns:
        int64 [num_steps], strictly decreasing.

    Raises:
        ValueError: num_steps out of range, or an unknown grid.
    """
    if not 1 <= num_steps <= start + 1:
        msg = f"num_steps: expected 1..{start + 1} from timestep {start}, got {num_steps}"
        raise ValueError(msg)
    match grid:
        case "trailing":
            return trailing(num_steps, start)
        case "linspace":
            return linspace(num_steps, start)
        case "leading":
            return leading(num_steps, start)
        case _:
            msg = f"grid: expected 'trailing', 'linspace' or 'leading', got {grid!r}"
            raise ValueError(msg)
