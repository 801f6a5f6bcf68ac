"""What a simulated robot must offer to be driven, played and measured like every other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

import client.sims
from client.action_limits import ActionLimits
from client.specs import PolicySpec

StartT = TypeVar("StartT")


class Simulation(Protocol[StartT]):
    """A robot and its surroundings in simulated time; `reset` it, then `step` it tick by tick.

    Attributes:
        ticks: control ticks since `reset`.
    """

    ticks: int

    def sample_start(self, rng: np.random.Generator) -> StartT:
        """Draw where an episode begins, the same for all tasks; the present state may be lost."""
        ...

    def reset(self, start: StartT) -> None:
        """Begin an episode there; exact: the same actions give the same trajectory."""
        ...

    def observation(self) -> dict[str, npt.NDArray[Any]]:
        """What a policy sees now: one array per name of the specification, *without* obs_steps."""
        ...

    def step(self, action: npt.NDArray[Any]) -> None:
        """Advance one control period; action: float [action_dim], within its limits."""
        ...

    def safe_action(self) -> npt.NDArray[np.float32]:
        """What to do in this tick when no action is due: float32 [action_dim]."""
        ...

    def outcome(self, task: str) -> str | None:
        """How the episode ended for somebody who was asked for `task`; None while it is open.

        "asked": it was done; "opposite": its opposite, or what another instruction asks for;
        "other": something else; "timeout": nothing.
        """
        ...

    def scores(self) -> dict[str, float]:
        """Task → how well it has been done so far, 0..1; empty if there is the outcome only."""
        ...


@dataclass(frozen=True)
class SimulatedRobot:
    """One kind of simulated robot: `ROBOT` of `client.sims.NAME.robot`.

    Attributes:
        spec: what its policies take and give; spec.task is NAME.
        tasks: what it can be asked for.
        episode_ticks: after so many an episode is over at the latest.
        max_change: of each action dimension from one tick to the next; see `ActionLimits`.
        simulation: makes one.
        phrasings: name of a list ("known", "validation", "unseen") or path of a JSON file → task →
            what people say.
    """

    spec: PolicySpec
    tasks: tuple[str, ...]
    episode_ticks: int
    max_change: tuple[float, ...]
    simulation: Callable[[], Simulation[Any]]
    phrasings: Callable[[str], dict[str, list[str]]]

    @property
    def limits(self) -> ActionLimits:
        """Of whoever drives it."""
        return ActionLimits(self.spec.action_minimum, self.spec.action_maximum, self.max_change)


def robot_names() -> list[str]:
    """Every robot there is: the packages beside this module."""
    return sorted(found.name for found in iter_modules(client.sims.__path__) if found.ispkg)


def load_robot(name: str) -> SimulatedRobot:
    """A robot by name; only its own simulator is imported.

    Raises:
        ValueError: there is none of this name.
        ModuleNotFoundError: its simulator is not installed.
    """
    if name not in robot_names():
        expected = ", ".join(robot_names())
        msg = f"robot: expected one that is simulated here ({expected}), got {name!r}"
        raise ValueError(msg)
    robot: SimulatedRobot = import_module(f"client.sims.{name}.robot").ROBOT
    return robot
