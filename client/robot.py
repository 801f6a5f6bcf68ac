"""What a robot must offer to be driven by the control loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

from client.action_limits import ActionLimits


class Robot(Protocol):
    """A robot, real or simulated, as the control loop sees it.

    Each control tick calls `observe`, then `safe_action` if no action is due (and at the first tick
    of an episode), then `apply`. None may block for longer than a fraction of control_period_s.
    Arrays that are returned may be reused by the robot: the loop keeps copies.
    """

    @property
    def limits(self) -> ActionLimits:
        """What an action of a policy must keep to; read when a loop is made."""
        ...

    def observe(self) -> Mapping[str, npt.NDArray[Any]]:
        """Newest observation: one array per name *without* the obs_steps axis (the loop stacks)."""
        ...

    def apply(self, action: npt.NDArray[Any]) -> None:
        """Command one action, float32 [action_dim], in the robot's units, for the coming tick."""
        ...

    def safe_action(self) -> npt.NDArray[Any]:
        """What to do when no action is due, float32 [action_dim]: e.g. hold the present pose.

        It is the robot's own, so nobody checks it.
        """
        ...
