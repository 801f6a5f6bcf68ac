"""The hog benchmark: its schedule, rows of handmade records, and the whole way once."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from benchmarks import hog, hog_report
from benchmarks.fleet import FleetRecord
from benchmarks.generator import OUTCOMES
from benchmarks.hog import POLICIES, Hog, HogConfig, make_schedule
from benchmarks.hog_report import difference_interval, rows_of, table_of, verdict


def make_record(robot, outcome, *, due_s=None, latency_s=0.01, num_steps=5):
    robot, outcome = np.array(robot, np.int64), np.array(outcome)
    answered = (outcome == "on_time") | (outcome == "late")
    nothing = np.full(len(robot), np.nan)
    return FleetRecord(
        robot=robot,
        due_s=np.arange(len(robot)) * 0.01 if due_s is None else np.array(due_s),
        latency_s=np.where(answered, latency_s, np.nan),
        outcome=outcome,
        refusal_s=np.where(outcome == "refused", 0.001, np.nan),
        num_steps=np.where(answered, num_steps, 0),
        rows_per_call=nothing,
        queue_s=nothing,
        model_id=np.where(answered, "m", ""),
        send_delay_s=nothing,
        started_at_s=0.0,
        cpu_s=0.0,
    )


@given(
    requests=st.integers(1, 500),
    rate_hz=st.sampled_from([10.0, 50.0, 73.0]),
    block_s=st.sampled_from([0.2, 1.0]),
    hog_s=st.sampled_from([1.0, 10.0, 1000.0]),
    seed=st.integers(0, 5),
)
def test_every_policy_gets_its_requests_at_its_own_times(requests, rate_hz, block_s, hog_s, seed):
    config = HogConfig(requests=requests, rate_hz=rate_hz, block_s=block_s, hog_s=hog_s, seed=seed)
    schedule = make_schedule(config)
    period_s, turns = 1 / rate_hz, []
    for policy in POLICIES:
        due_s = schedule.due_s[policy]
        assert np.count_nonzero(due_s >= 0) == requests
        assert np.count_nonzero(due_s < 0) == min(requests, round(block_s * rate_hz))
        apart_s = np.diff(due_s)
        in_block = apart_s < period_s + 1e-9
        assert apart_s[in_block] == pytest.approx(period_s)
        ends = np.flatnonzero(~in_block)
        begins_s = np.concatenate([due_s[:1], due_s[ends + 1]])
        ends_s = np.concatenate([due_s[ends], due_s[-1:]])
        turns += list(zip(begins_s, ends_s, strict=True))
    turns.sort()
    for (_, before_s), (begin_s, _) in pairwise(turns):
        assert begin_s - before_s > hog._GAP_S - 1e-9  # nobody inherits what another has left
    assert turns[-1][1] < schedule.ends_s


def test_half_of_each_policys_requests_are_beside_the_hog_and_rounds_are_whole():
    schedule = make_schedule(HogConfig(requests=2000))
    for policy in POLICIES:
        due_s = schedule.due_s[policy]
        there = sum(
            np.count_nonzero((due_s >= begin_s) & (due_s < end_s))
            for begin_s, end_s in schedule.visits_s
        )
        assert there == pytest.approx(1000, abs=50)  # one block
    lengths = [end_s - begin_s for begin_s, end_s in schedule.visits_s]
    assert lengths == pytest.approx([10.0] * len(lengths), abs=3.5)


def test_the_hog_comes_and_goes_as_planned_and_what_is_noted_is_what_was(monkeypatch):
    at_work = []

    class There:
        def __enter__(self):
            at_work.append(self)

        def __exit__(self, *_):
            at_work.remove(self)

    monkeypatch.setattr(hog, "load_on_all_cores", lambda background: There())
    one = Hog([(1.0, 2.0), (3.0, 4.0)])
    seen = []
    for now_s in (-0.5, 0.9, 1.1, 1.5, 2.2, 2.9, 3.05, 3.5):
        one.follow(now_s)
        seen.append(len(at_work))
    one.leave(3.6)
    one.leave(3.7)  # once is enough
    assert seen == [0, 0, 1, 1, 0, 0, 1, 1]
    assert not at_work
    assert one.visited_s == [(1.1, 2.2), (3.05, 3.6)]
    beside = one.beside(np.array([1.05, 1.1, 2.1, 2.2, 3.0, 3.55, 3.6]))
    assert beside.tolist() == [False, True, True, False, False, True, False]


def test_rows_tell_each_policy_beside_the_hog_and_without_it():
    robot = [0, 1, 2] * 40
    outcome = ["on_time"] * 120
    outcome[0] = "late"  # elastic, without the hog
    outcome[63] = "refused"  # elastic, beside it
    outcome[64] = "lost"  # null, beside it
    for i in range(2, 120, 6):
        outcome[i] = "late"  # fixed
    beside = np.arange(120) >= 60
    rows = rows_of(make_record(robot, outcome), beside, POLICIES)
    found = {(row["policy"], row["hog"]): row for row in rows}
    assert list(found) == [(p, h) for h in ("all", "on", "off") for p in POLICIES]
    assert found["elastic", "all"]["miss_rate"] == 2 / 40
    assert found["elastic", "all"]["exceeds_null"] == pytest.approx(1 / 40)
    assert found["elastic", "on"]["refused_rate"] == 1 / 20
    assert found["elastic", "off"]["late_rate"] == 1 / 20
    assert found["null", "on"]["lost_rate"] == 1 / 20
    assert found["null", "off"]["exceeds_null"] == 0
    assert found["fixed", "all"]["late_rate"] == 0.5
    assert all(row["latency_p99_s"] is None for row in rows)  # too few for it
    assert "beyond the 0.1 allowed" in verdict(rows)
    assert table_of(rows).row_count == 9


def test_an_unanswered_request_is_slower_than_any_answer():
    outcome = ["on_time"] * 1985 + ["refused"] * 15
    robot = [0] * 2000
    record = make_record([*robot, 1, 2], [*outcome, "on_time", "on_time"])
    row = rows_of(record, np.zeros(2002, bool), POLICIES)[0]
    assert row["latency_p50_s"] == 0.01
    assert row["latency_p99_s"] == 0.01
    assert row["latency_p999_s"] is None  # below 10,000
    record = make_record([*robot, 1, 2], ["refused"] * 30 + outcome[30:] + ["on_time"] * 2)
    assert rows_of(record, np.zeros(2002, bool), POLICIES)[0]["latency_p99_s"] is None


def test_without_the_hog_there_is_no_row_for_it():
    rows = rows_of(make_record([0, 1, 2], ["on_time"] * 3), np.zeros(3, bool), POLICIES)
    assert {row["hog"] for row in rows} == {"all", "off"}


def wilson(successes, trials):
    """From its quadratic: (p − p̂)² = z²·p·(1 − p)/n."""
    z2, share = norm.ppf(0.975) ** 2, successes / trials
    return np.sort(np.roots([1 + z2 / trials, -(2 * share + z2 / trials), share**2]).real).tolist()


@pytest.mark.parametrize("one", [(56, 70), (9, 10), (10, 10), (0, 10)])
@pytest.mark.parametrize("other", [(48, 80), (3, 10), (0, 10)])
def test_newcombes_interval_of_a_difference(one, other):
    (low, high), (low_other, high_other) = wilson(*one), wilson(*other)
    share, share_other = one[0] / one[1], other[0] / other[1]
    expected = (
        share - share_other - np.sqrt((share - low) ** 2 + (high_other - share_other) ** 2),
        share - share_other + np.sqrt((high - share) ** 2 + (share_other - low_other) ** 2),
    )
    assert difference_interval(one, other) == pytest.approx(expected, abs=1e-6)


def test_newcombes_own_example():
    # Newcombe 1998, Stat. Med. 17:873, table II, method 10, cases (a) and (b)
    assert difference_interval((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval((9, 10), (3, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests", 0),
        ("rate_hz", 0.0),
        ("budget_ms", -1.0),
        ("num_steps", 0),
        ("block_s", 0.001),
        ("hog_s", 0.0),
    ],
)
def test_impossible_options_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        HogConfig(**{field: value})


@pytest.mark.realtime
def test_the_benchmark_writes_rows_samples_and_a_plot(tmp_path):
    config = HogConfig(requests=60, block_s=0.4, hog_s=1.5, backend="onnx", out=tmp_path)
    hog.main(config)
    content = json.loads((tmp_path / "hog.json").read_text())
    rows = {(row["policy"], row["hog"]): row for row in content["rows"]}
    assert content["config"]["hog_visits_s"]
    for policy in POLICIES:
        assert rows[policy, "all"]["due_requests"] == 60
        assert rows[policy, "on"]["due_requests"] + rows[policy, "off"]["due_requests"] == 60
    assert rows["fixed", "all"]["num_steps_min"] in (50, None)
    with np.load(tmp_path / "hog_requests.npz") as samples:
        for policy in POLICIES:
            outcome = np.array(OUTCOMES)[samples[f"{policy}.outcome"]]
            beside = samples[f"{policy}.hog"]
            on = rows[policy, "on"]
            assert np.mean(outcome[beside] != "on_time") == pytest.approx(on["miss_rate"])
    assert (tmp_path / "hog.png").stat().st_size > 10_000


def test_the_plot_can_be_drawn_of_little(tmp_path):
    record = make_record([0, 1, 2] * 10, ["on_time"] * 30)
    rows = rows_of(record, np.zeros(30, bool), POLICIES)
    hog_report.plot(record, [], rows, 0.015, tmp_path / "hog.png")
    assert (tmp_path / "hog.png").stat().st_size > 10_000
