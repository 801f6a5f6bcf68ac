"""Noise schedules: alpha_bar[t] (diffusers: alphas_cumprod), float64, strictly decreasing in t."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

ScheduleName = Literal["linear", "cosine"]


def linear_alpha_bar(
    num_timesteps: int, beta_first: float = 1e-4, beta_last: float = 0.02
) -> npt.NDArray[np.float64]:
    """Linear schedule (Ho et al. 2020, arXiv:2006.11239, §4), betas given for T = 1000.

    Args:
        num_timesteps: T. Betas are scaled by 1000 / T, so that the end is as noisy for any T.
        beta_first: beta at t = 0 for T = 1000.
        beta_last: beta at t = T − 1 for T = 1000.

    Returns:
        float64 [T]: alpha_bar, the share of signal variance left at each timestep.
    """
    scale = 1000.0 / num_timesteps
    betas = np.linspace(scale * beta_first, scale * beta_last, num_timesteps, dtype=np.float64)
    return np.cumprod(1.0 - np.minimum(betas, 0.999), dtype=np.float64)


def cosine_alpha_bar(
    num_timesteps: int, offset: float = 0.008, beta_limit: float = 0.999
) -> npt.NDArray[np.float64]:
    """Cosine schedule (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17 and the clipping below it).

    Args:
        num_timesteps: T.
        offset: s of the paper, keeps beta from vanishing near t = 0.
        beta_limit: betas are clipped to this, which keeps alpha_bar[T − 1] above 0.

    Returns:
        float64 [T]: alpha_bar.
    """
    t = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    f = np.cos((t + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
    betas = np.minimum(1.0 - f[1:] / f[:-1], beta_limit)
    return np.cumprod(1.0 - betas)


def make_alpha_bar(name: ScheduleName, num_timesteps: int) -> npt.NDArray[np.float64]:
    """The schedule that a checkpoint names.

    Raises:
        ValueError: unknown name, or fewer than 2 timesteps.
    """
    if num_timesteps < 2:
        msg = f"num_timesteps: expected at least 2, got {num_timesteps}"
        raise ValueError(msg)
    match name:
        case "linear":
            return linear_alpha_bar(num_timesteps)
        case "cosine":
            return cosine_alpha_bar(num_timesteps)
        case _:
            msg = f"schedule: expected 'linear' or 'cosine', got {name!r}"
            raise ValueError(msg)
