"""2-D points drawn from a mixture by a sampler, with the exact score or a trained network.

The same loop, the same `GuidedStep` and the same coefficients as for a policy; a point is a chunk
of one action with two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.point_quality import SEED, Points, average, quality, reference
from models.guided_step import GuidedStep
from models.mixtures import ExactDenoiser, Mixture
from models.policy import DiffusionConfig
from models.samplers import draw_noise
from models.sampling import Sampling, denoise

NUM_POINTS = 8_000
"""Samples of each condition that a quality is computed from."""
_TRUTH_STREAM = 0x747


@dataclass(frozen=True)
class PointModel:
    """Something that denoises points of a mixture.

    Attributes:
        network: its name in result rows.
        mixture: what it was made for.
        diffusion: schedule, prediction type and clipping.
        step: the module that a sampler calls.
        conditions: float [C, 2, film_dim], conditional and unconditional part of each condition.
    """

    network: str
    mixture: Mixture
    diffusion: DiffusionConfig
    step: GuidedStep
    conditions: torch.Tensor

    @classmethod
    def make(
        cls,
        name: str,
        mixture: Mixture,
        diffusion: DiffusionConfig,
        network: Any,  # noqa: ANN401
    ) -> PointModel:
        """Wrap a `DenoisingNetwork` whose instruction is a one-hot condition.

        Network calls use one thread from now on: the arrays are small.
        """
        torch.set_num_threads(1)
        count = mixture.num_conditions
        with torch.no_grad():
            parts = network.condition_part(
                torch.zeros(2 * count, 0),
                torch.eye(count).repeat_interleave(2, 0),
                torch.arange(2 * count) % 2 == 1,
            )
        step = GuidedStep(network, diffusion.alpha_bar, diffusion.prediction_type, diffusion.clip)
        return cls(name, mixture, diffusion, step.eval(), parts.view(count, 2, -1))

    @classmethod
    def exact(cls, mixture: Mixture) -> PointModel:
        """The one without training error: E[x0 | x_t, condition] in closed form."""
        diffusion = DiffusionConfig(prediction_type="sample")
        return cls.make("exact", mixture, diffusion, ExactDenoiser(mixture, diffusion.alpha_bar))

    @torch.inference_mode()
    def sample(
        self,
        sampling: Sampling,
        condition: int,
        count: int,
        seed: int,
        timesteps: npt.NDArray[np.int64] | None = None,
    ) -> Points:
        """`count` points of one condition, [count, 2]; `timesteps` as in `denoise`."""
        points = denoise(
            self.step,
            self.diffusion.alpha_bar,
            self.conditions[condition].repeat(count, 1),
            sampling,
            partial(_draw, seed=seed, shape=(count, 1, 2)),
            timesteps=timesteps,
        )
        return points[:, 0].double().numpy()


def _draw(timestep: int, *, seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return draw_noise(seed, timestep, shape)


def measure(model: PointModel, sampling: Sampling, num_sets: int = 1) -> dict[str, float]:
    """Draw NUM_POINTS of every condition, `num_sets` times over, and judge them."""
    return average(
        quality(
            model.mixture,
            [
                model.sample(sampling, condition, NUM_POINTS, _seed(index, condition))
                for condition in range(model.mixture.num_conditions)
            ],
            model.diffusion.clip,
        )
        for index in range(num_sets)
    )


def _seed(index: int, condition: int) -> int:
    """Of set `index` of a condition: no two sets begin with the same noise."""
    return (SEED << 32) + (index << 16) + condition


def exact_quality(mixture: Mixture, sampling: Sampling) -> dict[str, float]:
    """`measure` with the exact score: what the sampler alone costs."""
    return measure(PointModel.exact(mixture), sampling)


def truth_quality(mixture: Mixture, num_sets: int) -> dict[str, float]:
    """What independent samples of the target itself get: what a perfect sampler would get."""
    rng = np.random.default_rng((SEED, _TRUTH_STREAM))
    conditions = range(mixture.num_conditions)
    return average(
        quality(mixture, [mixture.draw(c, NUM_POINTS, rng) for c in conditions], clip=np.inf)
        for _ in range(num_sets)
    )


def reference_quality(mixture: Mixture, num_sets: int) -> dict[str, float]:
    """What further draws of `reference` get: the resolution of the measure."""
    return average(
        quality(
            mixture,
            [
                reference(mixture, condition, SEED + 1 + i, NUM_POINTS)
                for condition in range(mixture.num_conditions)
            ],
            clip=np.inf,
        )
        for i in range(num_sets)
    )
