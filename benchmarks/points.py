"""2-D points: drawn from a mixture by a sampler, and how good they are.

The same loop, the same `GuidedStep` and the same coefficients as for a policy; a point is a chunk
of one action with two numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.guided_step import GuidedStep
from models.mixtures import ExactDenoiser, Mixture
from models.policy import DiffusionConfig
from models.samplers import draw_noise
from models.sampling import Sampling, denoise

NUM_POINTS = 8_000
"""Samples of each condition that a quality is computed from."""
SEED = 3
"""Of every evaluation; the bundled network was trained with seed 0."""
ON_MODE_WITHIN = 3.0
"""A sample is on a mode within so many standard deviations: 98.9% of the target itself are."""
COVERED_SHARE = 0.1
"""A mode is covered if it has this part of the samples it should have."""
_NUM_DIRECTIONS = 64
_REFERENCE_STREAM = 0x2EF

Points = npt.NDArray[np.float64]


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
            timesteps,
        )
        return points[:, 0].double().numpy()


def _draw(timestep: int, *, seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return draw_noise(seed, timestep, shape)


def sliced_w2(a: Points, b: Points) -> float:
    """Sliced Wasserstein-2 distance of two samples of equal size (Bonneel et al. 2015).

    Root mean square difference of the sorted projections, over 64 directions that halve the circle
    evenly.

    Args:
        a: [n, 2].
        b: [n, 2].
    """
    angles = np.arange(_NUM_DIRECTIONS) * np.pi / _NUM_DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    difference = np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)
    return float(np.sqrt(np.mean(difference**2)))


@lru_cache(maxsize=16)
def reference(mixture: Mixture, condition: int, seed: int, count: int) -> Points:
    """The target itself, with equally many points on every mode, [count, 2].

    Random shares would put as much noise into every distance as the best samplers have error.
    """
    rng = np.random.default_rng((seed, condition, _REFERENCE_STREAM))
    modes = np.array(mixture.modes[condition])
    means = modes[np.arange(count) % len(modes)]
    return means + mixture.std * rng.standard_normal((count, 2))


def quality(mixture: Mixture, samples: Sequence[Points], clip: float) -> dict[str, float]:
    """How good samples of every condition are, averaged over conditions.

    Args:
        mixture: the target.
        samples: one array [n, 2] a condition.
        clip: bound of x0.

    Returns:
        sw2: sliced Wasserstein distance to `reference`.
        on_mode: share within three standard deviations of a mode of the condition.
        accuracy: share that is likelier under the asked condition than under any other.
        mode_entropy: of the shares of the condition's modes, in nats.
        mode_coverage: share of modes that have at least a tenth of the samples they should have.
        at_bound: share with a coordinate at the clipping bound.
    """
    return _average(
        _quality_of(mixture, index, points, clip) for index, points in enumerate(samples)
    )


def _quality_of(mixture: Mixture, condition: int, points: Points, clip: float) -> dict[str, float]:
    squared = ((points[:, None] - mixture.means) ** 2).sum(-1)  # [n, all modes]
    condition_of = mixture.condition_of_mode
    mine = condition_of == condition
    own = squared[:, mine]
    shares = np.bincount(own.argmin(1), minlength=own.shape[1]) / len(points)
    # a condition's density, up to a factor; the nearest mode alone would ignore how many it has
    nearest = squared.min(1, keepdims=True)
    density = np.exp((nearest - squared) / (2 * mixture.std**2))
    likelihood = np.stack(
        [density[:, condition_of == c].mean(1) for c in range(mixture.num_conditions)], axis=1
    )
    return {
        "sw2": sliced_w2(points, reference(mixture, condition, SEED, len(points))),
        "on_mode": float(np.mean(own.min(1) <= (ON_MODE_WITHIN * mixture.std) ** 2)),
        "accuracy": float(np.mean(likelihood.argmax(1) == condition)),
        "mode_entropy": -float(sum(p * np.log(p) for p in shares if p > 0)),
        "mode_coverage": float(np.mean(shares >= COVERED_SHARE / len(shares))),
        "at_bound": float(np.mean(np.abs(points).max(1) >= clip * (1 - 1e-6))),
    }


def measure(model: PointModel, sampling: Sampling, num_sets: int = 1) -> dict[str, float]:
    """Draw NUM_POINTS of every condition, `num_sets` times over, and judge them."""
    return _average(
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


def _average(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    listed = list(rows)
    return {name: float(np.mean([row[name] for row in listed])) for name in listed[0]}


def exact_quality(mixture: Mixture, sampling: Sampling) -> dict[str, float]:
    """`measure` with the exact score: what the sampler alone costs."""
    return measure(PointModel.exact(mixture), sampling)


def truth_quality(mixture: Mixture, num_sets: int) -> dict[str, float]:
    """What independent samples of the target itself get: what a perfect sampler would get."""
    rng = np.random.default_rng((SEED, 1, _REFERENCE_STREAM))
    conditions = range(mixture.num_conditions)
    return _average(
        quality(mixture, [mixture.draw(c, NUM_POINTS, rng) for c in conditions], clip=np.inf)
        for _ in range(num_sets)
    )


def reference_quality(mixture: Mixture, num_sets: int) -> dict[str, float]:
    """What further draws of `reference` get: the resolution of the measure."""
    return _average(
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
