"""How many denoising steps a request gets: as many as are useful, fewer when time is short.

Pure arithmetic on durations; the clock is the engine's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.grids import GridName, make_timesteps
from models.samplers import SamplerName, sampler_coefficients
from policy_server.cost_model import CostModel


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


@dataclass(frozen=True)
class Plan:
    """The denoising steps still to do, most noisy first.

    Attributes:
        timesteps: int64 [steps], strictly decreasing.
        coefficients: float64 [steps, 4], (a, b, c, d) of each update; the last goes to
            alpha_bar = 1.
    """

    timesteps: npt.NDArray[np.int64]
    coefficients: npt.NDArray[np.float64]


class Planner:
    """Allocates denoising steps to requests."""

    def __init__(
        self,
        steps: StepRange,
        cost: CostModel,
        alpha_bar: npt.NDArray[np.float64],
        grid: GridName,
        sampler: SamplerName,
    ) -> None:
        self.steps = steps
        self._cost = cost
        self._alpha_bar = alpha_bar
        self._grid = grid
        self._sampler = sampler
        self._cached_plan = lru_cache(maxsize=256)(self._make_plan)

    def service_s(self, num_steps: int, network_rows: int) -> float:
        """Predicted time from starting a request to handing over its reply."""
        cost = self._cost
        denoise_s = num_steps * cost.call(network_rows).estimate_s
        return cost.encode.estimate_s + denoise_s + cost.finish.estimate_s

    def remaining_s(self, num_steps: int, network_rows: int) -> float:
        """Predicted time to finish a request that is encoded and has `num_steps` to go."""
        return self.service_s(num_steps, network_rows) - self._cost.encode.estimate_s

    def affordable_steps(self, time_s: float, network_rows: int) -> int:
        """Steps of an encoded request that fit into `time_s`, its reply included; may be ≤ 0."""
        cost = self._cost
        steps = (time_s - cost.finish.estimate_s) / cost.call(network_rows).estimate_s
        return math.floor(max(min(steps, self.steps.max_steps), -1))

    def elastic_steps(self, time_s: float, network_rows: int, executed: int) -> int:
        """Steps still to do for an encoded elastic request.

        Args:
            time_s: left until its deadline; may be negative.
            network_rows: of one of its steps.
            executed: steps already done.

        Returns:
            As many as fit, at most up to `max_useful_steps` in all, at least up to `min_steps` in
            all, and never 0: a chunk in mid-flight is finished, late if need be.
        """
        fewest = max(self.steps.min_steps - executed, 1)
        most = max(self.steps.max_useful_steps - executed, fewest)
        return min(max(self.affordable_steps(time_s, network_rows), fewest), most)

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
        return self._cached_plan(min(num_steps, start + 1), start, eta, before)

    def _make_plan(self, num_steps: int, start: int, eta: float, before: int | None) -> Plan:
        timesteps = make_timesteps(self._grid, num_steps, self._alpha_bar, start)
        return Plan(
            timesteps,
            sampler_coefficients(self._sampler, self._alpha_bar, timesteps, eta, before),
        )
