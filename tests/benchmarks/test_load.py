"""The load benchmark: rows of handmade records, options, files, and the whole way once."""

import json
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import load
from benchmarks.fleet import Fleet, FleetRecord
from benchmarks.generator import OUTCOMES
from benchmarks.load import Case, CpuMeter, LoadConfig, summarise, write_requests
from benchmarks.load_report import carried, carried_text, plot, table_of
from benchmarks.pinger import Pings
from benchmarks.server_process import ServerProcess
from benchmarks.statistics import jain_index, least_share, p999
from tests.policies import make_policy, save_checkpoint

ROW = {
    "robots",
    "engine",
    "num_steps",
    "offered_rps",
    "on_time_rps",
    "late_rate",
    "refused_rate",
    "lost_rate",
    "miss_rate",
    "due_requests",
    "num_steps_p50",
    "num_steps_min",
    "rows_per_call_p50",
    "latency_p50_s",
    "latency_p99_s",
    "latency_p999_s",
    "latency_max_s",
    "refusal_p50_s",
    "first_row_p99_s",
    "ping_p99_s",
    "fairness",
    "least_served",
    "server_cpu",
    "generator_cpu",
}


def make_record(robot, outcome, *, settled_s, num_steps=10):
    """A record in which all that is answered took the same steps."""
    robot, outcome = np.array(robot, np.int64), np.array(outcome)
    settled_s = np.broadcast_to(np.asarray(settled_s, float), robot.shape)
    answered = (outcome == "on_time") | (outcome == "late")
    return FleetRecord(
        robot=robot,
        due_s=np.arange(len(robot)) * 0.001,
        latency_s=np.where(answered, settled_s, np.nan),
        outcome=outcome,
        refusal_s=np.where(outcome == "refused", settled_s, np.nan),
        num_steps=np.where(answered, num_steps, 0),
        rows_per_call=np.where(answered, 2.5, np.nan),
        queue_s=np.where(answered, settled_s / 2, np.nan),
        model_id=np.where(answered, "m", ""),
        send_delay_s=np.zeros(len(robot)),
        started_at_s=100.0,
        cpu_s=0.5,
    )


def make_fleet(robots, duration_s=2.0, num_steps=None):
    return Fleet(robots, 10.0, 0.08, duration_s, num_steps, 1.0)


def test_a_row_says_what_became_of_every_request():
    record = make_record(
        [0, 1, 2, 3, 0, 1, 2, 3, 0, 1],
        ["on_time"] * 5 + ["late", "late", "refused", "lost", "on_time"],
        settled_s=[0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.003, np.nan, 0.06],
    )
    row = summarise(Case("fifo", 4), make_fleet(4), record, [0.001] * 1000, 0.75)
    assert set(row) == ROW
    assert (row["robots"], row["engine"], row["num_steps"]) == (4, "fifo", None)
    assert (row["due_requests"], row["offered_rps"], row["on_time_rps"]) == (10, 5.0, 3.0)
    assert row["late_rate"] == pytest.approx(0.2)
    assert row["refused_rate"] == pytest.approx(0.1)
    assert row["lost_rate"] == pytest.approx(0.1)
    assert row["miss_rate"] == pytest.approx(0.4)
    assert row["latency_p50_s"] == pytest.approx(0.045)  # of the eight that were answered
    assert row["latency_max_s"] == pytest.approx(0.2)
    assert row["refusal_p50_s"] == pytest.approx(0.003)
    assert (row["num_steps_p50"], row["num_steps_min"]) == (10, 10)
    assert row["rows_per_call_p50"] == 2.5
    # too few to tell
    assert row["latency_p99_s"] is row["latency_p999_s"] is row["first_row_p99_s"] is None
    assert row["ping_p99_s"] == pytest.approx(0.001)
    # on time: robot 0 twice, 1 twice, 2 and 3 once
    assert row["fairness"] == pytest.approx(36 / (4 * 10))
    assert row["least_served"] == pytest.approx(1 / 1.5)
    assert (row["server_cpu"], row["generator_cpu"]) == (0.75, 0.25)


def test_quantiles_need_their_thousands():
    robots = np.zeros(10_000, int)
    settled_s = np.random.default_rng(0).exponential(0.02, 10_000)
    record = make_record(robots, ["late"] * 10_000, settled_s=settled_s)
    row = summarise(Case("null", 1), make_fleet(1), record, [0.1] * 999, None)
    assert row["latency_p99_s"] == pytest.approx(np.percentile(settled_s, 99))
    assert row["latency_p999_s"] == pytest.approx(np.percentile(settled_s, 99.9))
    assert row["first_row_p99_s"] == pytest.approx(np.percentile(settled_s, 99) / 2)
    assert row["ping_p99_s"] is None
    assert p999([0.1] * 9999) is None


