"""Steps that fit a period: the prediction, and the whole way with a real server."""

import csv
import json
import re

import pytest
from matplotlib.figure import Figure

from benchmarks import budget
from benchmarks.budget import BudgetConfig, predict, step_cost
from benchmarks.budget_report import last_attempts, plot, table_of
from benchmarks.latency import Asked, Latencies
from benchmarks.statistics import wilson_interval
from benchmarks.step_cost import StepCost
from models.mixtures import QUADRANTS
from models.sampling import Sampling
from tests.policies import make_policy, save_checkpoint


@pytest.mark.parametrize(
    ("budget_s", "steps", "limited_by"),
    [
        (0.1, 90, "budget"),
        (10.0, 1000, "T = 1000"),
        (0.0105, None, "not even 1 step fits.*11.0 ms"),
    ],
)
def test_what_limits_the_steps(budget_s, steps, limited_by):
    row = predict(StepCost(fixed_s=0.01, step_s=0.001), budget_s, most=1000)
    assert row["predicted_steps"] == steps
    assert re.match(limited_by, row["limited_by"])
    assert row["predicted_s"] == pytest.approx(0.01 + 0.001 * (steps or 1))


def test_the_cost_is_of_one_guidance_scale_and_of_what_was_measured_at_length():
    def flat(seconds, count=100):
        return [seconds] * count

    measured = Latencies(
        {
            Asked(1, 0.0): flat(0.011),
            Asked(10, 0.0): flat(0.020),
            Asked(1000, 0.0): flat(0.5, count=5),  # a quick look
            Asked(1, 1.0): flat(0.012),
            Asked(10, 1.0): flat(0.030),
        },
        pings=[0.001],
    )
    for w, step_s in ((0.0, 0.001), (1.0, 0.002)):
        cost = step_cost(measured, w, miss_rate=0.01)
        assert (cost.fixed_s, cost.step_s) == pytest.approx((0.01, step_s))


def test_where_hardly_anything_is_fast_enough_the_quick_looks_stand_in():
    slow = {Asked(10, 0.0): [0.02] * 5, Asked(1000, 0.0): [1.01] * 5}  # 10 ms and 1 ms a step
    for fast in ({}, {Asked(1, 0.0): [0.011] * 100}):
        cost = step_cost(Latencies(fast | slow, pings=[0.001]), 0.0, miss_rate=0.01)
        assert (cost.fixed_s, cost.step_s) == pytest.approx((0.01, 0.001))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates_hz": ()}, "rates_hz: expected at least one"),
        ({"rates_hz": (10.0, 0.0)}, "rates_hz: expected more than 0, got 0"),
        ({"num_steps": (5, 5)}, "num_steps: expected two counts"),
        ({"num_steps": (0, 5)}, "num_steps: expected two counts"),
        ({"miss_rate": 1.0}, "miss_rate: expected a share"),
        ({"duration_s": 0.05}, "duration_s: expected at least one period"),
        ({"episodes": 0}, "episodes: expected at least 1"),
        ({"seed": 100}, r"seed: expected 0\.\.99"),
    ],
)
def test_bad_options_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        BudgetConfig(**fields)


