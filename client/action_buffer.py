"""Which action is due at which instant (pure: it is told the time, it reads no clock)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from client.field_checks import integer, positive_seconds


class ActionBuffer:
    """The actions of the newest observation, each good for one control_period_s.

    ``actions[i]`` is for ``t_obs_s + i * control_period_s``, where t_obs_s is when its newest
    observation was made. A chunk of a newer observation replaces every action that has not been
    executed; one of an older (or the same) observation is discarded. A chunk that comes late
    serves only the actions that are not yet due. Beyond the horizon there is nothing.

    Attributes:
        discarded: chunks whose observation was not newer.
    """

    def __init__(self, *, horizon: int, action_dim: int, control_period_s: float) -> None:
        """Start empty.

        Raises:
            ValueError: an argument is not greater than zero.
        """
        self._shape = (integer("horizon", horizon, 1), integer("action_dim", action_dim, 1))
        self._period_s = positive_seconds("control_period_s", control_period_s)
        self.discarded = 0
        self.clear()

    def clear(self) -> None:
        """Forget all actions, as at the start of an episode."""
        self._actions: npt.NDArray[Any] | None = None
        self._t_obs_s = -math.inf

    def add(self, actions: npt.NDArray[Any], t_obs_s: float) -> bool:
        """Take over a chunk, float [horizon, action_dim].

        Returns:
            Whether it was taken; False if its observation is not newer than what is here.

        Raises:
            ValueError: misshaped or not finite; what is here stays.
        """
        if actions.shape != self._shape:
            msg = f"actions: expected shape {self._shape}, got {actions.shape}"
            raise ValueError(msg)
        if not np.isfinite(actions).all():
            raise ValueError("actions: expected finite numbers, got NaN or infinity")
        if not t_obs_s > self._t_obs_s:
            self.discarded += 1
            return False
        self._actions = np.array(actions)
        self._actions.flags.writeable = False
        self._t_obs_s = t_obs_s
        return True

    def action_at(self, now_s: float) -> npt.NDArray[Any] | None:
        """The action that is due at `now_s`, [action_dim], read-only; None if there is none.

        The nearest is taken, so that ticks that jitter by less than half a period neither skip an
        action nor get one twice.
        """
        if self._actions is None:
            return None
        index = math.floor((now_s - self._t_obs_s) / self._period_s + 0.5)
        return self._actions[index] if 0 <= index < len(self._actions) else None
