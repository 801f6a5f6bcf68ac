"""The last obs_steps observations of a robot, as a policy wants them: oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from client.errors import InvalidRequestError
from client.specs import PolicySpec


class ObservationHistory:
    """Observations by control tick.

    A policy expects entries that are control_period_s apart. Where ticks were skipped there is no
    observation to show, so the one before stands in for it, as it does for whoever reads a sensor
    that has not been updated; before the first observation of an episode, that one does.
    """

    def __init__(self, spec: PolicySpec) -> None:
        """Start empty."""
        self._obs_steps = spec.obs_steps
        self._expected: dict[str, tuple[tuple[int, ...], str]] = {
            name: (array.shape[1:], array.dtype) for name, array in spec.observation.items()
        }
        self._entries: deque[tuple[int, dict[str, npt.NDArray[Any]]]] = deque(maxlen=spec.obs_steps)

    def clear(self) -> None:
        """Forget all, as at the start of an episode."""
        self._entries.clear()

    def add(self, tick_index: int, observation: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep a copy of what was observed at a tick; indices rise.

        Raises:
            InvalidRequestError: a name, shape or dtype is not what the policy wants.
        """
        copies = {name: np.array(array) for name, array in observation.items()}
        got = {name: (array.shape, array.dtype.name) for name, array in copies.items()}
        if got != self._expected:
            msg = f"robot.observe(): expected shapes and dtypes {self._expected}, got {got}"
            raise InvalidRequestError(msg)
        self._entries.append((tick_index, copies))

    def stacked(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays [obs_steps, …] that end with the newest observation.

        Raises:
            InvalidRequestError: nothing has been observed yet.
        """
        if not self._entries:
            raise InvalidRequestError("observation: expected at least one, got none so far")
        newest = self._entries[-1][0]
        steps = [self._at(newest - age) for age in reversed(range(self._obs_steps))]
        return {name: np.array([step[name] for step in steps]) for name in self._expected}

    def _at(self, tick_index: int) -> dict[str, npt.NDArray[Any]]:
        """The newest observation that is not newer than a tick, else the oldest."""
        seen = [observation for index, observation in self._entries if index <= tick_index]
        return seen[-1] if seen else self._entries[0][1]
