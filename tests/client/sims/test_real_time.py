"""Simulated robots in wall-clock time, the desk for one, on a clock that the test moves."""

from __future__ import annotations

import numpy as np
import pytest

from client.sims.desk.experts import action_for
from client.sims.desk.robot import ROBOT
from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import CONTROL_PERIOD_S
from client.sims.real_time import RealTimeRobot, sample_pool

ALONG = np.array([1.0, 0.0, 0.0, 1.0], dtype=np.float32)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def tick(self, periods: float = 1.0) -> None:
        self.now_s += periods * CONTROL_PERIOD_S


@pytest.fixture(scope="module")
def pool() -> list[tuple[DeskStart, str]]:
    return list(sample_pool(ROBOT, ["lever_down", "drawer_open"], seed=11))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def robot(pool: list[tuple[DeskStart, str]], clock: Clock) -> RealTimeRobot:
    return RealTimeRobot(ROBOT, pool, clock=clock)


def test_on_time_it_is_the_simulation(
    robot: RealTimeRobot, clock: Clock, pool: list[tuple[DeskStart, str]]
) -> None:
    desk = Desk()
    desk.reset(pool[0][0])
    jitter = np.random.default_rng(0).uniform(0.0, 0.5, 50)
    for late in jitter:
        clock.tick(late)
        np.testing.assert_array_equal(robot.observe()["state"], desk.observation()["state"])
        robot.apply(ALONG)
        desk.step(ALONG)
        clock.tick(1 - late)
    assert robot.missed_ticks == 0


def test_physics_goes_on_while_nobody_drives(
    robot: RealTimeRobot, clock: Clock, pool: list[tuple[DeskStart, str]]
) -> None:
    robot.observe()
    robot.apply(ALONG)
    clock.tick(6)
    seen = robot.observe()["state"]
    assert robot.missed_ticks == 5

    desk = Desk()
    desk.reset(pool[0][0])
    desk.step(ALONG)
    for _ in range(5):
        desk.step(np.array([0.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(seen, desk.observation()["state"])


def test_an_episode_left_alone_times_out_and_a_long_pause_costs_no_more(
    robot: RealTimeRobot, clock: Clock
) -> None:
    robot.observe()
    clock.tick(199)
    robot.observe()
    assert robot.outcome is None
    clock.tick(1e6)
    robot.observe()
    assert robot.outcome == "timeout"
    assert robot.simulation.ticks == 200


def test_the_safe_action_holds_the_pose_and_the_grip(robot: RealTimeRobot, clock: Clock) -> None:
    np.testing.assert_array_equal(robot.safe_action(), [0, 0, 0, -1])
    for _ in range(10):
        robot.observe()
        robot.apply(ALONG)
        clock.tick()
    np.testing.assert_array_equal(robot.safe_action(), [0, 0, 0, 1])
    states = []
    for _ in range(60):
        states.append(robot.observe()["state"])
        robot.apply(robot.safe_action())
        clock.tick()
    assert np.abs(states[-1] - states[30]).max() < 2e-3


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([0, 0, 0], "shape"),
        ([[0, 0, 0, 0]], "shape"),
        ([0, np.nan, 0, 0], "finite"),
        ([0, np.inf, 0, 0], "finite"),
        ([0, 0, 1.01, 0], "within"),
        ([0, 0, 0, -1.01], "within"),
    ],
)
def test_a_bad_action_is_refused_and_moves_nothing(
    robot: RealTimeRobot, action: list[float], words: str
) -> None:
    before = robot.observe()["state"]
    with pytest.raises(ValueError, match=words):
        robot.apply(np.array(action, dtype=np.float32))
    np.testing.assert_array_equal(robot.observe()["state"], before)


def test_episodes_follow_each_other_from_the_pool(robot: RealTimeRobot, clock: Clock) -> None:
    tasks = []
    for _ in range(3):
        tasks.append(robot.task)
        while robot.outcome is None:
            robot.apply(action_for(robot.task, robot.observe()["state"]))
            clock.tick()
        assert robot.outcome == "asked"
        clock.tick(500)  # between episodes nothing is missed
        robot.begin_next()
        robot.observe()
        assert robot.outcome is None
        assert robot.missed_ticks == 0
    assert tasks == ["lever_down", "drawer_open", "lever_down"]


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RealTimeRobot(ROBOT, [])
