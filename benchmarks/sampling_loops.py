"""The loops that people write instead of a server: the lesson's own, and that of `diffusers`.

Both run the network that the server runs, in torch, without gradients, and for a batch of robots.
Only their time is of interest here: the samples are whatever the weights make of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from models.networks.config import NetworkConfig
from models.networks.protocol import DenoisingNetwork

_GUIDANCE_SCALE = 1.0


class SamplingLoops:
    """A network and what it is asked, for so many robots at once.

    Args:
        network: in evaluation mode.
        config: its shapes.
        alpha_bar: float32 [T].
        robots: rows of a batch.
    """

    def __init__(
        self, network: DenoisingNetwork, config: NetworkConfig, alpha_bar: Tensor, robots: int
    ) -> None:
        self._network = network
        self._alpha_bar = alpha_bar
        self._shape = (robots, config.horizon, config.action_dim)
        self._observation = torch.zeros(robots, config.observation_dim)
        self._instruction = torch.zeros(robots, config.instruction_dim)
        from diffusers import DDIMScheduler  # noqa: PLC0415 - takes seconds, and only this needs it

        self._scheduler = cast("Any", DDIMScheduler)(
            len(alpha_bar),
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            timestep_spacing="trailing",
        )

    def _model(self, x: Tensor, t: Tensor, *, drop: bool) -> Tensor:
        """The network as the lesson calls it: time and condition are embedded in every call."""
        dropped = torch.full((len(x),), drop)
        condition = self._network.condition_part(self._observation, self._instruction, dropped)
        return self._network.denoise(x, self._network.time_part(t) + condition)

    @torch.inference_mode()
    def lesson(self, num_steps: int, *, guided: bool) -> Tensor:
        """Two calls a step, whatever w is, and (1 + w)·cond − w·uncond; DDIM with eta = 0.

        So is the lesson's code: without guidance one of the two is for nothing.
        """
        x, alpha_bar, w = torch.randn(self._shape), self._alpha_bar, _GUIDANCE_SCALE * guided
        timesteps = torch.linspace(len(alpha_bar) - 1, 0, num_steps + 1, dtype=torch.long)
        for t, t_prev in pairwise(timesteps):
            t_batch = torch.full((len(x),), int(t), dtype=torch.long)
            eps_cond = self._model(x, t_batch, drop=False)
            eps_uncond = self._model(x, t_batch, drop=True)
            eps = (1 + w) * eps_cond - w * eps_uncond
            ab_t, ab_prev = alpha_bar[t], alpha_bar[t_prev]
            x0 = (x - torch.sqrt(1 - ab_t) * eps) / torch.sqrt(ab_t)
            x = torch.sqrt(ab_prev) * x0 + torch.sqrt(1 - ab_prev) * eps
        return x

    @torch.inference_mode()
    def diffusers(self, num_steps: int, *, guided: bool) -> Tensor:
        """As a pipeline of `diffusers`: conditions once, both branches in one call of the network.

        Its guidance scale is 1 + w.
        """
        scheduler = self._scheduler
        scheduler.set_timesteps(num_steps)
        branches = 2 if guided else 1
        drop = torch.tensor([True, False][-branches:]).repeat_interleave(self._shape[0])
        condition = self._network.condition_part(
            self._observation.repeat(branches, 1), self._instruction.repeat(branches, 1), drop
        )
        x = torch.randn(self._shape)
        for t in scheduler.timesteps:
            film = self._network.time_part(t.expand(len(condition))) + condition
            output = self._network.denoise(x.repeat(branches, 1, 1), film)
            if guided:
                uncond, cond = output.chunk(2)
                output = uncond + (1 + _GUIDANCE_SCALE) * (cond - uncond)
            x = scheduler.step(output, t, x).prev_sample
        return x
