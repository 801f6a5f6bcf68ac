"""client/history.py: what a policy sees of the past."""

from __future__ import annotations

import numpy as np
import pytest

from client.errors import InvalidRequestError
from client.history import ObservationHistory
from client.specs import PolicySpec


def observed(tick: float) -> dict[str, np.ndarray]:
    return {"state": np.array([tick], np.float32)}


@pytest.mark.parametrize(
    ("ticks", "expected"),
    [
        ([0], [0, 0, 0]),  # the first is repeated at the start
        ([0, 1], [0, 0, 1]),
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2, 3], [1, 2, 3]),
        ([0, 1, 2, 5], [2, 2, 5]),  # ticks 3 and 4 were skipped
        ([0, 1, 2, 4], [2, 2, 4]),
        ([0, 1, 2, 4, 5], [2, 4, 5]),
        ([0, 9, 10], [0, 9, 10]),
    ],
)
def test_oldest_first_and_a_period_apart(
    spec: PolicySpec, ticks: list[int], expected: list[int]
) -> None:
    history = ObservationHistory(spec)
    for tick in ticks:
        history.add(tick, observed(tick))
    stacked = history.stacked()["state"]
    assert stacked[:, 0].tolist() == expected
    spec.validate_observation(history.stacked())


def test_a_robot_may_reuse_its_arrays(spec: PolicySpec) -> None:
    history = ObservationHistory(spec)
    observation = observed(0)
    for tick in range(3):
        observation["state"][0] = tick
        history.add(tick, observation)
    assert history.stacked()["state"][:, 0].tolist() == [0, 1, 2]


def test_clear(spec: PolicySpec) -> None:
    history = ObservationHistory(spec)
    history.add(0, observed(5))
    history.clear()
    with pytest.raises(InvalidRequestError):
        history.stacked()
    history.add(0, observed(7))
    assert history.stacked()["state"][:, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    "observation",
    [
        {},
        {"state": np.zeros(2, np.float32)},
        {"state": np.zeros((3, 1), np.float32)},
        {"state": np.zeros(1)},
        {"state": np.zeros(1, np.float32), "image": np.zeros(1, np.uint8)},
    ],
)
def test_a_robot_that_does_not_fit_the_policy_is_told_how(
    spec: PolicySpec, observation: dict[str, np.ndarray]
) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected .*'state': \(\(1,\), 'float32'\)"):
        ObservationHistory(spec).add(0, observation)
