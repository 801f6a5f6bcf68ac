"""Steps, latency and outcomes over time while robots come and go, and so does a busy neighbour.

One run, in phases: a robot alone, many, more than can be served, many again, and then some beside
a neighbour that takes all cores and leaves them again. For pictures; benchmarks/load.py and
benchmarks/hog.py are what to judge by.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from tqdm import tqdm

from benchmarks import results, timeline_report
from benchmarks.fleet import (
    FLEET_OPTIONS,
    Fleet,
    FleetRecord,
    due_times,
    fleet_questions,
    question_columns,
    run_jobs,
)
from benchmarks.generator import OUTCOMES, Asked, Job
from benchmarks.hog import Hog
from benchmarks.latency import Question
from benchmarks.server_process import running_server
from benchmarks.statistics import p99, quantile
from client import PolicyClient
from models import checkpoint
from policy_server.backends.choice import BackendName

MIN_SAMPLES_FOR_BAND = 20
"""Of a 5% and a 95% quantile."""
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class TimelineConfig:
    """What `python -m benchmarks timeline` takes.

    Attributes:
        load_robots: in the second and in the fourth phase.
        overload_robots: in the third phase: more than this machine carries.
        hog_robots: beside the neighbour.
        rate_hz: requests of each robot per second.
        budget_ms: from when a request is due to when its answer must be there.
        max_useful_steps: in place of the checkpoint's own; see `LoadConfig`.
        guidance_scale: w.
        phase_s: of each phase; each visit of the neighbour, and each absence, takes half of it.
        bin_ms: of the series over time.
        checkpoint: folder of the policy; the bundled one if not given.
        backend: what runs the network.
        processes: that send the requests.
        seed: of phases and observations.
        out: folder of timeline.json and timeline.png.
    """

    load_robots: int = 100
    overload_robots: int = 600
    hog_robots: int = 50
    rate_hz: float = 10.0
    budget_ms: float = 80.0
    max_useful_steps: int = 10
    guidance_scale: float = 1.0
    phase_s: float = 10.0
    bin_ms: float = 250.0
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    backend: BackendName = "auto"
    processes: int = 1
    seed: int = 8
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("rate_hz", "budget_ms", "phase_s", "bin_ms"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in (
            "load_robots",
            "overload_robots",
            "hog_robots",
            "max_useful_steps",
            "processes",
        ):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.phase_s / 2 * self.rate_hz < 1:
            msg = f"phase_s: expected two periods of {1 / self.rate_hz:g} s, got {self.phase_s:g}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Phase:
    """Some time in which nothing changes from outside.

    Attributes:
        name: for people.
        robots: that ask.
        hog: whether the neighbour is there.
        begin_s: from the start of the run.
        end_s: the same.
    """

    name: str
    robots: int
    hog: bool
    begin_s: float
    end_s: float


def phases_of(config: TimelineConfig) -> list[Phase]:
    """One after another, without gaps."""
    whole_s, half_s = config.phase_s, config.phase_s / 2
    beside = config.hog_robots
    wanted = [
        ("one robot", 1, False, whole_s),
        ("load", config.load_robots, False, whole_s),
        ("overload", config.overload_robots, False, whole_s),
        ("load again", config.load_robots, False, whole_s),
        ("fewer robots", beside, False, half_s),
        ("beside the hog", beside, True, half_s),
        ("hog gone", beside, False, half_s),
        ("hog again", beside, True, half_s),
        ("hog gone again", beside, False, half_s),
    ]
    phases: list[Phase] = []
    for name, robots, hog, lasts_s in wanted:
        begin_s = phases[-1].end_s if phases else 0.0
        phases.append(Phase(name, robots, hog, begin_s, begin_s + lasts_s))
    return phases


def jobs_of(
    config: TimelineConfig, phases: Sequence[Phase], address: str, questions: Sequence[Question]
) -> list[Job]:
    """Robot r asks, at its own phase of the period, whenever more than r robots do."""
    most = max(phase.robots for phase in phases)
    fleet = Fleet(
        most,
        config.rate_hz,
        config.budget_ms / 1e3,
        duration_s=phases[-1].end_s,
        num_steps=None,
        guidance_scale=config.guidance_scale,
        seed=config.seed,
    )
    robot, due_s = due_times(fleet)
    ends_s = np.array([phase.end_s for phase in phases])
    asking = np.array([phase.robots for phase in phases])
    place = np.minimum(np.searchsorted(ends_s, due_s, side="right"), len(phases) - 1)
    chosen = robot < asking[place]
    robot, due_s = robot[chosen], due_s[chosen]
    asked = Asked(address, uuid.uuid4().hex, fleet.budget_s, None, config.guidance_scale)
    instruction, observation = question_columns(questions)
    number = np.arange(len(due_s)) % len(questions)
    processes = [robot % config.processes == i for i in range(config.processes)]
    return [
        Job(asked, robot[mine], due_s[mine], number[mine], instruction, observation)
        for mine in processes
        if mine.any()
    ]


def rows_of(record: FleetRecord, phases: Sequence[Phase], bin_s: float) -> list[dict[str, Any]]:
    """Rows of the result: a summary of each phase, and in `bins` how it went.

    Args:
        record: of all phases.
        phases: one after another.
        bin_s: width of the bins; the last one of a phase may be narrower.
    """
    rows = []
    for phase in phases:
        mine = (record.due_s >= phase.begin_s) & (record.due_s < phase.end_s)
        edges_s = np.append(np.arange(phase.begin_s, phase.end_s - 1e-9, bin_s), phase.end_s)
        bins = [
            _bin(record, mine & (record.due_s >= begin_s) & (record.due_s < end_s), begin_s, end_s)
            for begin_s, end_s in zip(edges_s[:-1].tolist(), edges_s[1:].tolist(), strict=True)
        ]
        rows.append(
            {
                "phase": phase.name,
                "hog": phase.hog,
                **_bin(record, mine, phase.begin_s, phase.end_s),
                "refusal_p50_s": quantile(_known(record.refusal_s[mine]), 0.5),
                "send_delay_p99_s": p99(_known(record.send_delay_s[mine])),
                "bins": {name: [one[name] for one in bins] for name in bins[0]},
            }
        )
    return rows


def _bin(
    record: FleetRecord, mine: npt.NDArray[np.bool_], begin_s: float, end_s: float
) -> dict[str, Any]:
    """What became of the requests that were due in some time."""
    steps = record.num_steps[mine & (record.num_steps > 0)]
    latency_s = _known(record.latency_s[mine])
    banded = len(steps) >= MIN_SAMPLES_FOR_BAND
    outcome = record.outcome[mine]
    return {
        "begin_s": begin_s,
        "end_s": end_s,
        "robots": len(np.unique(record.robot[mine])),
        "due_requests": len(outcome),
        **{name: int(np.count_nonzero(outcome == name)) for name in OUTCOMES},
        "num_steps_p50": quantile(steps.tolist(), 0.5),
        "num_steps_p5": quantile(steps.tolist(), 0.05) if banded else None,
        "num_steps_p95": quantile(steps.tolist(), 0.95) if banded else None,
        "latency_p50_s": quantile(latency_s, 0.5),
        "latency_p99_s": p99(latency_s),
        "latency_max_s": max(latency_s, default=None),
    }


def _known(samples: npt.NDArray[np.float64]) -> list[float]:
    known: list[float] = samples[~np.isnan(samples)].tolist()
    return known


def run(config: TimelineConfig, console: Console) -> tuple[list[dict[str, Any]], Hog]:
    """Measure; return the rows of the result, and when the neighbour was there."""
    phases = phases_of(config)
    hog = Hog([(phase.begin_s, phase.end_s) for phase in phases if phase.hog])
    console.print(f"starting a server for {config.checkpoint} (loading, export, calibration) …")
    options = ("--backend", config.backend, "--max-useful-steps", str(config.max_useful_steps))
    with (
        running_server(config.checkpoint, *options, *FLEET_OPTIONS) as server,
        ExitStack() as stack,
    ):
        stack.callback(hog.leave, phases[-1].end_s)
        with PolicyClient(server.address) as client:
            spec = client.metadata(timeout_s=_TIMEOUT_S).spec
        jobs = jobs_of(config, phases, server.address, fleet_questions(spec, config.seed))
        total_s = round(phases[-1].end_s)
        bar = stack.enter_context(tqdm(total=total_s, unit="s", desc="asking", file=sys.stderr))

        def watch(now_s: float) -> None:
            hog.follow(now_s)
            names = [phase.name for phase in phases if phase.begin_s <= now_s < phase.end_s]
            bar.set_postfix_str("".join(names), refresh=False)
            bar.update(max(0, min(round(now_s), total_s) - bar.n))

        record = run_jobs(jobs, watch=watch)
        if server.process.poll() is not None:
            msg = "the server ended while it was measured"
            raise RuntimeError(msg)
    return rows_of(record, phases, config.bin_ms / 1e3), hog


def main(config: TimelineConfig) -> None:
    """Measure, print the table of phases, write results and the plot."""
    console = results.console()
    rows, hog = run(config, console)
    settings: Mapping[str, Any] = {**vars(config), "hog_visits_s": hog.visited_s}
    results.write_results(config.out, "timeline", settings, rows)
    path = config.out / "timeline.png"
    timeline_report.plot(rows, hog.visited_s, config.budget_ms / 1e3, path)
    console.print(timeline_report.table_of(rows))
    console.print(f"wrote timeline.json and timeline.png to {config.out}")
