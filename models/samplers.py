"""Samplers as coefficients of one shared update, and the noise that they are given.

Every sampler here is x_prev = a·x_t + b·x0 + c·x0_prev + d·noise with (a, b, c, d) computed in
float64 when a step is planned. x0 is the prediction after guidance and clipping: no sampler ever
sees the network's raw output, so a clipped x0 cannot meet a stale eps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.grids import END


def ddim_coefficients(
    alpha_bar_t: npt.ArrayLike, alpha_bar_prev: npt.ArrayLike, eta: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Coefficients of one DDIM update x_t → x_prev (Song et al. 2021, arXiv:2010.02502).

    Its eq. 12 with eps = (x_t − sqrt(ab_t)·x0) / sqrt(1 − ab_t) put in, and sigma of eq. 16:
    sigma = eta·sqrt((1 − ab_prev)/(1 − ab_t))·sqrt(1 − ab_t/ab_prev).

    Args:
        alpha_bar_t: float64 [rows], at the current timestep.
        alpha_bar_prev: float64 [rows], at the next one; 1 on the last step.
        eta: float64 [rows], 0 deterministic, 1 ancestral DDPM.

    Returns:
        float64 [rows, 4]: (a, b, c, d); c is 0, and d is 0 on the last step.

    Raises:
        ValueError: alpha_bar_prev is not greater than alpha_bar_t, or eta is outside 0..1.
    """
    ab_t, ab_prev, eta_ = np.broadcast_arrays(
        np.atleast_1d(np.asarray(alpha_bar_t, np.float64)),
        np.atleast_1d(np.asarray(alpha_bar_prev, np.float64)),
        np.atleast_1d(np.asarray(eta, np.float64)),
    )
    if not (np.all(ab_prev > ab_t) and np.all(ab_t > 0) and np.all(ab_prev <= 1)):
        raise ValueError("alpha_bar: expected 0 < alpha_bar_t < alpha_bar_prev <= 1")
    if not np.all((eta_ >= 0) & (eta_ <= 1)):
        raise ValueError("eta: expected 0..1")
    sigma = eta_ * np.sqrt((1 - ab_prev) / (1 - ab_t)) * np.sqrt(1 - ab_t / ab_prev)
    a = np.sqrt(np.maximum(1 - ab_prev - sigma**2, 0)) / np.sqrt(1 - ab_t)
    b = np.sqrt(ab_prev) - a * np.sqrt(ab_t)
    return np.stack([a, b, np.zeros_like(a), sigma], axis=-1)


def alpha_bar_at(
    alpha_bar: npt.NDArray[np.float64], timesteps: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """alpha_bar at timesteps, with 1 for `END`.

    Args:
        alpha_bar: float64 [T].
        timesteps: int [rows], each `END` or 0..T − 1.

    Returns:
        float64 [rows].
    """
    t = np.asarray(timesteps, np.int64)
    return np.where(t == END, 1.0, alpha_bar[np.maximum(t, 0)])


def draw_noise(seed: int, timestep: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal noise that depends on (seed, timestep) alone, not on what was drawn before.

    Counter-based (Philox; Salmon et al. 2011), so the same seed and the same executed timesteps
    give the same sample in any batch and after any re-planning. The starting noise of a sample is
    the draw at timestep T.

    Args:
        seed: 0 .. 2**63 − 1.
        timestep: at which the noise is added; T for the starting noise.
        shape: of one row.

    Returns:
        float32 of that shape.
    """
    bits = np.random.Philox(key=np.array([seed, timestep], dtype=np.uint64))
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)
