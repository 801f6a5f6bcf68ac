"""Demonstrations as training windows: an observation history and the chunk that follows it.

Windows are cut the way answers are used: actions[0] belongs to the instant of the newest
observation, so `actions[i]` is for t_obs + i·control_period_s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.specs import PolicySpec


@dataclass(frozen=True)
class Demonstrations:
    """Recorded episodes, one after the other.

    Attributes:
        state: float32 [steps, state_dim], the observation at each control tick.
        action: float32 [steps, action_dim], the expert's action at that observation.
        episode_ends: int64 [episodes], index after the last step of each episode.
        task: [episodes], name of the task shown.
    """

    state: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    episode_ends: npt.NDArray[np.int64]
    task: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        """Check that the arrays agree."""
        ends = self.episode_ends
        if not (
            len(ends) == len(self.task) > 0
            and np.all(np.diff(ends, prepend=0) > 0)
            and ends[-1] == len(self.state) == len(self.action)
        ):
            raise ValueError(
                "demonstrations: episode_ends must rise to the number of steps, one task each"
            )

    @classmethod
    def load(cls, path: Path, state: str = "state") -> Demonstrations:
        """Read a file made by `python -m client.sims.desk record`.

        Args:
            path: of the file.
            state: the array of the observation that is the state.

        Raises:
            ValueError: the recording has none of that name.
        """
        with np.load(path, allow_pickle=False) as file:
            if state not in file:
                msg = (
                    f"{path}: expected a recording with {state!r}, got {list(file)}; the state "
                    "is recorded by --robot desk, pictures by --robot desk_image of "
                    "python -m client.sims.desk record"
                )
                raise ValueError(msg)
            return cls(file[state], file["action"], file["episode_ends"], file["task"])


@dataclass(frozen=True)
class Windows:
    """Index arrays that cut every window out of the step arrays.

    Attributes:
        history: int64 [windows, obs_steps], oldest first; the first step repeats at the start.
        future: int64 [windows, horizon]; the last step repeats at the end.
        episode: int64 [windows].
    """

    history: npt.NDArray[np.int64]
    future: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]


def cut_windows(episode_ends: npt.NDArray[np.int64], spec: PolicySpec) -> Windows:
    """One window for every recorded step.

    Args:
        episode_ends: int64 [episodes].
        spec: gives obs_steps and horizon.

    Returns:
        Windows that never cross an episode's ends.
    """
    lengths = np.diff(episode_ends, prepend=0)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    first, last = (episode_ends - lengths)[episode], episode_ends[episode] - 1
    now = np.arange(len(episode))
    past = np.arange(-spec.obs_steps + 1, 1)
    history = np.maximum(now[:, None] + past, first[:, None])
    future = np.minimum(now[:, None] + np.arange(spec.horizon), last[:, None])
    return Windows(history, future, episode)