def test_counts_beyond_t_are_refused_before_anything_starts(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    config = BudgetConfig(tmp_path, num_steps=(1, 1001), out=tmp_path / "none")
    with pytest.raises(ValueError, match=r"num_steps: expected 1\.\.1000.*1001"):
        budget.main(config)
    assert not (tmp_path / "none").exists()


def test_a_row_ends_with_its_last_attempt():
    def row(rate_hz, num_steps):
        return {
            "rate_hz": rate_hz,
            "backend": "onnx",
            "guidance_scale": 0.0,
            "num_steps": num_steps,
        }

    rows = [row(10.0, 50), row(10.0, 40), row(20.0, 9), row(10.0, 32)]
    assert [last["num_steps"] for last in last_attempts(rows)] == [32, 9]


def attempt(rate_hz, num_steps, *, fits, missed, sw2=0.5):
    """A row of one attempt at a count, without quality if it did not fit."""
    return {
        "rate_hz": rate_hz,
        "backend": "onnx",
        "guidance_scale": 0.0,
        "step_s": 0.001,
        "fixed_s": 0.01,
        "predicted_steps": num_steps,
        "num_steps": num_steps,
        "fits": fits,
        "due_requests": None if missed is None else 100,
        "late": missed,
        "refused": 0,
        "lost": 0,
        "miss_rate": None if missed is None else missed / 100,
        "limited_by": "budget",
        "latency_p50_s": 0.02,
        "latency_max_s": 0.03,
        "ping_p50_s": 0.001,
        "success_rate": 0.9,
        "success_interval": (0.8, 0.95),
        "sw2": sw2,
    }


def test_what_did_not_fit_is_not_drawn_as_what_a_period_buys(tmp_path, monkeypatch):
    rows = [
        attempt(10.0, 50, fits=True, missed=0, sw2=0.1),
        attempt(20.0, 7, fits=False, missed=30),
        attempt(50.0, None, fits=None, missed=None),
    ]
    samples = [({"backend": "onnx", "guidance_scale": 0.0, "rate_hz": None, "num_steps": 9}, [1.0])]
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot(rows, samples, 1e-4, tmp_path / "budget.png")
    steps, cost, success, error = figures[0].axes
    said = [text.get_text() for text in steps.texts]
    assert said.count("none found") == 2
    assert "50" in said
    assert "7" not in said
    assert "0.9999 quantile" in cost.get_ylabel()
    assert [line.get_xdata().tolist() for line in error.lines] == [[50]]
    drawn = [x for container in success.containers for x in container.lines[0].get_xdata()]
    assert drawn == [50]


def test_where_there_are_scores_they_are_what_is_shown(tmp_path, monkeypatch):
    rows = [attempt(10.0, 50, fits=True, missed=0) | {"score": 0.5, "score_interval": (0.4, 0.6)}]
    samples = [({"backend": "onnx", "guidance_scale": 0.0, "rate_hz": None, "num_steps": 9}, [1.0])]
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot(rows, samples, 1e-4, tmp_path / "budget.png")
    panel = figures[0].axes[2]
    assert "score" in panel.get_title()
    assert panel.containers[0].lines[0].get_ydata().tolist() == [50]
    (column,) = [column for column in table_of(rows).columns if column.header == "score"]
    assert list(column.cells) == ["50.0%"]


def test_the_table_says_of_how_many_requests():
    rows = [attempt(10.0, 50, fits=True, missed=1), attempt(50.0, None, fits=None, missed=None)]
    (missed,) = [column for column in table_of(rows).columns if column.header == "missed"]
    assert list(missed.cells) == ["1/100", "–"]


@pytest.mark.realtime
def test_the_benchmark_verifies_what_it_predicts(tmp_path, monkeypatch):
    exact = []
    monkeypatch.setattr(
        budget,
        "exact_quality",
        lambda mixture, sampling: exact.append((mixture, sampling)) or {"sw2": 0.5},
    )
    save_checkpoint(tmp_path / "tiny", make_policy())
    config = BudgetConfig(
        tmp_path / "tiny",
        rates_hz=(20.0, 1e5),  # nobody answers within 10 µs
        backend=("torch",),
        guidance_scale=(0.0, 1.0),
        num_steps=(1, 20, 1000),
        miss_rate=0.25,
        duration_s=0.5,
        out=tmp_path / "out",
    )
    budget.main(config)
    rows = json.loads((tmp_path / "out" / "budget.json").read_text())["rows"]
    cases = {(row["rate_hz"], row["guidance_scale"]) for row in rows}
    assert cases == {(20.0, 0.0), (20.0, 1.0), (1e5, 0.0), (1e5, 1.0)}
    for row in rows:
        assert (row["sampler"], row["grid"], row["eta"]) == ("ddim", "trailing", 0.0)
        assert row["budget_s"] == pytest.approx(1 / row["rate_hz"])
        assert row["ping_p50_s"] > 0
        assert row["success_rate"] is None  # it is not a policy of the desk
        if row["rate_hz"] > 1000:
            assert row["num_steps"] is None
            assert row["predicted_steps"] is None
            assert "not even 1 step fits" in row["limited_by"]
            continue
        assert row["due_requests"] == 10
        missed = row["late"] + row["refused"] + row["lost"]
        assert row["miss_rate"] == pytest.approx(missed / 10)
        assert row["fits"] == (row["miss_rate"] <= 0.25)
        assert row["nfe"] == row["num_steps"] * (2 if row["guidance_scale"] else 1)
        assert row["miss_interval"] == pytest.approx(wilson_interval(missed, 10))
    ends = [row for row in last_attempts(rows) if row["fits"]]
    assert [row["sw2"] for row in ends] == [0.5, 0.5]
    # of the step count alone: guided points are not meant to lie where the target's do
    assert exact == [(QUADRANTS, Sampling(row["num_steps"])) for row in ends]
    # until it fits, each attempt asks for fewer steps than the one before
    for row in ends:
        same = [
            r for r in rows if (r["rate_hz"], r["guidance_scale"]) == (20.0, row["guidance_scale"])
        ]
        counts = [r["num_steps"] for r in same]
        assert counts[0] == row["predicted_steps"]
        assert counts == sorted(set(counts), reverse=True)
        assert not any(r["fits"] for r in same[:-1])
    with (tmp_path / "out" / "budget_samples.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    one_step = [line for line in lines if (line["num_steps"], line["rate_hz"]) == ("1", "")]
    assert len(one_step) == 2 * 100
    assert (tmp_path / "out" / "budget.png").stat().st_size > 10_000
