"""A simulated robot in wall-clock time: physics does not wait for whoever drives it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from client.sims.simulation import SimulatedRobot, Simulation

_TOLERANCE = 1e-6
_POOL_STREAM = 0x900
# A tick may be observed up to half a period late (the ticker skips it after that) or, by jitter, a
# little early; the border between "late" and "the next one" is put where neither comes.
_EARLY_TICKS = 0.25

Pool = Sequence[tuple[Any, str]]
"""Episodes: (start, task) each."""


class RealTimeRobot:
    """A `client.robot.Robot` that plays episodes in a simulation.

    Control ticks lie on a grid of wall-clock time that begins with the first `observe` of an
    episode. `apply` advances physics to the end of its tick. If ticks pass without an `apply`, the
    next `observe` makes up for them with the robot's safe action: a slow loop loses that time.

    Attributes:
        limits: of the simulated robot.
        simulation: what is driven, e.g. to take pictures of.
        task: what the present episode asks for.
        missed_ticks: ticks of the present episode in which nothing was applied.
    """

    def __init__(
        self,
        robot: SimulatedRobot,
        pool: Pool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin the first episode of the pool.

        Args:
            robot: which kind.
            pool: starts and tasks, made beforehand, since to sample a start may take milliseconds.
            clock: monotonic, in seconds.

        Raises:
            ValueError: the pool is empty.
        """
        if not pool:
            raise ValueError("RealTimeRobot.pool: expected at least one (start, task), got none")
        self._spec = robot.spec
        self.limits = robot.limits
        self._low = np.array(robot.spec.action_minimum) - _TOLERANCE
        self._high = np.array(robot.spec.action_maximum) + _TOLERANCE
        self._pool = list(pool)
        self._clock = clock
        self.simulation: Simulation[Any] = robot.simulation()
        self._next = 0
        self.begin_next()

    @property
    def outcome(self) -> str | None:
        """How the present episode ended; None while it runs."""
        return self.simulation.outcome(self.task)

    def begin(self, start: object, task: str) -> None:
        """Begin an episode; its first tick is the next `observe`."""
        self.task = task
        self.missed_ticks = 0
        self.simulation.reset(start)
        self._began_s: float | None = None
        self._ticks = 0

    def begin_next(self) -> None:
        """Begin the next episode of the pool, after the last one the first again."""
        self.begin(*self._pool[self._next])
        self._next = (self._next + 1) % len(self._pool)

    def observe(self) -> dict[str, npt.NDArray[Any]]:
        """What things look like now: one array per name, without the obs_steps axis."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        due = math.floor((now_s - self._began_s) / self._spec.control_period_s + _EARLY_TICKS)
        missed = max(0, due - self._ticks)
        self.missed_ticks += missed
        self._ticks += missed
        for _ in range(missed):
            if self.outcome is not None:
                break  # nothing more can change, and a long pause must not take long to make up for
            self.simulation.step(self.safe_action())
        return self.simulation.observation()

    def apply(self, action: npt.NDArray[Any]) -> None:
        """Do `action`, float32 [action_dim], for this tick.

        Raises:
            ValueError: its shape is wrong, or a number is not finite or not within the limits.
        """
        spec = self._spec
        action = np.asarray(action)
        if action.shape != (spec.action_dim,):
            msg = f"action: expected shape ({spec.action_dim},), got {action.shape}"
            raise ValueError(msg)
        if not ((action >= self._low) & (action <= self._high)).all():  # false for NaN too
            limits = list(zip(spec.action_minimum, spec.action_maximum, strict=True))
            msg = f"action: expected finite numbers within {limits}, got {action.tolist()}"
            raise ValueError(msg)
        self.simulation.step(action)
        self._ticks += 1

    def safe_action(self) -> npt.NDArray[np.float32]:
        """What the simulation says is safe, float32 [action_dim]."""
        return self.simulation.safe_action()


def sample_pool(robot: SimulatedRobot, tasks: Sequence[str], seed: int) -> Pool:
    """Sample one start for each of `tasks`, each from its own random stream."""
    simulation = robot.simulation()
    # a key of its own: recording spawns from the bare seed, and starts must not be those
    streams = np.random.SeedSequence((seed, _POOL_STREAM)).spawn(len(tasks))
    return [
        (simulation.sample_start(np.random.default_rng(stream)), task)
        for stream, task in zip(streams, tasks, strict=True)
    ]
