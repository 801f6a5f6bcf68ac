"""The desk as a robot in wall-clock time: physics does not wait for whoever drives it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import CONTROL_PERIOD_S, DESK_SPEC, Verdict

_TOLERANCE = 1e-6
_POOL_STREAM = 0x900
# A tick may be observed up to half a period late (the ticker skips it after that) or, by jitter, a
# little early; the border between "late" and "the next one" is put where neither comes.
_EARLY_TICKS = 0.25


class DeskRobot:
    """A `client.robot.Robot` that plays episodes on a simulated desk.

    Control ticks lie on a grid of wall-clock time that begins with the first `observe` of an
    episode. `apply` advances physics to the end of its tick. If ticks pass without an `apply`, the
    next `observe` makes up for them with the arm holding its pose: a slow loop loses that time.

    Attributes:
        task: what the present episode asks for.
        missed_ticks: ticks of the present episode in which nothing was applied.
    """

    def __init__(
        self,
        pool: Sequence[tuple[DeskStart, str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin the first episode of the pool.

        Args:
            pool: starts and tasks, made beforehand, since to sample a start takes milliseconds.
            clock: monotonic, in seconds.

        Raises:
            ValueError: the pool is empty.
        """
        if not pool:
            raise ValueError("DeskRobot.pool: expected at least one (start, task), got none")
        self._pool = list(pool)
        self._clock = clock
        self._desk = Desk()
        self._next = 0
        self.begin_next()

    @property
    def outcome(self) -> Verdict | Literal["timeout"] | None:
        """How the present episode ended; None while it runs."""
        return self._desk.outcome(self.task)

    @property
    def desk(self) -> Desk:
        """What is driven, e.g. to take pictures of."""
        return self._desk

    def begin(self, start: DeskStart, task: str) -> None:
        """Begin an episode; its first tick is the next `observe`."""
        self.task = task
        self.missed_ticks = 0
        self._desk.reset(start)
        self._began_s: float | None = None
        self._ticks = 0
        self._grip = -1.0

    def begin_next(self) -> None:
        """Begin the next episode of the pool, after the last one the first again."""
        self.begin(*self._pool[self._next])
        self._next = (self._next + 1) % len(self._pool)

    def observe(self) -> dict[str, npt.NDArray[np.float32]]:
        """What the desk looks like now: {"state": float32 [13]}."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        due = math.floor((now_s - self._began_s) / CONTROL_PERIOD_S + _EARLY_TICKS)
        missed = max(0, due - self._ticks)
        self.missed_ticks += missed
        self._ticks += missed
        for _ in range(missed):
            if self.outcome is not None:
                break  # nothing more can change, and a long pause must not take long to make up for
            self._desk.step(self.safe_action())
        return self._desk.observation()

    def apply(self, action: npt.NDArray[Any]) -> None:
        """Do `action`, float32 [4], for this tick.

        Raises:
            ValueError: its shape is wrong, or a number is not finite or not within the limits.
        """
        action = np.asarray(action)
        if action.shape != (DESK_SPEC.action_dim,):
            msg = f"action: expected shape ({DESK_SPEC.action_dim},), got {action.shape}"
            raise ValueError(msg)
        low = np.array(DESK_SPEC.action_minimum) - _TOLERANCE
        high = np.array(DESK_SPEC.action_maximum) + _TOLERANCE
        if not ((action >= low) & (action <= high)).all():  # false for NaN too
            limits = list(zip(DESK_SPEC.action_minimum, DESK_SPEC.action_maximum, strict=True))
            msg = f"action: expected finite numbers within {limits}, got {action.tolist()}"
            raise ValueError(msg)
        self._desk.step(action)
        self._ticks += 1
        self._grip = float(action[3])

    def safe_action(self) -> npt.NDArray[np.float32]:
        """Stay where you are, with the gripper as it was told last: float32 [4]."""
        return np.array([0.0, 0.0, 0.0, self._grip], dtype=np.float32)


def sample_pool(tasks: Sequence[str], seed: int) -> list[tuple[DeskStart, str]]:
    """Sample one start for each of `tasks`, each from its own random stream."""
    desk = Desk()
    # a key of its own: recording spawns from the bare seed, and starts must not be those
    streams = np.random.SeedSequence((seed, _POOL_STREAM)).spawn(len(tasks))
    return [
        (desk.sample_start(np.random.default_rng(stream)), task)
        for stream, task in zip(streams, tasks, strict=True)
    ]
