"""The desk in simulated time: starts, exact resets, and who wins an episode."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import (
    DESK_SPEC,
    FIXTURES,
    HAND_START_HIGH,
    HAND_START_LOW,
    OPPOSITE,
    STATE_NAMES,
    TASKS,
    TIMEOUT_TICKS,
    Fixture,
)

STARTS = 25
HOLD = np.array([0.0, 0.0, 0.0, -1.0])


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk()


@pytest.fixture(scope="module")
def starts(desk: Desk) -> list[DeskStart]:
    return [desk.sample_start(np.random.default_rng(seed)) for seed in range(STARTS)]


def play(desk: Desk, start: DeskStart, actions: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    desk.reset(start)
    states = [desk.observation()["state"]]
    for action in actions:
        desk.step(action)
        states.append(desk.observation()["state"])
    return np.array(states)


def test_the_specification_agrees_with_the_numbers_of_the_task() -> None:
    assert DESK_SPEC.request_period_s == pytest.approx(0.1)
    assert DESK_SPEC.observation["state"].shape == (2, 13)
    assert len(STATE_NAMES) == 13
    assert pytest.approx(2.5) == TIMEOUT_TICKS * DESK_SPEC.control_period_s
    assert all(OPPOSITE[OPPOSITE[task]] == task != OPPOSITE[task] for task in TASKS)
    assert {t for f in FIXTURES for t in (f.low_task, f.high_task)} == set(TASKS)


def test_starts_cover_their_ranges_and_no_more(desk: Desk, starts: list[DeskStart]) -> None:
    fractions, hands = [], []
    for start in starts:
        desk.reset(start)
        fractions.append(desk.joint_fractions())
        hands.append(desk.observation()["state"][:3])
    assert np.min(fractions) >= 0.25
    assert np.max(fractions) <= 0.75
    assert (np.ptp(fractions, axis=0) > 0.3).all()
    assert (np.array(hands) >= np.array(HAND_START_LOW) - 0.002).all()
    assert (np.array(hands) <= np.array(HAND_START_HIGH) + 0.002).all()
    offsets = np.array([s.places for s in starts])[..., :2] - [f.place for f in FIXTURES]
    assert np.abs(offsets).max(axis=(0, 2)) == pytest.approx([0.05, 0.03, 0.05], rel=0.15)
    assert (np.abs(offsets).max(axis=(0, 2)) <= [0.05, 0.03, 0.05]).all()


def test_holding_still_for_the_whole_time_decides_nothing(
    desk: Desk, starts: list[DeskStart]
) -> None:
    for start in starts[:10]:
        desk.reset(start)
        before = desk.joint_fractions()
        for _ in range(TIMEOUT_TICKS):
            assert desk.outcome("lever_up") is None
            desk.step(HOLD)
        assert np.abs(desk.joint_fractions() - before).max() < 1e-3
        assert {desk.outcome(task) for task in TASKS} == {"timeout"}


def test_the_same_actions_give_the_same_trajectory_bit_for_bit(starts: list[DeskStart]) -> None:
    desk = Desk()
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (60, 4))
    actions = (actions + np.array([-0.3, 0.3, -0.5, 0.0])).clip(-1, 1)
    first = play(desk, starts[0], actions)
    play(desk, starts[1], actions[::-1])
    np.testing.assert_array_equal(play(desk, starts[0], actions), first)
    np.testing.assert_array_equal(play(Desk(), starts[0], actions), first)


def test_a_start_is_at_rest_and_the_same_from_the_same_seed(
    desk: Desk, starts: list[DeskStart]
) -> None:
    again = desk.sample_start(np.random.default_rng(3))
    np.testing.assert_array_equal(again.physics, starts[3].physics)
    np.testing.assert_array_equal(again.places, starts[3].places)
    desk.reset(again)
    assert desk.data.time == 0
    assert not desk.data.qvel.any()


def test_an_action_of_one_moves_the_command_by_a_centimetre(
    desk: Desk, starts: list[DeskStart]
) -> None:
    states = play(desk, starts[0], np.array([[1.0, 0.0, 0.0, -1.0]] * 4 + [HOLD] * 40))
    np.testing.assert_allclose(states[-1, :3] - states[0, :3], [0.04, 0.0, 0.0], atol=2e-3)


def test_what_is_observed_of_each_object_follows_its_place_and_its_joint(
    desk: Desk, starts: list[DeskStart]
) -> None:
    for start in starts[:5]:
        desk.reset(start)
        (drawer, lever, faucet), seen = start.places, desk.observation()["state"][4:].reshape(3, 3)
        slide, height, angle = desk.joint_fractions() * [0.16, 0.1, 3.14] - [0.16, 0.1, 1.57]
        np.testing.assert_allclose(seen[0], drawer + np.array([0.0, slide - 0.16, 0.09]), atol=1e-6)
        np.testing.assert_allclose(
            seen[1], lever + np.array([0.0, -0.216, 0.15 + height]), atol=1e-6
        )
        tip = np.array([0.15 * np.sin(angle), -0.15 * np.cos(angle), 0.124])
        np.testing.assert_allclose(seen[2], faucet + tip, atol=1e-6)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda f: f.body)
def test_85_percent_of_the_travel_decides_and_the_first_end_stays(
    desk: Desk, starts: list[DeskStart], fixture: Fixture
) -> None:
    low, high = fixture.low_task, fixture.high_task
    joint = desk.model.joint(fixture.joint)
    for fraction, first in ((0.84, None), (0.86, high), (0.16, None), (0.14, low)):
        desk.reset(starts[0])
        desk.data.qpos[joint.qposadr[0]] = np.interp(fraction, [0, 1], joint.range)
        desk.step(HOLD)
        if first is None:
            assert desk.outcome(high) is None
            continue
        desk.data.qpos[joint.qposadr[0]] = np.interp(1 - fraction, [0, 1], joint.range)
        desk.step(HOLD)
        verdicts = {task: desk.outcome(task) for task in TASKS}
        assert verdicts.pop(first) == "asked"
        assert verdicts.pop(OPPOSITE[first]) == "opposite"
        assert set(verdicts.values()) == {"other"}
