"""Speed beside floor and baselines, on a small network."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import speed
from benchmarks.floor import Bandwidth, MatrixRate, StepWork
from benchmarks.sampling_loops import SamplingLoops
from benchmarks.speed import SpeedConfig, main
from client.sims.desk.spec import DESK_SPEC
from models.networks.film_mlp import FilmMlpConfig
from tests.policies import TINY_SPEC

SMALL = replace(FilmMlpConfig.for_spec(DESK_SPEC, 5), width=16, num_blocks=1, condition_dim=8)


def test_every_cell_is_measured_beside_floor_and_baselines(tmp_path, monkeypatch):
    # any name but that of the MLP, with which a server is started
    monkeypatch.setitem(speed.NETWORKS, "transformer", SMALL)
    networks, robots = ("transformer",), (1, 3)
    main(SpeedConfig(networks=networks, robots=robots, num_steps=3, rounds=3, out=tmp_path))
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(r["robots"], r["guided"], r["backend"]) for r in rows] == [
        (robots, guided, backend)
        for robots in (1, 3)
        for guided in (False, True)
        for backend in ("onnx", "onnx-int8", "torch")
    ]
    with np.load(tmp_path / "speed_samples.npz") as file:
        samples = dict(file)
    for row in rows:
        branches = "guided" if row["guided"] else "unguided"
        cell = f"transformer/{row['robots']}/{branches}/3"
        assert 0 < row["floor_step_s"] < row["step_p50_s"] < row["request_p50_s"]
        assert row["request_p50_s"] == np.median(samples[f"{cell}/{row['backend']} request"])
        assert row["lesson_loop_p50_s"] == np.median(samples[f"{cell}/lesson"])
        assert row["diffusers_p50_s"] == np.median(samples[f"{cell}/diffusers"])
        assert (row["samples"], row["cut_short"]) == (3, False)
        assert row["socket_request_p50_s"] is None  # the bundled policy's alone
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_a_cell_that_takes_long_is_cut_short_and_says_so():
    cell = speed.Cell("transformer", 1, False, 3, {"lesson": lambda: 0.5, "onnx step": lambda: 0.1})
    for _ in range(3):
        cell.turn(random.Random(0), cell_s=1e-9)
    assert (cell.samples, cell.cut_short) == ({"lesson": [0.5], "onnx step": [0.1] * 5}, True)


def test_the_floor_is_the_larger_of_arithmetic_and_reading():
    config = replace(FilmMlpConfig.for_spec(TINY_SPEC, 5), width=32, num_blocks=2)
    work = StepWork.of(config)
    weights = 2 * 16 * 32 + 4 * 32 * 32  # of the chunk in and out, and of two blocks
    biases = 5 * 32 + 16
    assert work == StepWork(operations=2 * weights, weight_bytes=4 * (weights + biases))
    assert work.floor_s(8, 1e9, 1e12) == pytest.approx(8 * work.operations / 1e9)
    assert work.floor_s(8, 1e12, 1e6) == pytest.approx(work.weight_bytes / 1e6)


@pytest.mark.realtime
def test_rates_are_those_of_a_computer():
    rate, bandwidth = MatrixRate(1), Bandwidth(4_000_000)
    rate.measure()
    bandwidth.measure()
    assert 1e9 < rate.operations_per_s < 1e13
    assert 1e8 < bandwidth.bytes_per_s < 1e13


@pytest.mark.parametrize(("guided", "branches"), [(False, 1), (True, 2)])
def test_the_lesson_always_calls_twice_and_diffusers_once_for_what_it_needs(guided, branches):
    counts = Counter()

    class Counting(torch.nn.Module):
        def time_part(self, timesteps):
            counts["timesteps", len(timesteps)] += 1
            return torch.zeros(len(timesteps), 1)

        def condition_part(self, observation, instruction, drop):
            return drop[:, None].float()

        def denoise(self, x_t, film):
            counts["rows", len(x_t)] += 1
            return 0 * x_t + film[:, None]

    loops = SamplingLoops(Counting(), SMALL, torch.linspace(0.999, 0.001, 1000), robots=3)
    loops.lesson(5, guided=guided)
    assert counts == {("timesteps", 3): 5 * 2, ("rows", 3): 5 * 2}
    counts.clear()
    chunk = loops.diffusers(5, guided=guided)
    assert counts == {("timesteps", 3 * branches): 5, ("rows", 3 * branches): 5}
    # conditional 0, unconditional 1: with w = 1 that is 2·0 − 1, the clean sample of the last step
    assert torch.equal(chunk, torch.full_like(chunk, -1.0 if guided else 0.0))


@pytest.mark.parametrize(
    "fields", [{"networks": ()}, {"robots": (0,)}, {"rounds": 0}, {"cell_s": 0.0}]
)
def test_what_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SpeedConfig(**fields)
