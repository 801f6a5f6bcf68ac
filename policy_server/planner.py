"""Plans: which timesteps a request visits, and with which coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.grids import GridName, make_timesteps
from models.guidance import EVERYWHERE, Interval, acts_at
from models.samplers import SamplerName, sampler_coefficients

_PLANS_KEPT = 4096
"""A plan takes some 100 µs to make, and the same ones are wanted again and again."""
_LONGEST_KEPT = 64
"""Steps; longer ones would fill the memory, and take far longer to execute than to make."""


@dataclass(frozen=True)
class StepRange:
    """Step counts that make sense for a checkpoint.

    Attributes:
        min_steps: fewer give no usable chunk.
        max_useful_steps: more do not raise success.
        max_steps: T; a request for more is an error.
    """

    min_steps: int
    max_useful_steps: int
    max_steps: int

    def __post_init__(self) -> None:
        """Check the order."""
        if not 1 <= self.min_steps <= self.max_useful_steps <= self.max_steps:
            msg = (
                "expected 1 <= min_steps <= max_useful_steps <= T, "
                f"got {self.min_steps}, {self.max_useful_steps}, {self.max_steps}"
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class Plan:
    """The denoising steps still to do, most noisy first.

    Attributes:
        timesteps: int64 [steps], strictly decreasing.
        coefficients: float64 [steps, 4], (a, b, c, d) of each update; the last goes to
            alpha_bar = 1.
        acts: bool [steps], whether guidance does.
    """

    timesteps: npt.NDArray[np.int64]
    coefficients: npt.NDArray[np.float64]
    acts: npt.NDArray[np.bool_]


class Planner:
    """Spreads step counts over timesteps for one checkpoint."""

    def __init__(
        self,
        steps: StepRange,
        alpha_bar: npt.NDArray[np.float64],
        grid: GridName,
        sampler: SamplerName,
        guidance_interval: Interval = EVERYWHERE,
    ) -> None:
        self.steps = steps
        self._guidance_interval = guidance_interval
        self._alpha_bar = alpha_bar
        self._grid = grid
        self._sampler = sampler
        self._cached_plan = lru_cache(maxsize=_PLANS_KEPT)(self._make_plan)

    def plan(self, num_steps: int, start: int, eta: float, before: int | None = None) -> Plan:
        """Spread `num_steps` over the timesteps from `start` down to clean data.

        Args:
            num_steps: at least 1; more than start + 1 are cut to that.
            start: timestep of the sample now.
            eta: 0 deterministic .. 1 ancestral; 0 for a sampler that has no such choice.
            before: the timestep executed last, if any.
        """
        if self._sampler != "dpmpp_2m":
            before = None  # others do not look back, so their plans need not be told apart
        steps = min(num_steps, start + 1)
        make = self._cached_plan if steps <= _LONGEST_KEPT else self._make_plan
        return make(steps, start, eta, before)

    def _make_plan(self, num_steps: int, start: int, eta: float, before: int | None) -> Plan:
        timesteps = make_timesteps(self._grid, num_steps, self._alpha_bar, start)
        return Plan(
            timesteps,
            sampler_coefficients(self._sampler, self._alpha_bar, timesteps, eta, before),
            acts_at(self._guidance_interval, self._alpha_bar[timesteps]),
        )
