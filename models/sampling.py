"""Offline sampling of many chunks at once: the plain loop, for training, tests and evaluation.

The server does not use it (its engine owns the loop there), but both run the same `GuidedStep` on
the same coefficients and the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.grids import GridName, make_timesteps
from models.guidance import (
    EVERYWHERE,
    Interval,
    acts_at,
    branch_rows,
    check_interval,
    network_rows,
    scale_at,
)
from models.policy import DiffusionPolicy
from models.samplers import SamplerName, draw_noise, sampler_coefficients

Step = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        num_steps: denoising steps.
        sampler: update rule.
        grid: spacing of the timesteps.
        eta: of DDIM, 0 deterministic .. 1 ancestral.
        guidance_scale: w.
        guidance_interval: noise levels at which w acts; elsewhere it is 0 (but −1 stays).
    """

    num_steps: int
    sampler: SamplerName = "ddim"
    grid: GridName = "trailing"
    eta: float = 0.0
    guidance_scale: float = 0.0
    guidance_interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        """Check the interval."""
        check_interval("guidance_interval", self.guidance_interval)

    def nfe(self, alpha_bar: npt.NDArray[np.float64]) -> int:
        """Network rows evaluated for one sample.

        Args:
            alpha_bar: float64 [T], of the process.
        """
        timesteps = make_timesteps(self.grid, self.num_steps, alpha_bar)
        acts = acts_at(self.guidance_interval, alpha_bar[timesteps])
        return len(timesteps) + (network_rows(self.guidance_scale) - 1) * int(acts.sum())


def denoise(
    step: Step,
    alpha_bar: npt.NDArray[np.float64],
    conditions: Tensor,
    sampling: Sampling,
    draw: Callable[[int], npt.NDArray[np.float32]],
    *,
    timesteps: npt.NDArray[np.int64] | None = None,
) -> Tensor:
    """Run one sampler loop for rows that share their plan.

    Args:
        step: a `GuidedStep`, or anything that is called like one.
        alpha_bar: float64 [T].
        conditions: float32 [2·R, film_dim], conditional and unconditional part of each row in turn.
        sampling: what to do.
        draw: timestep → standard normal noise [R, horizon, action_dim]; at T the starting noise.
        timesteps: to visit, in place of those of the sampling's grid and step count.

    Returns:
        float32 [R, horizon, action_dim], clean samples in normalised units.
    """
    x_t = torch.from_numpy(draw(len(alpha_bar)))
    x0_prev = no_noise = torch.zeros_like(x_t)
    rows = len(x_t)
    if timesteps is None:
        timesteps = make_timesteps(sampling.grid, sampling.num_steps, alpha_bar)
    coefficients = sampler_coefficients(sampling.sampler, alpha_bar, timesteps, sampling.eta)
    acts = acts_at(sampling.guidance_interval, alpha_bar[timesteps])
    scale = scale_at(sampling.guidance_scale, acts).tolist()
    guidance = {w: _guidance(w, rows) for w in set(scale)}
    for t, abcd, w in zip(timesteps, coefficients, scale, strict=True):
        x_t, x0_prev = step(
            x_t,
            x0_prev,
            torch.full((rows,), int(t)),
            conditions,
            *guidance[w],
            torch.from_numpy(abcd).float().expand(rows, 4),
            torch.from_numpy(draw(int(t))) if abcd[3] != 0 else no_noise,
        )
    return x_t


def _guidance(guidance_scale: float, rows: int) -> list[Tensor]:
    """Index inputs and w of a step for so many rows."""
    w = np.full(rows, guidance_scale, np.float32)
    branches = branch_rows(w, np.arange(rows))
    return [
        torch.from_numpy(array)
        for array in (
            branches.request_of,
            branches.condition_of,
            branches.cond_row,
            branches.uncond_row,
            w,
        )
    ]


@torch.inference_mode()
def sample_chunks(
    policy: DiffusionPolicy,
    observation: Mapping[str, npt.NDArray[Any]],
    instruction: npt.NDArray[np.float32],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    step: Step | None = None,
) -> npt.NDArray[np.float32]:
    """Chunks for R observations and instructions.

    Args:
        policy: in evaluation mode.
        observation: name → [R, obs_steps, ...], in the robot's units.
        instruction: float32 [R, INSTRUCTION_DIM].
        sampling: steps, sampler, grid, eta, w and where it acts.
        seeds: one a row.
        step: in place of the policy's `GuidedStep`, called like it.

    Returns:
        float32 [R, horizon, action_dim], in the robot's units.
    """
    twice = {
        name: torch.from_numpy(np.asarray(array)).repeat_interleave(2, 0)
        for name, array in observation.items()
    }
    drop = torch.arange(2 * len(seeds)) % 2 == 1
    embedded = torch.from_numpy(instruction).repeat_interleave(2, 0)
    x0 = denoise(
        step or policy.guided_step(),
        policy.diffusion.alpha_bar,
        policy.condition_part(twice, embedded, drop),
        sampling,
        lambda t: np.stack([draw_noise(seed, t, policy.chunk_shape) for seed in seeds]),
    )
    actions: npt.NDArray[np.float32] = policy.to_actions(x0.float()).numpy()
    return actions
