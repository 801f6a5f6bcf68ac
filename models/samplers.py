"""Samplers as coefficients of one shared update, and the noise that they are given.

Every sampler here is x_prev = a·x_t + b·x0 + c·x0_prev + d·noise with (a, b, c, d) computed in
float64 when a step is planned. x0 is the prediction after guidance and clipping: no sampler ever
sees the network's raw output, so a clipped x0 cannot meet a stale eps.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from models.grids import END

SamplerName = Literal["ddim", "ddpm", "ddpm_beta", "dpmpp_2m"]
"""`ddpm` has the posterior variance, `ddpm_beta` the larger one of Ho et al. 2020, §3.2."""


def _rows(*values: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], ...]:
    return np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, np.float64)) for value in values))


def _check_order(ab_t: npt.NDArray[np.float64], ab_prev: npt.NDArray[np.float64]) -> None:
    if not (np.all(ab_prev > ab_t) and np.all(ab_t > 0) and np.all(ab_prev <= 1)):
        raise ValueError("alpha_bar: expected 0 < alpha_bar_t < alpha_bar_prev <= 1")


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
    ab_t, ab_prev, eta_ = _rows(alpha_bar_t, alpha_bar_prev, eta)
    _check_order(ab_t, ab_prev)
    if not np.all((eta_ >= 0) & (eta_ <= 1)):
        raise ValueError("eta: expected 0..1")
    sigma = eta_ * np.sqrt((1 - ab_prev) / (1 - ab_t)) * np.sqrt(1 - ab_t / ab_prev)
    a = np.sqrt(np.maximum(1 - ab_prev - sigma**2, 0)) / np.sqrt(1 - ab_t)
    b = np.sqrt(ab_prev) - a * np.sqrt(ab_t)
    return np.stack([a, b, np.zeros_like(a), sigma], axis=-1)


def ddpm_coefficients(
    alpha_bar_t: npt.ArrayLike,
    alpha_bar_prev: npt.ArrayLike,
    variance: Literal["posterior", "beta"],
) -> npt.NDArray[np.float64]:
    """Coefficients of one ancestral update x_t → x_prev (Ho et al. 2020, arXiv:2006.11239).

    The mean is that of the posterior q(x_prev | x_t, x0), its eq. 7; §3.2 offers two variances.
    When timesteps are skipped, beta = 1 − ab_t/ab_prev (Nichol & Dhariwal 2021, arXiv:2102.09672,
    §4).

    Args:
        alpha_bar_t: float64 [rows], at the current timestep.
        alpha_bar_prev: float64 [rows], at the next one; 1 on the last step.
        variance: posterior: (1 − ab_prev)/(1 − ab_t)·beta, right for data at one point;
            beta: right for data that is standard normal.

    Returns:
        float64 [rows, 4]: (a, b, c, d); c is 0, and d is 0 on the last step.

    Raises:
        ValueError: alpha_bar_prev is not greater than alpha_bar_t, or an unknown variance.
    """
    ab_t, ab_prev = _rows(alpha_bar_t, alpha_bar_prev)
    _check_order(ab_t, ab_prev)
    alpha = ab_t / ab_prev
    beta = 1 - alpha
    a = np.sqrt(alpha) * (1 - ab_prev) / (1 - ab_t)
    b = np.sqrt(ab_prev) * beta / (1 - ab_t)
    match variance:
        case "posterior":
            d = np.sqrt((1 - ab_prev) / (1 - ab_t) * beta)
        case "beta":
            d = np.where(ab_prev == 1, 0.0, np.sqrt(beta))
        case _:
            msg = f"variance: expected 'posterior' or 'beta', got {variance!r}"
            raise ValueError(msg)
    return np.stack([a, b, np.zeros_like(a), d], axis=-1)


def dpmpp_2m_coefficients(
    alpha_bar_before: npt.ArrayLike, alpha_bar_t: npt.ArrayLike, alpha_bar_prev: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Coefficients of one DPM-Solver++(2M) update (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    x_prev = (sigma_prev/sigma_t)·x_t − alpha_prev·(exp(−h) − 1)·D with
    D = (1 + 1/(2r))·x0 − 1/(2r)·x0_prev, where h is the step in lambda = log(alpha/sigma), r the
    step before it over h. Without a step before, and on the last step (h is infinite there), it is
    of first order: DDIM.

    Args:
        alpha_bar_before: float64 [rows], where x0_prev was predicted; 0 if there is none.
        alpha_bar_t: float64 [rows], at the current timestep.
        alpha_bar_prev: float64 [rows], at the next one; 1 on the last step.

    Returns:
        float64 [rows, 4]: (a, b, c, d); d is 0.

    Raises:
        ValueError: not alpha_bar_before < alpha_bar_t < alpha_bar_prev.
    """
    ab_before, ab_t, ab_prev = _rows(alpha_bar_before, alpha_bar_t, alpha_bar_prev)
    _check_order(ab_t, ab_prev)
    if not (np.all(ab_before >= 0) and np.all(ab_before < ab_t)):
        raise ValueError("alpha_bar: expected 0 <= alpha_bar_before < alpha_bar_t")
    with np.errstate(divide="ignore"):
        h_before = _half_logsnr(ab_t) - _half_logsnr(ab_before)
        h = np.where(ab_prev == 1, 0.0, _half_logsnr(ab_prev) - _half_logsnr(ab_t))
    extrapolation = h / (2 * h_before)  # 1/(2r)
    a = np.sqrt((1 - ab_prev) / (1 - ab_t))
    gain = np.sqrt(ab_prev) - a * np.sqrt(ab_t)  # −alpha_prev·(exp(−h) − 1)
    b, c = gain * (1 + extrapolation), -gain * extrapolation
    return np.stack([a, b, c, np.zeros_like(a)], axis=-1)