def test_a_row_without_any_answer_claims_nothing():
    record = make_record([0, 1], ["lost", "refused"], settled_s=[np.nan, 0.001])
    row = summarise(Case("deadline", 2), make_fleet(2), record, [], None)
    assert row["miss_rate"] == 1.0
    for name in ("latency_p50_s", "latency_max_s", "num_steps_p50", "num_steps_min"):
        assert row[name] is None
    for name in ("fairness", "least_served", "rows_per_call_p50", "server_cpu"):
        assert row[name] is None
    json.dumps(row, allow_nan=False)


@given(st.integers(1, 50), st.integers(1, 50), st.floats(1e-3, 1e3))
def test_if_k_of_n_get_the_same_and_others_nothing_the_index_is_k_over_n(k, others, amount):
    shares = [amount] * k + [0.0] * others
    assert jain_index(shares) == pytest.approx(k / (k + others))
    assert least_share(shares) == 0
    assert jain_index([amount] * k) == pytest.approx(1.0)
    assert least_share([amount] * k) == pytest.approx(1.0)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30).filter(any))
def test_the_index_is_one_less_the_spread(shares):
    """1 / (1 + squared coefficient of variation), as the same paper puts it (eq. 7)."""
    variation = np.std(shares) / np.mean(shares)
    assert jain_index(shares) == pytest.approx(1 / (1 + variation**2))
    assert least_share(shares) == pytest.approx(min(shares) * len(shares) / sum(shares))


def make_row(engine, robots, miss_rate, **fields):
    record = make_record([0], ["on_time"], settled_s=[0.01])
    row = summarise(Case(engine, robots), make_fleet(1), record, [], 0.5)
    offered = 10.0 * robots
    rates = {"offered_rps": offered, "on_time_rps": (1 - miss_rate) * offered}
    return {**row, "miss_rate": miss_rate, **rates, **fields}


def test_the_largest_fleet_that_is_carried():
    rows = [
        make_row("deadline", 10, 0.0),
        make_row("deadline", 150, 0.0009),
        make_row("deadline", 100, 0.0),
        make_row("deadline", 200, 0.0011),
        make_row("fifo", 10, 0.0),
        make_row("fifo", 50, 0.001),
        make_row("fifo", 75, 0.9),
        make_row("null", 400, 0.5),
    ]
    assert carried(rows) == {"deadline": 150, "fifo": 50, "null": None}
    said = carried_text(rows)
    assert "deadline 150, fifo 50, null none of these, deadline / fifo = 3" in said
    assert "deadline / fifo" not in carried_text(rows[:4])


def test_the_table_and_the_plot_stand_missing_numbers(tmp_path):
    nothing = dict.fromkeys(ROW - {"robots", "engine"})
    rates = dict.fromkeys(("late_rate", "refused_rate", "lost_rate"), 0.5)
    rows = [
        make_row("deadline", 1000, 0.9999, latency_p50_s=0.0991, latency_max_s=1.0799),
        {**make_row("fifo", 400, 1.0), **nothing, **rates, "miss_rate": 1.0}
        | {"offered_rps": 4000.0, "on_time_rps": 0.0},
    ]
    plot(rows, 0.08, tmp_path / "new" / "load.png")
    assert (tmp_path / "new" / "load.png").stat().st_size > 10_000
    console = Console(width=110, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(table_of(rows))
    assert "100.00%" in captured.get()
    assert "99.1" in captured.get()
    assert "1080" in captured.get()
    assert "…" not in captured.get()  # nothing had to be cut


def test_the_meter_takes_the_first_and_the_last_look():
    looks = iter([(10.0, 1.0), (12.0, 1.2), (20.0, 6.0)])
    now = {}

    def cpu_s():
        now["s"], used_s = next(looks)
        return used_s

    meter = CpuMeter(cpu_s, clock=lambda: now["s"])
    meter.look()
    assert meter.cores is None
    meter.look()
    meter.look()
    assert meter.cores == pytest.approx(0.5)
    unknown = CpuMeter(lambda: None)
    unknown.look()
    assert unknown.cores is None


def test_processor_time_is_that_of_the_process_with_all_its_threads():
    work = (
        "import threading, time\n"
        "def burn():\n"
        "    while time.thread_time() < 0.2: pass\n"
        "threads = [threading.Thread(target=burn) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(time.process_time(), flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        own_s = float(process.stdout.readline())
        assert own_s >= 0.4
        seen_s = ServerProcess("nowhere", process, sys.stderr).cpu_s
        if seen_s is not None:  # where there is a /proc
            assert seen_s == pytest.approx(own_s, abs=0.1)
        process.communicate("\n")


def test_pings_count_when_they_were_due():
    pings = Pings()
    for due_s in (9.9, 10.0, 11.0, 12.0):
        pings.add(due_s, due_s / 100)
    assert pings.between(10.0, 12.0) == [0.1, 0.11]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"robots": ()}, "robots: expected one or more"),
        ({"robots": (5, 5)}, "robots: expected one or more, each once"),
        ({"robots": (5, 0)}, "robots: expected at least 1, got 0"),
        ({"engine": ()}, "engine: expected one or more"),
        ({"num_steps": 0}, "num_steps: expected at least 1"),
        ({"max_useful_steps": 0}, "max_useful_steps: expected at least 1"),
        ({"processes": 0}, "processes: expected at least 1"),
        ({"rate_hz": 0.0}, "rate_hz: expected more than 0"),
        ({"budget_ms": 0.0}, "budget_ms: expected more than 0"),
        ({"duration_s": 0.01}, "duration_s: expected at least one period"),
        ({"seed": 100}, r"seed: expected 0\.\.99"),
    ],
)
def test_bad_options_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        LoadConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 1001}, r"num_steps: expected 1\.\.1000"),
        ({"max_useful_steps": 1001}, r"max_useful_steps: expected 2 .* 1000 .*1001"),
        ({"max_useful_steps": 1}, r"max_useful_steps: expected 2 .*min_steps"),
    ],
)
def test_steps_that_the_policy_cannot_do_are_refused_before_anything_starts(
    fields, message, tmp_path
):
    save_checkpoint(tmp_path, make_policy())
    config = LoadConfig(checkpoint=tmp_path, out=tmp_path / "none", **fields)
    with pytest.raises(ValueError, match=message):
        load.main(config)
    assert not (tmp_path / "none").exists()


