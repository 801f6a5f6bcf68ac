"""The lesson's exercises as commands: their rows, tables, pictures and options, at a small size."""

import dataclasses
import json

import pytest

from benchmarks import eta, guidance, interval, logsnr, points, steps, sweep
from benchmarks.eta import EtaConfig
from benchmarks.guidance import GuidanceConfig
from benchmarks.interval import IntervalConfig
from benchmarks.logsnr import LogsnrConfig
from benchmarks.steps import StepsConfig
from models import train_mixture
from models.checkpoint import CheckpointError
from tests.policies import make_policy, save_checkpoint

NAMED = {
    "sampler",
    "grid",
    "num_steps",
    "nfe",
    "eta",
    "guidance_scale",
    "network",
    "backend",
    "time_s",
}
JUDGED = {"sw2", "on_mode", "accuracy", "mode_entropy", "mode_coverage", "at_bound"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(points, "NUM_POINTS", 120)
    monkeypatch.setattr(sweep, "_ROUNDS", 1)
    monkeypatch.setattr(steps, "DDPM_STEPS", 50)


def rows_of(path):
    content = json.loads(path.read_text())
    assert content["command"].startswith("python -m benchmarks")
    return content["rows"]


def test_steps(tmp_path):
    steps.main(StepsConfig(num_steps=(1, 5), episodes=1, out=tmp_path))
    rows = rows_of(tmp_path / "steps.json")
    assert [row["network"] for row in rows[:2]] == ["truth", "reference"]
    made = [row for row in rows[2:] if row["target"] == "points"]
    assert all(set(row) >= NAMED | JUDGED for row in made)
    expected = {
        *(("ddim", grid, count) for grid in ("leading", "trailing", "logsnr") for count in (1, 5)),
        *(("dpmpp_2m", "logsnr", count) for count in (1, 5)),
        ("ddpm", "trailing", 50),
        ("ddpm_beta", "trailing", 50),
    }
    for network in ("exact", "concat_mlp"):
        mine = [row for row in made if row["network"] == network]
        assert {(r["sampler"], r["grid"], r["num_steps"]) for r in mine} == expected
    desk = [row for row in rows if row["target"] == "desk"]
    assert all(set(row) >= NAMED | {"success_rate", "success_interval"} for row in desk)
    assert all(row["episodes"] == 6 for row in desk)
    assert len(desk) == 8
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_the_lessons_own_table_stands_beside_ours(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(points, "NUM_POINTS", 60)
    steps.main(StepsConfig(num_steps=(10, 50), episodes=0, out=tmp_path))
    printed = capsys.readouterr().err
    assert "acceptable, 1 s" in printed
    assert "good, 5 s" in printed


def test_eta(tmp_path):
    eta.main(EtaConfig(num_steps=(5,), robot_num_steps=(2,), episodes=1, out=tmp_path))
    rows = rows_of(tmp_path / "eta.json")
    assert {row["eta"] for row in rows} == {0.0, 0.5, 1.0}
    assert all(set(row) >= NAMED for row in rows)
    desk = [row for row in rows if row["target"] == "desk"]
    assert [row["chunk_spread"] > 0 for row in desk] == [True] * 3
    assert (tmp_path / "eta.png").exists()


def test_guidance(tmp_path):
    config = GuidanceConfig(
        guidance_scale=(-1, 0, 3), num_steps=(10, 60), robot_num_steps=1, episodes=1, out=tmp_path
    )
    guidance.main(config)
    rows = rows_of(tmp_path / "guidance.json")
    made = [row for row in rows if row["target"] == "points"]
    assert all(set(row) >= NAMED | JUDGED for row in made)
    assert {row["num_steps"] for row in made if row["sampler"] == "dpmpp_2m"} == {10}
    assert {row["nfe"] for row in made if row["guidance_scale"] == 3} == {20, 120}
    assert {row["nfe"] for row in made if row["guidance_scale"] == 0} == {10, 60}
    desk = [row for row in rows if row["target"] == "desk"]
    assert {(r["phrasings"], r["guidance_scale"]) for r in desk} == {
        (words, w) for words in ("known", "unseen") for w in (-1, 0, 3)
    }
    assert (tmp_path / "guidance.png").exists()
    assert (tmp_path / "guidance_points.png").exists()


def test_guidance_acts_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "NUM_POINTS", 60)
    intervals = ((0.0, 1.0), (0.5, 1.0))
    options = {"guidance_interval": intervals, "guidance_scale": (3,), "num_steps": (10,)}
    interval.main(IntervalConfig(**options, out=tmp_path))
    rows = rows_of(tmp_path / "interval.json")
    assert all(set(row) >= (NAMED | JUDGED) - {"time_s"} for row in rows)
    for network in ("exact", "concat_mlp"):
        nfe = [row["nfe"] for row in rows if row["network"] == network]
        assert nfe[:2] == [10, 20]
        assert 10 < nfe[2] < 20
    assert (tmp_path / "interval.png").exists()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("guidance_interval", ((0.5, 0.5),)),
        ("guidance_interval", ((0.0, 1.1),)),
        ("guidance_interval", ()),
        ("guidance_scale", (0.0,)),
        ("num_steps", (0,)),
    ],
)
def test_an_interval_that_is_none_is_refused(field, wrong):
    with pytest.raises(ValueError, match=field):
        IntervalConfig(**{field: wrong})


