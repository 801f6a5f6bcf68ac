"""Push-T in simulated time: the physics of the recordings, the coverage of every goal, the end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gym_pusht.envs.pusht import PushTEnv

from client.sims.pusht.simulation import PushT, PushTStart
from client.sims.pusht.spec import GOALS, TASKS

CENTRE_OF_MASS = 45.0
"""Of the block, in pixels along its stem, from the middle of the bar's outer edge."""


@pytest.fixture
def pusht() -> PushT:
    return PushT()


def start_at(finger: tuple[float, float], x: float, y: float, angle: float) -> PushTStart:
    """The start after which the block's own x and y are these."""
    sine, cosine = math.sin(angle), math.cos(angle)
    block = (x - CENTRE_OF_MASS * sine, y - CENTRE_OF_MASS + CENTRE_OF_MASS * cosine)
    return PushTStart(finger, block, angle)


def moved_in_its_frame(x: float, y: float, angle: float, along: float) -> tuple[float, float]:
    return x + along * math.cos(angle), y + along * math.sin(angle)


RECORDED = {  # x and y of finger and block, angle; targets; the same five numbers after them
    "pusht_cchi_v7_replay, episode 43": (
        (374.0, 370.0, 399.5562134, 415.6956787, 1.4302376509),
        "396 390 396 378 395 369 393 367 393 364 393 361 393 360 394 354 400 339 406 332 411 326 "
        "421 324 428 326",
        (417.4228210, 327.9906311, 422.9338379, 433.7658691, 1.8105049133),
    ),
    "pusht_keypoint_x356_y356, episode 2": (
        (218.0, 65.0, 172.0, 122.0, -3.2833712101),
        "195 48 179 69 173 74 173 74 171 83 168 108 167 146 172 193 181 233 188 258 205 279 338 "
        "202 345 155",
        (284.5986633, 208.0493774, 97.7556152, 191.5412598, -2.4781713486),
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_people_did_leads_where_it_led_them(pusht: PushT, name: str) -> None:
    before, targets, after = RECORDED[name]
    pusht.reset(start_at(before[:2], *before[2:]))
    first = pusht.observation()["state"]
    np.testing.assert_allclose(first[:4], before[:4], atol=1e-3)
    for target in np.array(targets.split(), np.float32).reshape(-1, 2):
        pusht.step(target)
    state = pusht.observation()["state"]
    np.testing.assert_allclose(state[:4], after[:4], atol=0.01)
    np.testing.assert_allclose(state[4:], [math.sin(after[4]), math.cos(after[4])], atol=1e-4)
    assert np.abs(state[2:] - first[2:]).max() > 10.0  # the block was pushed


@pytest.mark.parametrize("seed", [0, 100_000, 2**62 + 1])
def test_a_seed_starts_where_the_environment_starts_and_goes_where_it_goes(
    pusht: PushT, seed: int
) -> None:
    """Also the coverage of each goal is the environment's own, with its goal set to that one."""
    env = PushTEnv()
    seen, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    pusht.reset(pusht.sample_start(rng))
    best = dict.fromkeys(TASKS, 0.0)
    for _ in range(30):
        state = pusht.observation()["state"]
        np.testing.assert_array_equal(state[:4], seen[:4].astype(np.float32))
        np.testing.assert_allclose(state[4:], [np.sin(seen[4]), np.cos(seen[4])], atol=1e-6)
        action = rng.uniform(100, 400, 2).astype(np.float32)
        pusht.step(action)
        seen = env.step(action)[0]
        for task, goal in GOALS.items():
            env.goal_pose = np.array(goal)
            best[task] = max(best[task], env._get_coverage())
    assert max(best.values()) > 0
    assert pusht.scores() == {task: min(1.0, value / 0.95) for task, value in best.items()}


FAR = (20.0, 20.0)
STAY = np.array(FAR, np.float32)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("along", [0.0, 5.0, 10.0, 30.0])
def test_the_score_of_a_shifted_block_is_the_overlap_of_two_bars(
    pusht: PushT, task: str, along: float
) -> None:
    """The T is a bar of 120 × 30 and a stem of 30 × 90; shifted along the bar both lose area."""
    x, y, angle = GOALS[task]
    pusht.reset(start_at(FAR, *moved_in_its_frame(x, y, angle, along), angle))
    pusht.step(STAY)
    expected = (30 * (120 - along) + 90 * (30 - along)) / 6300
    assert pusht.scores()[task] == pytest.approx(min(1, expected / 0.95), abs=1e-6)
    assert (pusht.outcome(task) == "asked") == (along == 0.0)
    (other,) = set(TASKS) - {task}
    assert pusht.scores()[other] < 0.5
    assert pusht.outcome(other) is None


def test_the_score_is_of_the_best_tick_and_a_new_episode_begins_without(pusht: PushT) -> None:
    pusht.reset(start_at((256.0, 200.0), *GOALS["middle"]))
    pusht.step(np.array([256.0, 200.0], np.float32))
    for _ in range(20):
        pusht.step(np.array([256.0, 400.0], np.float32))
    assert pusht.board.coverage["middle"] < 0.8
    assert pusht.scores()["middle"] == 1.0
    assert pusht.outcome("middle") == "asked"
    pusht.reset(PushTStart(FAR, (100.0, 300.0), 0.0))
    assert pusht.scores() == dict.fromkeys(TASKS, 0.0)
    assert pusht.outcome("middle") is None


@pytest.mark.parametrize(("at", "end"), [("lower_right", "opposite"), (None, "timeout")])
def test_who_never_covers_the_outline_ends_after_300_ticks(
    pusht: PushT, at: str | None, end: str
) -> None:
    start = PushTStart(FAR, (100.0, 300.0), 0.0) if at is None else start_at(FAR, *GOALS[at])
    pusht.reset(start)
    for _ in range(300):
        assert pusht.outcome("middle") is None
        pusht.step(STAY)
    assert pusht.outcome("middle") == end


def test_the_safe_action_is_where_the_finger_is_and_then_its_last_target(pusht: PushT) -> None:
    pusht.reset(PushTStart((150.0, 70.0), (300.0, 300.0), 1.0))
    np.testing.assert_array_equal(pusht.safe_action(), [150.0, 70.0])
    pusht.step(np.array([100.0, 90.0], np.float32))
    for _ in range(20):
        pusht.step(pusht.safe_action())
    np.testing.assert_allclose(pusht.observation()["state"][:2], [100.0, 90.0], atol=0.1)