def test_the_files_are_named_after_the_steps():
    assert LoadConfig().name == "load"
    assert LoadConfig(num_steps=10).name == "load_10_steps"


def test_raw_samples_are_small_and_true(tmp_path):
    rng = np.random.default_rng(0)
    outcome = rng.choice(OUTCOMES, 5000)
    settled_s = np.where(outcome == "lost", np.nan, rng.exponential(0.05, 5000))
    case = Case("deadline", 7)
    record = make_record(rng.integers(7, size=5000), outcome, settled_s=settled_s)
    write_requests(tmp_path / "new" / "raw.npz", {case: record, Case("fifo", 7): record})
    path = tmp_path / "new" / "raw.npz"
    assert path.stat().st_size < 2 * 5000 * 10
    with np.load(path) as file:
        columns = {name: file[f"deadline.7.{name}"] for name in ("outcome", "settled_s", "queue_s")}
        assert len(file.files) == 10
    np.testing.assert_array_equal(np.array(OUTCOMES)[columns["outcome"]], outcome)
    np.testing.assert_allclose(columns["settled_s"], settled_s, rtol=5e-4, atol=1e-7)
    np.testing.assert_allclose(columns["queue_s"], record.queue_s, rtol=5e-4, atol=1e-7)


def test_what_is_done_is_written_when_the_rest_is_interrupted(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make_policy())
    config = LoadConfig(
        robots=(3, 6), engine=("deadline", "fifo"), checkpoint=tmp_path, out=tmp_path / "out"
    )
    done = []

    @contextmanager
    def server(*_, **__):
        yield SimpleNamespace()

    def measure(case, *_):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case)
        record = make_record([0], ["on_time"], settled_s=[0.01])
        return make_row(case.engine, case.robots, 0.0), record

    monkeypatch.setattr(load, "running_server", server)
    monkeypatch.setattr(load, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        load.main(config)
    rows = json.loads((tmp_path / "out" / "load.json").read_text())["rows"]
    assert {(row["engine"], row["robots"]) for row in rows} == {(c.engine, c.robots) for c in done}
    with np.load(tmp_path / "out" / "load_requests.npz") as file:
        assert {tuple(name.split(".")[:2]) for name in file.files} == {
            (case.engine, str(case.robots)) for case in done
        }


@pytest.mark.realtime
def test_the_benchmark_measures_every_engine(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    config = LoadConfig(
        robots=(4, 2),
        engine=("deadline", "fifo", "null"),
        rate_hz=20.0,
        budget_ms=500.0,  # what is tested here is not speed
        guidance_scale=1.0,
        duration_s=1.0,
        backend="torch",
        checkpoint=tmp_path,
        out=tmp_path / "out",
    )
    load.main(config)
    rows = json.loads((tmp_path / "out" / "load.json").read_text())["rows"]
    cases = [(row["engine"], row["robots"]) for row in rows]
    assert cases == [(engine, n) for engine in ("deadline", "fifo", "null") for n in (4, 2)]
    for row in rows:
        assert set(row) == ROW
        assert row["due_requests"] == 20 * row["robots"]
        assert row["miss_rate"] < 0.5
        assert row["num_steps_p50"] == (1 if row["engine"] == "null" else 10)
        assert row["rows_per_call_p50"] >= 1
        assert 0 < row["generator_cpu"] < 1
        assert row["server_cpu"] is None or 0 <= row["server_cpu"] < 2
        assert row["ping_p99_s"] is None  # some fifty
    with np.load(tmp_path / "out" / "load_requests.npz") as file:
        assert len(file["fifo.4.settled_s"]) == 80
    assert (tmp_path / "out" / "load.png").stat().st_size > 10_000
