"""The same benchmarks on a robot with scores: Push-T, with a policy that has learned nothing."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from benchmarks import deadlines, film, points, steps, success, sweep, tune
from benchmarks.deadlines import DeadlinesConfig, Played
from benchmarks.episodes import Conditions, Ending, EpisodeSpec, make_specs, play
from benchmarks.policy_choice import PolicyChoice
from benchmarks.scores import right_and_wrong, score_fields
from benchmarks.server_process import running_server
from benchmarks.steps import StepsConfig
from benchmarks.success import SuccessConfig
from benchmarks.tune import TuneConfig
from client.loop_stats import LoopStats
from client.sims.pusht import simulation
from client.sims.pusht.robot import ROBOT
from client.sims.pusht.simulation import PushT, PushTStart
from client.sims.pusht.spec import GOALS, PUSHT_IMAGE_SPEC, PUSHT_SPEC, TASKS
from client.sims.real_time import RealTimeRobot
from models import checkpoint
from models.networks.unet1d import Unet1dConfig
from models.vision import VisionConfig
from tests.policies import make_policy, save_checkpoint

SCORES = {"score", "score_interval", "wrong_score", "wrong_score_interval"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose targets are all over the board."""
    network = replace(Unet1dConfig.for_spec(PUSHT_SPEC, 5), widths=(8, 16), groups=4)
    policy = make_policy(spec=PUSHT_SPEC, network=network)
    policy.action_normalizer.fit_range(torch.tensor([[0.0, 0.0], [512.0, 512.0]]))
    folder = tmp_path_factory.mktemp("pusht")
    save_checkpoint(folder, policy)
    return folder


def rows_of(path):
    return json.loads(path.read_text())["rows"]


# ── which policy of which robot ──────────────────────────────────────────────────────────────────


def test_the_robot_is_that_of_the_checkpoint_and_the_desk_if_nothing_is_said(folder):
    assert PolicyChoice(checkpoint=folder).read()[1] is ROBOT
    assert PolicyChoice(checkpoint=folder, robot="pusht").read()[1] is ROBOT
    assert PolicyChoice().folder == checkpoint.PRETRAINED / "desk"
    assert PolicyChoice(robot="desk").read()[1].spec.task == "desk"


def test_a_policy_of_another_robot_than_named_is_refused(folder):
    with pytest.raises(ValueError, match=r"expected a policy of 'desk', as --robot says.*'pusht'"):
        success.main(SuccessConfig(checkpoint=folder, robot="desk"))


def test_a_robot_without_a_bundled_policy_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    with pytest.raises(ValueError, match="checkpoint: no policy of 'pusht' is bundled"):
        SuccessConfig(robot="pusht")


def test_an_unknown_robot_is_refused_by_name():
    with pytest.raises(
        ValueError, match="robot: expected one of desk, desk_image, pusht, pusht_image, got 'dog'"
    ):
        SuccessConfig(robot="dog")


def test_tuning_writes_so_it_must_be_told_what():
    with pytest.raises(ValueError, match="checkpoint: expected a folder, or --robot"):
        TuneConfig()


def test_a_policy_of_another_version_of_the_robot_is_refused(tmp_path):
    save_checkpoint(tmp_path, make_policy(spec=replace(PUSHT_SPEC, exec_steps=4)))
    with pytest.raises(ValueError, match="got another exec_steps; train the policy again"):
        PolicyChoice(checkpoint=tmp_path).read()


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


def test_the_right_and_the_wrong_score_are_of_the_same_episode():
    specs = [EpisodeSpec(1, "middle", ""), EpisodeSpec(2, "lower_right", "")]
    endings = [
        Ending("timeout", {"middle": 0.75, "lower_right": 0.25}),
        Ending("asked", {"middle": 0.5, "lower_right": 1.0}),
    ]
    assert right_and_wrong(specs, endings) == ([0.75, 1.0], [0.25, 0.5])
    fields = score_fields(specs, endings)
    assert (fields["score"], fields["wrong_score"]) == (0.875, 0.375)
    assert fields["score_interval"] == (0.75, 1.0)
    assert score_fields(specs, [Ending("asked")] * 2) == {}


def test_an_episode_is_that_of_the_environment_with_its_seed():
    """A policy that pushes right across the board, against the same pushes without any of ours."""
    specs = make_specs(3, 1, {task: [task] for task in TASKS})
    chunk = np.stack([np.linspace(100, 400, 16), np.linspace(80, 420, 16)], axis=1)

    def sample(_observation, instructions, _seeds, _num_steps):
        return np.stack([chunk] * len(instructions)).astype(np.float32)

    endings = play(ROBOT, specs, sample, lambda _: Conditions(0.0, 1))
    for spec, ending in zip(specs, endings, strict=True):
        pusht = PushT()
        pusht.board.reset(seed=spec.seed)
        pusht.ticks, best = 0, dict.fromkeys(TASKS, 0.0)
        while pusht.outcome(spec.task) is None:
            pusht.step(chunk[pusht.ticks % PUSHT_SPEC.exec_steps].astype(np.float32))
            for task, coverage in pusht.board.coverage.items():
                best[task] = max(best[task], coverage)
        assert ending.outcome == pusht.outcome(spec.task)
        assert ending.scores == {task: min(1.0, value / 0.95) for task, value in best.items()}
    assert len({ending.scores["middle"] for ending in endings}) > 1


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


