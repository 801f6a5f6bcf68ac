"""Timestep grids: which timesteps a sampler visits, strictly decreasing integers.

A grid covers 0..start, not only 0..T−1, so that a request in mid-flight at timestep `start` can be
re-planned with more or fewer steps. After the last timestep a sampler always goes to alpha_bar = 1
(`END`), never to alpha_bar[0], which would leave noise in every sample.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

GridName = Literal["trailing", "linspace", "leading", "logsnr"]

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


LOGSNR_RANGE = (-8.0, 7.5)
"""log(ab/(1 − ab)) at the ends of the uniform log-SNR grid: outside it a sample is noise, or clean,
to 2% of its amplitude. Chosen by `python -m benchmarks logsnr` on mixtures that no report uses."""


def uniform_logsnr(
    num_steps: int,
    start: int,
    alpha_bar: npt.NDArray[np.float64],
    ends: tuple[float, float] = LOGSNR_RANGE,
) -> npt.NDArray[np.int64]:
    """Equal spacing in log-SNR (Lu et al. 2022, arXiv:2206.00927, §3.4), on integer timesteps.

    Each point takes the nearest timestep that no point before it has taken, so the grid is strictly
    decreasing for any count.

    Args:
        num_steps: points.
        start: timestep of the sample now. A new sample, at T − 1, begins at the noisy end of the
            range instead (at T − 1 only if it has more steps than there are timesteps below that
            end); one in mid-flight goes on where it is.
        alpha_bar: float64 [T].
        ends: log-SNR of the noisiest and of the cleanest point.
    """
    logsnr = np.log(alpha_bar / (1 - alpha_bar))
    noisy, clean = (int(np.abs(logsnr - end).argmin()) for end in ends)
    if start == len(alpha_bar) - 1 and num_steps <= noisy + 1:
        start = noisy
    ideal = np.interp(
        np.linspace(-logsnr[start], -logsnr[clean], num_steps), -logsnr, np.arange(len(logsnr))
    )
    free = np.ones(start + 1, bool)
    for t in ideal:
        candidates = np.flatnonzero(free)
        free[candidates[np.abs(candidates - t).argmin()]] = False
    return np.flatnonzero(~free)[::-1]


def make_timesteps(
    grid: GridName,
    num_steps: int,
    alpha_bar: npt.NDArray[np.float64],
    start: int | None = None,
) -> npt.NDArray[np.int64]:
    """Timesteps that `num_steps` denoising steps visit, from `start` or below down to >= 0.

    Args:
        grid: name of the spacing.
        num_steps: network calls; 1 .. start + 1.
        alpha_bar: float64 [T].
        start: timestep of a sample in mid-flight; T − 1, a new sample, if not given.

    Returns:
        int64 [num_steps], strictly decreasing.

    Raises:
        ValueError: num_steps out of range, or an unknown grid.
    """
    last = len(alpha_bar) - 1
    start = last if start is None else start
    if not 0 <= start <= last:
        msg = f"start: expected 0..{last}, got {start}"
        raise ValueError(msg)
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
        case "logsnr":
            return uniform_logsnr(num_steps, start, alpha_bar)
        case _:
            msg = f"grid: expected one of {', '.join(get_args(GridName))}, got {grid!r}"
            raise ValueError(msg)
