"""Push-T in simulated time: starts, control ticks, observations, and how far a goal was covered.

Physics and coverage are those of `gym_pusht.envs.pusht.PushTEnv` with its default damping and
centre of mass, on which published scores rest. What is added: the goal is one of several, and the
coverage of every goal's outline is followed in every episode.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from client.sims.pusht.spec import FULL_COVERAGE, GOALS, TASKS, TIMEOUT_TICKS

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else it greets on stdout when imported
from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely

_FINGER_START = (50, 450)
_BLOCK_START = (100, 400)


@dataclass(frozen=True)
class PushTStart:
    """What an episode begins with, as `PushTEnv` is told; says nothing about the goal.

    The environment moves the block first and then turns it about its centre of mass, so the block's
    own x, y (the middle of the bar's outer edge) come to lie elsewhere unless the angle is 0.

    Attributes:
        finger: x, y in pixels.
        block: x, y in pixels, before it is turned.
        angle: of the block, in radians.
    """

    finger: tuple[float, float]
    block: tuple[float, float]
    angle: float


class _Board(PushTEnv):  # type: ignore[misc]  # gym_pusht has no types
    """`PushTEnv` that measures the coverage of every goal at once, each as the original does.

    Attributes:
        coverage: task → share of its outline that is covered now.
    """

    def __init__(self) -> None:
        super().__init__(obs_type="state")
        self._setup()
        self._outlines = {
            task: pymunk_to_shapely(self.get_goal_pose_body(np.array(goal)), self.block.shapes)
            for task, goal in GOALS.items()
        }
        self._areas = {task: outline.area for task, outline in self._outlines.items()}
        self.coverage: Mapping[str, float] = {}

    def _get_coverage(self) -> float:
        block = pymunk_to_shapely(self.block, self.block.shapes)
        self.coverage = {
            task: outline.intersection(block).area / self._areas[task]
            for task, outline in self._outlines.items()
        }
        return self.coverage[TASKS[0]]


class PushT:
    """One board; `reset`, then `step` and `observation` once per control tick.

    Attributes:
        board: the environment that is driven.
        ticks: control ticks since `reset`.
    """

    def __init__(self) -> None:
        self.board: Any = _Board()
        self.reset(PushTStart((100.0, 100.0), (256.0, 300.0), 0.0))

    def sample_start(self, rng: np.random.Generator) -> PushTStart:
        """Draw a start as `PushTEnv.reset(seed=s)` does, if `rng` is `default_rng(s)`."""
        finger_x, finger_y = (float(rng.integers(*_FINGER_START)) for _ in range(2))
        block_x, block_y = (float(rng.integers(*_BLOCK_START)) for _ in range(2))
        return PushTStart(
            (finger_x, finger_y), (block_x, block_y), float(rng.uniform(-np.pi, np.pi))
        )

    def reset(self, start: PushTStart) -> None:
        """Put finger and block into a start; exact: the same actions give the same trajectory."""
        state = [*start.finger, *start.block, start.angle]
        self.board.reset(options={"reset_to_state": state})
        self.ticks = 0
        self._best = dict.fromkeys(TASKS, 0.0)
        self._target = np.array(self.board.agent.position, dtype=np.float32)

    def step(self, action: npt.NDArray[Any]) -> None:
        """Advance one control period.

        Args:
            action: float [2], x and y in pixels of where the finger shall go, each in 0..512; the
                caller checks.
        """
        self.board.step(np.asarray(action, np.float64))
        self.ticks += 1
        self._best = {task: max(self._best[task], now) for task, now in self.board.coverage.items()}
        self._target = np.array(action, dtype=np.float32)

    def observation(self) -> dict[str, npt.NDArray[np.float32]]:
        """The present state: {"state": float32 [6]}, pixels, then sine and cosine of the angle."""
        finger, block = self.board.agent.position, self.board.block
        angle = block.angle
        state = [*finger, *block.position, np.sin(angle), np.cos(angle)]
        return {"state": np.array(state, dtype=np.float32)}

    def safe_action(self) -> npt.NDArray[np.float32]:
        """Go on to the last target and stay there: float32 [2]; at first, where the finger is."""
        return self._target.copy()

    def scores(self) -> dict[str, float]:
        """Task → largest coverage of its outline so far over that of a solved one, at most 1.

        Coverage counts from the first tick on, as in published scores.
        """
        return {task: min(1.0, best / FULL_COVERAGE) for task, best in self._best.items()}

    def outcome(self, task: str) -> Literal["asked", "opposite", "timeout"] | None:
        """How the episode ended for somebody who was asked for `task`; None while it is open.

        It ends when the asked outline is covered, or after `TIMEOUT_TICKS`: then it is "opposite"
        if another outline has been covered meanwhile.
        """
        if self._best[task] > FULL_COVERAGE:
            return "asked"
        if self.ticks < TIMEOUT_TICKS:
            return None
        return "opposite" if max(self._best.values()) > FULL_COVERAGE else "timeout"
