"""Training windows, against a slow obvious version."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.dataset import Demonstrations, cut_windows
from tests.policies import TINY_SPEC


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 9))
def test_windows_are_history_up_to_now_and_actions_from_now_on(lengths, obs_steps, horizon):
    array = dataclasses.replace(TINY_SPEC.observation["state"], shape=(obs_steps, 3))
    spec = dataclasses.replace(
        TINY_SPEC, observation={"state": array}, obs_steps=obs_steps, horizon=horizon, exec_steps=1
    )
    windows = cut_windows(np.cumsum(lengths), spec)
    index = 0
    for episode, length in enumerate(lengths):
        first = sum(lengths[:episode])
        for step in range(length):
            history = [first + max(step - obs_steps + 1 + i, 0) for i in range(obs_steps)]
            # actions[0] belongs to the newest observation
            future = [first + min(step + i, length - 1) for i in range(horizon)]
            assert windows.history[index].tolist() == history
            assert windows.future[index].tolist() == future
            assert windows.episode[index] == episode
            assert windows.history[index][-1] == windows.future[index][0]
            index += 1
    assert index == len(windows.episode)


@pytest.mark.parametrize("ends", [[3, 2, 5], [3, 4], [0, 5], []])
def test_inconsistent_recordings_are_refused(ends):
    with pytest.raises(ValueError, match="episode_ends"):
        Demonstrations(
            np.zeros((5, 3), np.float32),
            np.zeros((5, 2), np.float32),
            np.array(ends, np.int64),
            np.array(["a"] * len(ends)),
        )