def test_success(folder, tmp_path, capsys):
    success.main(SuccessConfig(checkpoint=folder, episodes=2, num_steps=1, out=tmp_path))
    rows = rows_of(tmp_path / "success.json")
    assert [row["task"] for row in rows] == [*TASKS, "all"]
    for row in rows:
        assert set(row) >= SCORES
        low, high = row["score_interval"]
        assert low <= row["score"] <= high
    for name in ("score", "wrong_score"):
        assert rows[-1][name] == pytest.approx((rows[0][name] + rows[1][name]) / 2)
    assert "wrong score" in capsys.readouterr().err


def test_steps(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(points, "NUM_POINTS", 60)
    monkeypatch.setattr(sweep, "_ROUNDS", 1)
    monkeypatch.setattr(steps, "DDPM_STEPS", 3)
    steps.main(StepsConfig(checkpoint=folder, num_steps=(1,), episodes=1, out=tmp_path))
    robot = sweep.robot_rows(rows_of(tmp_path / "steps.json"))
    assert {(row["target"], row["network"]) for row in robot} == {("pusht", "unet1d")}
    assert all(set(row) >= SCORES | {"success_rate", "time_s"} for row in robot)
    assert "pusht score" in capsys.readouterr().err
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_tune(folder, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "measure_latency", interrupt)
    options = {"num_steps": (1, 2), "sampler": ("ddim",), "grid": ("trailing",)}
    config = TuneConfig(folder, guidance_scale=(0.0,), episodes=1, out=tmp_path, **options)
    with suppress(KeyboardInterrupt):
        tune.main(config)
    rows = rows_of(tmp_path / "tune.partial.json")
    assert [row["stage"] for row in rows] == ["guidance"] * 2 + ["steps"] * 2 + ["chosen"]
    for row in rows[:-1]:
        for name in ("score", "wrong_score"):
            low, high = row[f"{name}_interval"]
            assert 0 <= low <= row[name] <= high <= 1


def test_film(folder, tmp_path, monkeypatch):
    """Both instructions from the same start, which is on the first picture of each."""
    monkeypatch.setattr(simulation, "TIMEOUT_TICKS", 40)
    out = tmp_path / "film.gif"
    film.main(film.FilmConfig(checkpoint=folder, num_steps=1, out=out))
    with Image.open(out) as gif:
        shown = [np.array(f.convert("RGB"), int)[:200] for f in ImageSequence.Iterator(gif)]
    count = len(shown)
    assert count == 2 * (1 + 40 // 2 + 9)  # to the end, and nine more
    assert np.abs(shown[0] - shown[count // 2]).max() < 30  # each picture has its own palette
    assert np.abs(shown[0] - shown[count // 2 - 1]).max() > 100


def test_a_robot_that_nobody_films_is_refused(tmp_path):
    save_checkpoint(tmp_path, make_policy(spec=PUSHT_IMAGE_SPEC, vision=VisionConfig()))
    with pytest.raises(ValueError, match="robot: expected desk or pusht, got 'pusht_image'"):
        film.main(film.FilmConfig(checkpoint=tmp_path, out=tmp_path / "film.gif"))


def test_in_real_time_a_case_must_last_longer_than_an_episode(folder, tmp_path):
    config = DeadlinesConfig(checkpoint=folder, duration_s=20.0, out=tmp_path / "none")
    with pytest.raises(ValueError, match="duration_s: expected at least 30, the longest episode"):
        deadlines.main(config)
    assert not (tmp_path / "none").exists()


@pytest.mark.realtime
def test_in_real_time_episodes_that_end_are_scored(folder):
    """The block lies on the asked outline from the start, so that an episode is one tick."""
    x, y, angle = GOALS["middle"]
    solved = (x - 45 * np.sin(angle), y - 45 + 45 * np.cos(angle))
    pool = [(PushTStart((30.0, 30.0), solved, angle), "middle")]
    robot = RealTimeRobot(ROBOT, pool)
    case = deadlines._Case("auto", "idle")
    config = DeadlinesConfig(checkpoint=folder, duration_s=1.0)
    with running_server(folder, "--backend", "torch") as server:
        stats, played = deadlines.drive(case, config, server.address, robot, lambda task: task)
    assert len(played.endings) >= 3
    row = deadlines.summarise(case, config, {}, stats, played)
    assert (row["success_rate"], row["score"]) == (1.0, 1.0)
    assert row["wrong_score"] == 0.0  # the outlines do not overlap
    nothing = deadlines.summarise(case, config, {}, LoopStats(), Played())
    assert "score" not in nothing
    assert deadlines.table_of([row, nothing]).columns[-1].header == "score"