def test_logsnr_chooses_on_its_own_mixtures(tmp_path, monkeypatch):
    monkeypatch.setattr(logsnr, "_POINTS", 100)
    logsnr.main(LogsnrConfig((-9, -7), (6, 7), num_steps=(5,), mixtures=2, out=tmp_path))
    assert len(rows_of(tmp_path / "logsnr.json")) == 2 * 4
    with pytest.raises(ValueError, match="seed: expected 100 or more"):
        LogsnrConfig(seed=5)


def test_the_range_with_the_least_regret_is_chosen():
    error = {  # range -> sw2 on two mixtures
        (-9, 6): (1.0, 9.0),  # regret 1.8: the least mean, and not chosen
        (-8, 7): (1.7, 8.5),  # regret 1.7
        (-7, 8): (6.0, 5.0),  # regret 6
    }
    rows = [
        {"ends": ends, "mixture": index, "num_steps": 8, "sw2": sw2}
        for ends, both in error.items()
        for index, sw2 in enumerate(both)
    ]
    assert logsnr.choose(rows) == (-8, 7)


@pytest.fixture
def lopsided(tmp_path, monkeypatch):
    """A target whose conditions have different numbers of modes; its network learns little."""
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"modes": [[[0.5, 0.0]], [[-0.5, 0.2], [-0.5, -0.2]]], "std": 0.05}))
    config = train_mixture.TrainMixtureConfig
    monkeypatch.setattr(
        train_mixture,
        "TrainMixtureConfig",
        lambda **fields: dataclasses.replace(config(**fields), num_updates=3),
    )
    monkeypatch.chdir(tmp_path)
    return path


def test_every_sweep_takes_another_target_and_trains_its_network_once(lopsided, tmp_path):
    options = {"episodes": 0, "mixture": lopsided, "out": tmp_path / "out"}
    eta.main(EtaConfig(eta=(0.0,), num_steps=(2, 20), **options))
    (folder,) = (tmp_path / "runs").iterdir()
    trained = (folder / "model.safetensors").stat().st_mtime_ns
    steps.main(StepsConfig(num_steps=(10,), **options))
    guidance.main(GuidanceConfig(guidance_scale=(0, 3), num_steps=(10,), **options))
    assert (folder / "model.safetensors").stat().st_mtime_ns == trained
    rows = rows_of(tmp_path / "out" / "eta.json")
    assert [row["network"] for row in rows] == ["exact", "exact", "concat_mlp", "concat_mlp"]
    assert rows[1]["accuracy"] == 1
    assert rows[1]["mode_coverage"] == 1


def test_an_interrupted_sweep_leaves_what_it_has_and_the_last_whole_result(tmp_path, monkeypatch):
    options = {"eta": (0.0,), "num_steps": (2, 5), "episodes": 0, "out": tmp_path}
    eta.main(EtaConfig(**options))
    whole = (tmp_path / "eta.json").read_text()
    assert not (tmp_path / "eta.partial.json").exists()
    measure, calls = points.measure, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(points, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        eta.main(EtaConfig(**options))
    assert (tmp_path / "eta.json").read_text() == whole
    assert len(rows_of(tmp_path / "eta.partial.json")) == 2


def test_an_unusable_desk_is_found_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "measure", None)
    with pytest.raises(CheckpointError, match="not found"):
        eta.main(EtaConfig(checkpoint=tmp_path / "nowhere", out=tmp_path / "out"))
    save_checkpoint(tmp_path / "tiny", make_policy())
    config = EtaConfig(checkpoint=tmp_path / "tiny", out=tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"expected a policy of a robot .* got one of 'tiny'; --episodes 0"
    ):
        eta.main(config)


@pytest.mark.parametrize(
    ("config", "fields", "match"),
    [
        (StepsConfig, {"num_steps": (0,)}, "num_steps"),
        (StepsConfig, {"episodes": -1}, "episodes"),
        (StepsConfig, {"num_steps": (5, 5)}, "num_steps: expected .* each once"),
        (StepsConfig, {"seed": 100}, "seed: expected 0..99"),
        (EtaConfig, {"eta": (1.5,)}, "eta: expected 0..1"),
        (GuidanceConfig, {"guidance_scale": ()}, "guidance_scale: expected one value"),
        (GuidanceConfig, {"num_steps": (2000,)}, "num_steps"),
    ],
)
def test_ranges_are_checked_by_name(config, fields, match):
    with pytest.raises(ValueError, match=match):
        config(**fields)
