"""The timeline benchmark: who asks when, rows of handmade records, and the whole way once."""

import json
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import timeline, timeline_report
from benchmarks.latency import Question
from benchmarks.timeline import Phase, TimelineConfig, jobs_of, phases_of, rows_of
from tests.benchmarks.test_hog import make_record

QUESTION = Question({"state": np.zeros((2, 3), np.float32)}, "do it")
SMALL = TimelineConfig(load_robots=4, overload_robots=9, hog_robots=2, phase_s=2.0)


def test_phases_follow_one_another_and_the_hog_comes_twice():
    phases = phases_of(TimelineConfig())
    assert phases[0].begin_s == 0
    for before, after in pairwise(phases):
        assert before.end_s == after.begin_s
    assert [phase.robots for phase in phases] == [1, 100, 600, 100, 50, 50, 50, 50, 50]
    assert [phase.hog for phase in phases] == [False] * 5 + [True, False, True, False]


@pytest.mark.parametrize("processes", [1, 3])
def test_in_each_phase_as_many_robots_ask_as_it_says_each_at_its_rate(processes):
    config = TimelineConfig(**{**vars(SMALL), "processes": processes})
    phases = phases_of(config)
    jobs = jobs_of(config, phases, "tcp://nowhere:1", [QUESTION] * 3)
    for job in jobs:
        assert (np.diff(job.due_s) >= 0).all()
    robot = np.concatenate([job.robot for job in jobs])
    due_s = np.concatenate([job.due_s for job in jobs])
    for phase in phases:
        mine = (due_s >= phase.begin_s) & (due_s < phase.end_s)
        asked = np.bincount(robot[mine], minlength=9)
        each = round((phase.end_s - phase.begin_s) * config.rate_hz)
        assert np.count_nonzero(asked) == phase.robots
        assert asked[: phase.robots].tolist() == [each] * phase.robots
    assert set(robot[due_s < 0]) == {0}  # the first phase's warm up
    owners = [set(job.robot.tolist()) for job in jobs]
    assert sum(map(len, owners)) == len(set().union(*owners))  # a robot is in one process
    for one in range(9):  # at exact periods while it asks
        periods = np.diff(np.sort(due_s[robot == one])) * config.rate_hz
        assert periods == pytest.approx(np.round(periods), abs=1e-6)


def test_rows_sum_up_phases_and_bins():
    phases = [Phase("calm", 2, False, 0.0, 1.0), Phase("wild", 2, True, 1.0, 1.5)]
    due_s = np.arange(30) * 0.05
    outcome = ["on_time"] * 20 + ["late", "refused", "lost"] + ["on_time"] * 7
    record = make_record([0, 1] * 15, outcome, due_s=due_s)
    calm, wild = rows_of(record, phases, bin_s=0.4)
    assert calm["bins"]["begin_s"] == pytest.approx([0, 0.4, 0.8])
    assert calm["bins"]["end_s"] == pytest.approx([0.4, 0.8, 1.0])
    assert sum(calm["bins"]["due_requests"]) == calm["due_requests"] == 20
    assert (wild["on_time"], wild["late"], wild["refused"], wild["lost"]) == (7, 1, 1, 1)
    assert sum(wild["bins"]["late"]) == 1
    assert calm["robots"] == 2
    assert calm["num_steps_p5"] == 5  # of 20 answers
    assert calm["bins"]["num_steps_p5"] == [None] * 3  # of 8 at most
    assert calm["latency_p99_s"] is None
    assert timeline_report.table_of([calm, wild]).row_count == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("load_robots", 0),
        ("hog_robots", 0),
        ("rate_hz", 0.0),
        ("budget_ms", -1.0),
        ("phase_s", 0.1),
        ("bin_ms", 0.0),
        ("processes", 0),
    ],
)
def test_impossible_options_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TimelineConfig(**{field: value})


@pytest.mark.realtime
def test_the_benchmark_writes_a_series_and_a_plot(tmp_path):
    timeline.main(TimelineConfig(**{**vars(SMALL), "backend": "onnx", "out": tmp_path}))
    content = json.loads((tmp_path / "timeline.json").read_text())
    rows = content["rows"]
    assert [row["robots"] for row in rows] == [1, 4, 9, 4, 2, 2, 2, 2, 2]
    assert len(content["config"]["hog_visits_s"]) == 2
    for row in rows:
        settled = sum(row[name] for name in ("on_time", "late", "refused", "lost"))
        assert settled == row["due_requests"] == sum(row["bins"]["due_requests"])
    assert (tmp_path / "timeline.png").stat().st_size > 10_000
