"""Steps that fit a period: the prediction, and the whole way with a real server."""

import csv
import json
import re

import pytest

from benchmarks import budget
from benchmarks.budget import BudgetConfig, predict, step_cost
from benchmarks.budget_report import last_attempts
from benchmarks.latency import Asked, Latencies
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
        assert row["latency_p99_s"] is None  # fewer than 1,000 samples
    ends = [row for row in last_attempts(rows) if row["num_steps"] is not None]
    assert [row["sw2"] for row in ends] == [0.5, 0.5]
    asked = [Sampling(row["num_steps"], guidance_scale=row["guidance_scale"]) for row in ends]
    assert exact == [(QUADRANTS, how) for how in asked]
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
