"""The lesson's exercises as commands: their rows, tables, pictures and options, at a small size."""

import dataclasses
import json

import pytest

from benchmarks import eta, guidance, logsnr, points, steps, sweep
from benchmarks.eta import EtaConfig
from benchmarks.guidance import GuidanceConfig
from benchmarks.logsnr import LogsnrConfig
from benchmarks.steps import StepsConfig
from models import train_mixture

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
    eta.main(EtaConfig(num_steps=(5,), desk_num_steps=(2,), episodes=1, out=tmp_path))
    rows = rows_of(tmp_path / "eta.json")
    assert {row["eta"] for row in rows} == {0.0, 0.5, 1.0}
    assert all(set(row) >= NAMED for row in rows)
    desk = [row for row in rows if row["target"] == "desk"]
    assert all(row["chunk_spread"] > 0 for row in desk)
    assert (tmp_path / "eta.png").exists()


def test_guidance(tmp_path):
    config = GuidanceConfig(
        guidance_scale=(-1, 0, 3), num_steps=(10, 60), desk_num_steps=1, episodes=1, out=tmp_path
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


def test_logsnr_chooses_on_its_own_mixtures(tmp_path, monkeypatch):
    monkeypatch.setattr(logsnr, "_POINTS", 100)
    logsnr.main(LogsnrConfig((-9, -7), (6, 7), num_steps=(5,), mixtures=2, out=tmp_path))
    assert len(rows_of(tmp_path / "logsnr.json")) == 2 * 4
    with pytest.raises(ValueError, match="seed: expected 100 or more"):
        LogsnrConfig(seed=5)


def test_the_range_with_the_least_regret_is_chosen():
    error = {  # range -> sw2 on two mixtures; the mean would take the first
        (-9, 6): (1.0, 5.0),
        (-8, 7): (2.0, 4.5),
        (-7, 8): (4.0, 4.0),
    }
    rows = [
        {"ends": ends, "mixture": index, "num_steps": 8, "sw2": sw2}
        for ends, both in error.items()
        for index, sw2 in enumerate(both)
    ]
    assert logsnr.choose(rows) == (-9, 6)  # worst factors 1.25, 2, 4
    rows[1]["sw2"] = 9.0
    assert logsnr.choose(rows) == (-8, 7)  # 2.25, 2, 4


def test_another_mixture_is_read_from_a_file_and_its_network_trained(tmp_path, monkeypatch):
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"modes": [[[0.5, 0.0]], [[-0.5, 0.0]]], "std": 0.1}))
    short = dataclasses.replace  # a network of a few updates is as real as any
    config = train_mixture.TrainMixtureConfig
    monkeypatch.setattr(
        train_mixture,
        "TrainMixtureConfig",
        lambda **fields: short(config(**fields), num_updates=3),
    )
    out = tmp_path / "out"
    eta.main(EtaConfig(eta=(0.0,), num_steps=(2,), episodes=0, mixture=path, out=out))
    rows = rows_of(out / "eta.json")
    assert [row["network"] for row in rows] == ["exact", "concat_mlp"]
    assert rows[0]["accuracy"] == 1
    assert (out / "mixture_network").is_dir()


@pytest.mark.parametrize(
    ("config", "fields", "match"),
    [
        (StepsConfig, {"num_steps": (0,)}, "num_steps"),
        (StepsConfig, {"episodes": -1}, "episodes"),
        (EtaConfig, {"eta": (1.5,)}, "eta: expected 0..1"),
        (GuidanceConfig, {"num_steps": (2000,)}, "num_steps"),
    ],
)
def test_ranges_are_checked_by_name(config, fields, match):
    with pytest.raises(ValueError, match=match):
        config(**fields)