def _half_logsnr(ab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lambda of the DPM-Solver papers: log(alpha/sigma)."""
    return 0.5 * (np.log(ab) - np.log1p(-ab))


MOST_EXTRAPOLATED = 2.0
"""DPM-Solver++(2M) extrapolates over at most so many times the log-SNR step before; a longer step
is of first order. Two predictions so close say little about one so far: on the linspace grid, whose
last steps stretch five-fold, errors grow with the step count without this."""


def sampler_coefficients(
    sampler: SamplerName,
    alpha_bar: npt.NDArray[np.float64],
    timesteps: npt.ArrayLike,
    eta: float,
    before: int | None = None,
) -> npt.NDArray[np.float64]:
    """Coefficients of every update of a sampler that visits `timesteps` and ends in clean data.

    They depend on the timesteps alone, not on when they were planned: what is left of a plan has
    the coefficients of the whole, `before` being the timestep executed last.

    Args:
        sampler: which update.
        alpha_bar: float64 [T].
        timesteps: int [steps], strictly decreasing.
        eta: of DDIM; the other samplers have no such choice and take 0 only.
        before: timestep at which x0_prev was predicted, for a sample in mid-flight.

    Returns:
        float64 [steps, 4], (a, b, c, d) of each update; the last goes to alpha_bar = 1.

    Raises:
        ValueError: an unknown sampler, an eta it does not take, or timesteps that do not fall.
    """
    if eta != 0 and not takes_eta(sampler):
        msg = f"eta: {sampler} takes 0 only (eta is DDIM's), got {eta:g}"
        raise ValueError(msg)
    t = np.asarray(timesteps, np.int64)
    ab_t = alpha_bar_at(alpha_bar, t)
    ab_prev = alpha_bar_at(alpha_bar, [*t[1:], END])
    match sampler:
        case "ddim":
            return ddim_coefficients(ab_t, ab_prev, eta)
        case "ddpm":
            return ddpm_coefficients(ab_t, ab_prev, "posterior")
        case "ddpm_beta":
            return ddpm_coefficients(ab_t, ab_prev, "beta")
        case "dpmpp_2m":
            first = 0.0 if before is None else alpha_bar[before]
            ab_before = np.array([first, *ab_t[:-1]])
            full = dpmpp_2m_coefficients(ab_before, ab_t, ab_prev)
            short = dpmpp_2m_coefficients(0.0, ab_t, ab_prev)
            return np.where(_stretches(ab_before, ab_t, ab_prev)[:, None], short, full)
        case _:
            msg = f"sampler: expected one of {', '.join(get_args(SamplerName))}, got {sampler!r}"
            raise ValueError(msg)


def takes_eta(sampler: str) -> bool:
    """Whether eta may be other than 0."""
    return sampler == "ddim"


def _stretches(
    ab_before: npt.NDArray[np.float64],
    ab_t: npt.NDArray[np.float64],
    ab_prev: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Which steps are more than `MOST_EXTRAPOLATED` times as long as the one before."""
    with np.errstate(divide="ignore"):
        before, now, then = (_half_logsnr(ab) for ab in (ab_before, ab_t, ab_prev))
    return then - now > MOST_EXTRAPOLATED * (now - before)


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


class _PerThread(threading.local):
    """A bit generator that is told its whole state before every draw, one a thread."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)


_local = _PerThread()


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
    # the state of a new Philox(key=[seed, timestep]); setting it takes a fifth of making one
    state: Any = {  # numpy's stubs want arrays, which take longer to read
        "bit_generator": "Philox",
        "state": {"counter": (0, 0, 0, 0), "key": (seed, timestep)},
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,  # nothing is left in it
        "has_uint32": 0,
        "uinteger": 0,
    }
    _local.bits.state = state
    return _local.generator.standard_normal(shape, dtype=np.float32)
