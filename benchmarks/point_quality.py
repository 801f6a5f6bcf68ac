"""How good samples of a 2-D mixture are: distance to it, adherence to the condition, diversity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.mixtures import Mixture

SEED = 3
"""Of every evaluation; the bundled network was trained with seed 0."""
ON_MODE_WITHIN = 3.0
"""A sample is on a mode within so many standard deviations: 98.9% of the target itself are."""
COVERED_SHARE = 0.1
"""A mode is covered if it has this part of the samples it should have."""
_NUM_DIRECTIONS = 64
_REFERENCE_STREAM = 0x2EF

Points = npt.NDArray[np.float64]


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
        mode_entropy: of the shares of the condition's modes among the samples on a mode, in nats.
        mode_coverage: share of modes that have at least a tenth of the samples they should have.
        at_bound: share with a coordinate at the clipping bound.
    """
    return average(
        _quality_of(mixture, index, points, clip) for index, points in enumerate(samples)
    )


def _quality_of(mixture: Mixture, condition: int, points: Points, clip: float) -> dict[str, float]:
    squared = ((points[:, None] - mixture.means) ** 2).sum(-1)  # [n, all modes]
    condition_of = mixture.condition_of_mode
    mine = condition_of == condition
    own = squared[:, mine]
    on_mode = own.min(1) <= (ON_MODE_WITHIN * mixture.std) ** 2
    counts = np.bincount(own.argmin(1)[on_mode], minlength=own.shape[1])
    shares = counts[counts > 0] / max(1, counts.sum())
    # a condition's density, up to a factor; the nearest mode alone would ignore how many it has
    nearest = squared.min(1, keepdims=True)
    density = np.exp((nearest - squared) / (2 * mixture.std**2))
    likelihood = np.stack(
        [density[:, condition_of == c].mean(1) for c in range(mixture.num_conditions)], axis=1
    )
    return {
        "sw2": sliced_w2(points, reference(mixture, condition, SEED, len(points))),
        "on_mode": float(np.mean(on_mode)),
        "accuracy": float(np.mean(likelihood.argmax(1) == condition)),
        "mode_entropy": float(np.sum(shares * np.log(1 / shares))),
        "mode_coverage": float(np.mean(counts >= COVERED_SHARE * len(points) / len(counts))),
        "at_bound": float(np.mean(np.abs(points).max(1) >= clip * (1 - 1e-6))),
    }


def average(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Field by field."""
    listed = list(rows)
    return {name: float(np.mean([row[name] for row in listed])) for name in listed[0]}
