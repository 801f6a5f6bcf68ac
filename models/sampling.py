"""Offline sampling of many chunks at once: the plain loop, for training, tests and evaluation.

The server does not use it (its engine owns the loop there), but both run the same `GuidedStep` on
the same coefficients and the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.grids import END, GridName, make_timesteps
from models.guidance import branch_rows
from models.policy import DiffusionPolicy
from models.samplers import alpha_bar_at, ddim_coefficients, draw_noise

Step = Callable[..., tuple[Tensor, Tensor]]


def denoise(
    step: Step,
    alpha_bar: npt.NDArray[np.float64],
    conditions: Tensor,
    *,
    chunk_shape: tuple[int, ...],
    timesteps: Sequence[int] | npt.NDArray[np.int64],
    guidance_scale: float,
    eta: float,
    seeds: Sequence[int],
) -> Tensor:
    """Run one sampler loop for rows that share their plan.

    Args:
        step: a `GuidedStep`, or anything that is called like one.
        alpha_bar: float64 [T].
        conditions: float32 [2·R, film_dim], conditional and unconditional part of each row in turn.
        chunk_shape: of one row.
        timesteps: strictly decreasing; after the last one comes clean data.
        guidance_scale: w.
        eta: 0 deterministic .. 1 ancestral.
        seeds: one a row.

    Returns:
        float32 [R, *chunk_shape], clean samples in normalised units.
    """
    rows = len(seeds)
    w = np.full(rows, guidance_scale, np.float32)
    branches = branch_rows(w, np.arange(rows))
    indices = [
        torch.from_numpy(array)
        for array in (
            branches.request_of,
            branches.condition_of,
            branches.cond_row,
            branches.uncond_row,
        )
    ]
    start = np.stack([draw_noise(seed, len(alpha_bar), chunk_shape) for seed in seeds])
    x_t = torch.from_numpy(start)
    x0_prev = torch.zeros_like(x_t)
    following = [*(int(t) for t in timesteps[1:]), END]
    for t, t_prev in zip(timesteps, following, strict=True):
        coefficients = ddim_coefficients(
            alpha_bar_at(alpha_bar, t), alpha_bar_at(alpha_bar, t_prev), eta
        ).repeat(rows, axis=0)
        noise = torch.zeros_like(x_t)
        if coefficients[0, 3] != 0:
            noise = torch.from_numpy(
                np.stack([draw_noise(seed, int(t), chunk_shape) for seed in seeds])
            )
        x_t, x0_prev = step(
            x_t,
            x0_prev,
            torch.full((rows,), int(t)),
            conditions,
            *indices,
            torch.from_numpy(w),
            torch.from_numpy(coefficients).float(),
            noise,
        )
    return x_t


@torch.inference_mode()
def sample_chunks(
    policy: DiffusionPolicy,
    observation: Mapping[str, npt.NDArray[Any]],
    instruction: npt.NDArray[np.float32],
    *,
    num_steps: int,
    guidance_scale: float,
    eta: float,
    grid: GridName,
    seeds: Sequence[int],
) -> npt.NDArray[np.float32]:
    """Chunks for R observations and instructions.

    Args:
        policy: in evaluation mode.
        observation: name → [R, obs_steps, ...], in the robot's units.
        instruction: float32 [R, INSTRUCTION_DIM].
        num_steps: denoising steps.
        guidance_scale: w.
        eta: 0 deterministic .. 1 ancestral.
        grid: spacing of the timesteps.
        seeds: one a row.

    Returns:
        float32 [R, horizon, action_dim], in the robot's units.
    """
    rows = len(seeds)
    twice = {
        name: torch.from_numpy(np.asarray(array)).repeat_interleave(2, 0)
        for name, array in observation.items()
    }
    drop = torch.arange(2 * rows) % 2 == 1
    embedded = torch.from_numpy(instruction).repeat_interleave(2, 0)
    conditions = policy.condition_part(twice, embedded, drop)
    x0 = denoise(
        policy.guided_step(),
        policy.diffusion.alpha_bar,
        conditions,
        chunk_shape=policy.chunk_shape,
        timesteps=make_timesteps(grid, num_steps, policy.diffusion.num_timesteps - 1),
        guidance_scale=guidance_scale,
        eta=eta,
        seeds=seeds,
    )
    actions: npt.NDArray[np.float32] = policy.to_actions(x0).numpy()
    return actions
