"""The scripted experts do their tasks, and their recordings are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.sims.desk.experts import action_for, expert_action
from client.sims.desk.record import AFTER_TICKS, record, record_episode, save
from client.sims.desk.render import NoDisplayError
from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import FRAME_TICKS, OPPOSITE, TASKS, TIMEOUT_TICKS
from client.sims.desk_image.simulation import DeskImage

SEEDS = range(900, 908)


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk()


@pytest.fixture(scope="module")
def starts(desk: Desk) -> list[DeskStart]:
    return [desk.sample_start(np.random.default_rng(seed)) for seed in SEEDS]


def play(desk: Desk, start: DeskStart, task: str) -> None:
    desk.reset(start)
    while desk.outcome(task) is None:
        action = expert_action(task, desk)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        desk.step(action)


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_does_its_task_from_every_start_and_so_the_opposite_of_its_opposite(
    desk: Desk, starts: list[DeskStart], task: str
) -> None:
    for start in starts:
        play(desk, start, task)
        assert desk.outcome(task) == "asked"
        assert desk.outcome(OPPOSITE[task]) == "opposite"


def test_an_expert_knows_no_more_than_the_observation(desk: Desk, starts: list[DeskStart]) -> None:
    desk.reset(starts[0])
    for task in TASKS:
        seen = action_for(task, desk.observation()["state"])
        np.testing.assert_array_equal(expert_action(task, desk), seen)


def test_an_episode_goes_on_after_success_and_labels_are_the_experts(desk: Desk) -> None:
    for index in range(6):
        episode = record_episode(desk, seed=5, index=index)
        assert episode.task == TASKS[index]
        states = episode.observation["state"]
        assert AFTER_TICKS < len(states) <= TIMEOUT_TICKS + AFTER_TICKS
        labels = [action_for(episode.task, state) for state in states]
        np.testing.assert_array_equal(episode.action, labels)


def test_a_recording_does_not_depend_on_the_number_of_processes(tmp_path: Path, desk: Desk) -> None:
    save(tmp_path / "one.npz", record(episodes=32, seed=3, workers=1))
    two = record(episodes=32, seed=3, workers=2)
    with np.load(tmp_path / "one.npz", allow_pickle=False) as one:
        assert set(one) == set(two)
        for name, array in two.items():
            np.testing.assert_array_equal(one[name], array)
    assert two["state"].dtype == two["action"].dtype == np.float32
    assert two["episode_ends"][-1] == len(two["state"]) == len(two["action"])
    assert two["task"].tolist() == [TASKS[i % 6] for i in range(32)]
    last = record_episode(desk, seed=3, index=31)
    np.testing.assert_array_equal(
        last.observation["state"], two["state"][two["episode_ends"][-2] :]
    )


def test_a_recording_of_pictures_is_of_the_same_episodes(desk: Desk) -> None:
    """Each frame once, and in each tick the one that the robot saw then."""
    try:
        seeing = DeskImage()
    except NoDisplayError as error:
        pytest.skip(str(error))
    seen = record(episodes=2, seed=3, workers=1, make=DeskImage)
    told = [record_episode(desk, seed=3, index=index) for index in range(2)]
    assert seen["task"].tolist() == [episode.task for episode in told]
    np.testing.assert_array_equal(seen["action"], np.concatenate([e.action for e in told]))
    states = np.concatenate([episode.observation["state"] for episode in told])
    np.testing.assert_array_equal(seen["hand"], states[:, :4])
    assert seen["episode_ends"].tolist() == [len(told[0].action), len(states)]
    begins = [0, seen["episode_ends"][0]]
    ticks = np.arange(len(seen["action"]))
    since = np.where(ticks < begins[1], ticks, ticks - begins[1]) % FRAME_TICKS
    shown = seen["camera"][seen["camera_at"]]
    for tick in ticks[since > 0]:
        assert seen["camera_at"][tick] == seen["camera_at"][tick - 1]
    for tick in ticks[since == 0][1:]:
        assert seen["camera_at"][tick] == seen["camera_at"][tick - 1] + 1
    episode = record_episode(seeing, seed=3, index=1)
    camera = episode.observation["camera"][episode.newest["camera"]]
    np.testing.assert_array_equal(shown[begins[1] :], camera)
