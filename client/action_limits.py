"""What a robot lets itself be told: no action of a policy reaches it unchecked (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from client.errors import UnsafeActionError
from client.field_checks import all_finite, number

_ROUNDING = 1e-5  # relative to a limit; some 80 units in the last place of a float32

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ActionLimits:
    """Limits of each action dimension, in the robot's units.

    A server gives actions within the range that its policy was trained on. What is beyond a limit
    is therefore no overshoot to be clipped: it comes from another robot's policy, wrong units or a
    broken server, and clipped it would be a command of full strength. So it is rejected; only what
    float32 rounding explains is clipped, so that a command is within the limits exactly.

    Attributes:
        minimum: least value.
        maximum: largest value.
        max_change: largest change from one control tick to the next, the step from the safe action
            to the first one of a chunk included, which is that chunk's motion during the latency
            of its request; math.inf where a jump does no harm.
    """

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    max_change: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that there is a range for each dimension."""
        if not len(self.minimum) == len(self.maximum) == len(self.max_change) > 0:
            raise ValueError("ActionLimits: expected equal, non-zero lengths")
        for low, high, change in zip(self.minimum, self.maximum, self.max_change, strict=True):
            number("ActionLimits.minimum", low)
            number("ActionLimits.maximum", high, low)
            if not change > 0:
                msg = f"ActionLimits.max_change: expected more than 0, got {change}"
                raise ValueError(msg)

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return len(self.minimum)

    def check(self, actions: npt.NDArray[Any]) -> Float32:
        """Actions, float [horizon, action_dim], within the limits exactly.

        Raises:
            UnsafeActionError: "finite" or "limits".
        """
        if not all_finite(actions):
            raise UnsafeActionError("finite", "actions: expected finite numbers, got NaN or inf")
        low, high, _, rounding = self._arrays
        clipped: Float32 = np.clip(actions, low, high).astype(np.float32)
        wrong = np.abs(actions - clipped) > rounding
        if wrong.any():
            i, dim = np.argwhere(wrong)[0]
            msg = (
                f"actions[{i}, {dim}]: expected {self.minimum[dim]:g}..{self.maximum[dim]:g}, as "
                f"the robot declares, got {actions[i, dim]:g}; is the policy one for this robot?"
            )
            raise UnsafeActionError("limits", msg)
        return clipped

    def check_change(self, previous: npt.NDArray[Any], action: npt.NDArray[Any]) -> None:
        """Whether `action` may follow what was commanded one tick before; both [action_dim].

        Raises:
            UnsafeActionError: "change".
        """
        _, _, max_change, _ = self._arrays
        wrong = ~(np.abs(action - previous) <= max_change)
        if wrong.any():
            dim = int(np.argmax(wrong))
            msg = (
                f"action[{dim}]: expected a change of at most {self.max_change[dim]:g} in one "
                f"tick, as the robot declares, got {previous[dim]:g} → {action[dim]:g}"
            )
            raise UnsafeActionError("change", msg)

    @cached_property
    def _arrays(self) -> tuple[Float32, Float32, Float32, Float32]:
        """Minimum, maximum, max_change, and what rounding may add to limits, [action_dim] each."""
        low, high, change = (
            np.array(limit, np.float32) for limit in (self.minimum, self.maximum, self.max_change)
        )
        rounding = np.float32(_ROUNDING) * np.maximum(np.abs(low), np.abs(high))
        return low, high, change * np.float32(1 + _ROUNDING), rounding
