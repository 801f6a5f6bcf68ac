"""Which action is due at which instant (pure: it is told the time, it reads no clock)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from client.action_limits import ActionLimits
from client.errors import UnsafeActionError, UnsafeReason
from client.field_checks import integer, positive_seconds

_log = logging.getLogger(__name__)


class ActionBuffer:
    """The actions of the newest observation, each good for one control_period_s.

    ``actions[i]`` is for ``t_obs_s + i * control_period_s``, where t_obs_s is when its newest
    observation was made. A chunk of a newer observation replaces every action that has not been
    executed; one of an older (or the same) observation is discarded. A chunk that comes late
    serves only the actions that are not yet due. Beyond the horizon there is nothing.

    A chunk that breaks the robot's limits anywhere is not taken at all; one whose next action would
    change too much in one tick is thrown away then. Either way what is still due of the chunk
    before goes on.

    Attributes:
        discarded: chunks whose observation was not newer.
        rejected: chunks that broke the robot's limits, by the first reason that was found.
    """

    def __init__(self, limits: ActionLimits, *, horizon: int, control_period_s: float) -> None:
        """Start empty.

        Raises:
            ValueError: an argument is not greater than zero.
        """
        self._limits = limits
        self._shape = (integer("horizon", horizon, 1), limits.action_dim)
        self._period_s = positive_seconds("control_period_s", control_period_s)
        self.discarded = 0
        self.rejected: Counter[UnsafeReason] = Counter()
        self.clear()

    def clear(self) -> None:
        """Forget all actions, as at the start of an episode."""
        self._chunks: list[tuple[float, npt.NDArray[np.float32]]] = []  # t_obs_s; newest first
        self._newest_s = -math.inf

    def add(self, actions: npt.NDArray[Any], t_obs_s: float) -> bool:
        """Take over a chunk, float [horizon, action_dim].

        Returns:
            Whether it was taken; False if its observation is not newer than what is here.

        Raises:
            UnsafeActionError: misshaped, not finite or out of limits; what is here stays.
        """
        try:
            if actions.shape != self._shape:
                msg = f"actions: expected shape {self._shape}, got {actions.shape}"
                raise UnsafeActionError("shape", msg)
            safe = self._limits.check(actions)
        except UnsafeActionError as error:
            self._count(error)
            raise
        if not t_obs_s > self._newest_s:
            self.discarded += 1
            return False
        safe.flags.writeable = False
        self._chunks = [(t_obs_s, safe), *self._chunks[:1]]
        self._newest_s = t_obs_s
        return True

    def action_at(
        self, now_s: float, previous: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], float] | None:
        """What to command at `now_s`; None if nothing is due.

        The nearest action is taken, so that ticks that jitter by less than half a period neither
        skip one nor get one twice.

        Args:
            now_s: on the clock of t_obs_s.
            previous: what was commanded the tick before, [action_dim].

        Returns:
            The action, float32 [action_dim], read-only, and the t_obs_s of its chunk.
        """
        while self._chunks:
            t_obs_s, actions = self._chunks[0]
            index = math.floor((now_s - t_obs_s) / self._period_s + 0.5)
            if not 0 <= index < len(actions):
                break
            try:
                self._limits.check_change(previous, actions[index])
            except UnsafeActionError as error:
                self._count(error)
                del self._chunks[0]
            else:
                return actions[index], t_obs_s
        return None

    def _count(self, error: UnsafeActionError) -> None:
        if not self.rejected[error.reason]:  # not each of ten a second
            _log.warning("rejected, and from now on only counted: %s", error)
        self.rejected[error.reason] += 1
