"""One denoising step for many rows at once: the module that backends run and that ONNX carries.

Everything between two network calls is in here (guidance, the conversion to x0, clipping, the
sampler's line), so a backend is a function of arrays. It draws no randomness and reads no clock.

**The guidance scale w is that of Ho & Salimans** (2022, arXiv:2207.12598, eq. 6):
eps = (1 + w)·eps_cond − w·eps_uncond. w = 0 is the plain conditional model and w = −1 the
unconditional one; diffusers' `guidance_scale` g is 1 + w. (Prose that calls w = 0 "unconditional"
or w = 1 "standard conditional" beside this same formula is wrong; the formula wins.)
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.networks.protocol import DenoisingNetwork

PredictionType = Literal["epsilon", "v", "sample"]


def x0_conversion(
    prediction_type: PredictionType, alpha_bar: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(p, q) such that x0 = p·x_t + q·output, for every timestep.

    epsilon: x0 = (x_t − sqrt(1 − ab)·eps)/sqrt(ab) (Ho et al. 2020, eq. 15);
    v: x0 = sqrt(ab)·x_t − sqrt(1 − ab)·v (Salimans & Ho 2022, arXiv:2202.00512, appendix D);
    sample: the output is x0.

    Args:
        prediction_type: what the network was trained to output.
        alpha_bar: float64 [T].

    Returns:
        float64 [T, 2].

    Raises:
        ValueError: unknown prediction type.
    """
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    match prediction_type:
        case "epsilon":
            return np.stack([1 / signal, -noise / signal], axis=-1)
        case "v":
            return np.stack([signal, -noise], axis=-1)
        case "sample":
            return np.stack([np.zeros_like(signal), np.ones_like(signal)], axis=-1)
        case _:
            msg = f"prediction_type: expected 'epsilon', 'v' or 'sample', got {prediction_type!r}"
            raise ValueError(msg)


class GuidedStep(nn.Module):
    """x_t → x_prev for R request rows by N network rows (R ≤ N ≤ 2R).

    A request with w = 0 or w = −1 has one network row, any other w two: its conditional and its
    unconditional branch, both evaluated in this one call.
    """

    def __init__(
        self,
        network: DenoisingNetwork,
        alpha_bar: npt.NDArray[np.float64],
        prediction_type: PredictionType,
        clip: float,
    ) -> None:
        super().__init__()
        self.network = network
        self.clip = clip
        num_timesteps = len(alpha_bar)
        with torch.no_grad():
            time_table = network.time_part(torch.arange(num_timesteps))
        # without the zeros at its end: a transformer's keys and values know no time, and those of
        # many tokens would make it hundreds of megabytes
        acts = time_table.any(dim=0).nonzero()
        columns = int(acts.max()) + 1 if len(acts) else 0
        self.register_buffer("time_table", time_table[:, :columns].clone(), persistent=False)
        conversion = torch.from_numpy(x0_conversion(prediction_type, alpha_bar)).float()
        self.register_buffer("conversion", conversion, persistent=False)

    def forward(  # noqa: PLR0917 - an ONNX graph has positional inputs
        self,
        x_t: Tensor,
        x0_prev: Tensor,
        timesteps: Tensor,
        conditions: Tensor,
        request_of: Tensor,
        condition_of: Tensor,
        cond_row: Tensor,
        uncond_row: Tensor,
        guidance_scale: Tensor,
        coefficients: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One guided, clipped sampler update for every row.

        Args:
            x_t: float32 [R, horizon, action_dim].
            x0_prev: like x_t, the x0 of the row's previous step (for multistep samplers).
            timesteps: int64 [R].
            conditions: float32 [K, film_dim], condition parts of all requests in flight.
            request_of: int64 [N], the request row of each network row.
            condition_of: int64 [N], index into `conditions` of each network row.
            cond_row: int64 [R], network row of the conditional branch.
            uncond_row: int64 [R], of the unconditional one; equal to cond_row for one-row requests.
            guidance_scale: float32 [R], w; without effect where the two rows are equal.
            coefficients: float32 [R, 4], (a, b, c, d) of `models.samplers`.
            noise: like x_t; ignored where d = 0.

        Returns:
            (x_prev, x0), each like x_t; x0 is guided and clipped.
        """
        time_table = cast("Tensor", self.time_table)
        conversion = cast("Tensor", self.conversion)
        # rows are chosen and columns split in such a way that each is one node of the graph
        film, columns = conditions.index_select(0, condition_of), time_table.shape[1]
        times = time_table.index_select(0, timesteps.index_select(0, request_of))
        if columns == film.shape[1]:
            film = times + film
        else:
            film = torch.cat([times + film[:, :columns], film[:, columns:]], dim=1)
        output = self.network.denoise(x_t.index_select(0, request_of), film)
        cond, uncond = output.index_select(0, cond_row), output.index_select(0, uncond_row)
        # (1 + w)·cond − w·uncond, written so that equal rows give cond bit for bit
        guided = cond + guidance_scale[:, None, None] * (cond - uncond)
        p, q = torch.split(conversion.index_select(0, timesteps)[:, :, None], 1, dim=1)
        unclipped = p * x_t + q * guided
        # 0·inf is NaN: without it a clipped infinity would look like a sound full-speed action
        x0 = unclipped.clamp(-self.clip, self.clip) + 0 * unclipped
        a, b, c, d = torch.split(coefficients[:, :, None], 1, dim=1)
        return a * x_t + b * x0 + c * x0_prev + d * noise, x0
