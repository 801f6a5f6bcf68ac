"""How many robots does a server carry? Fleets of rising size, in real time, against each engine.

"deadline" is the server of this project. "fifo" and "null" are the same server with another engine
(benchmarks/baseline_server.py): what policy servers commonly do, and the floor under both.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from tqdm import tqdm

from benchmarks import results
from benchmarks.fleet import FLEET_OPTIONS, WARM_UP_S, Fleet, FleetRecord, drive_fleet
from benchmarks.generator import OUTCOMES
from benchmarks.load_report import carried_text, plot, table_of
from benchmarks.pinger import pinging
from benchmarks.server_process import ServerProcess, running_server
from benchmarks.statistics import jain_index, least_share, p99, p999, quantile
from models import checkpoint
from policy_server.backends.choice import BackendName

EngineName = Literal["deadline", "fifo", "null"]

BEHIND_S = 0.005
"""A generator that sends later than this is part of what it measures."""


@dataclass(frozen=True)
class LoadConfig:
    """What `python -m benchmarks load` takes.

    Attributes:
        robots: sizes of the fleet to try.
        engine: which servers to measure, side by side if several.
        rate_hz: requests of each robot per second.
        budget_ms: from when a request is due to when its answer must be there.
        num_steps: exactly so many for every request, never fewer; if not given, the deadline
            engine decides, and fifo always does max_useful_steps.
        max_useful_steps: in place of the checkpoint's own. The bundled policy is as good after one
            step as after many, so with its own number nothing could be seen of elastic steps.
        guidance_scale: w; the checkpoint's default if not given.
        duration_s: of each case, after a second of warming up.
        checkpoint: folder of the policy; the bundled one if not given.
        backend: what runs the network.
        processes: that send the requests.
        seed: of phases, observations and the order of the cases; a report's, so below 100.
        out: folder of NAME.json, NAME_requests.npz and NAME.png; NAME is load, with num_steps given
            load_10_steps, for example.
    """

    robots: tuple[int, ...] = (1, 10, 25, 50, 75, 100, 150, 200, 400)
    engine: tuple[EngineName, ...] = ("deadline",)
    rate_hz: float = 10.0
    budget_ms: float = 80.0
    num_steps: int | None = None
    max_useful_steps: int = 10
    guidance_scale: float | None = None
    duration_s: float = 30.0
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    backend: BackendName = "auto"
    processes: int = 1
    seed: int = 6
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("robots", "engine"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                msg = f"{name}: expected one or more, each once, got {values}"
                raise ValueError(msg)
        for name in ("max_useful_steps", "processes"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.num_steps is not None and self.num_steps < 1:
            msg = f"num_steps: expected at least 1, got {self.num_steps}"
            raise ValueError(msg)
        if not 0 <= self.seed < 100:
            msg = f"seed: expected 0..99 (larger ones are for choosing), got {self.seed}"
            raise ValueError(msg)
        if not self.budget_ms > 0:
            msg = f"budget_ms: expected more than 0, got {self.budget_ms}"
            raise ValueError(msg)
        for robots in self.robots:
            self.fleet(robots)  # which checks the others

    @property
    def name(self) -> str:
        """Of the result files."""
        return "load" if self.num_steps is None else f"load_{self.num_steps}_steps"

    def fleet(self, robots: int) -> Fleet:
        """What so many robots ask for."""
        return Fleet(
            robots,
            self.rate_hz,
            self.budget_ms / 1e3,
            self.duration_s,
            self.num_steps,
            self.guidance_scale,
            self.seed,
        )

    def check_steps(self) -> None:
        """Refuse step counts that the checkpoint cannot do, before anything is started.

        Raises:
            ValueError: naming the field.
        """
        manifest = checkpoint.read_manifest(self.checkpoint)
        most = manifest.diffusion.num_timesteps
        if self.num_steps is not None and self.num_steps > most:
            msg = f"num_steps: expected 1..{most} (T of this policy), got {self.num_steps}"
            raise ValueError(msg)
        fewest = manifest.min_steps
        if not fewest <= self.max_useful_steps <= most:
            msg = (
                f"max_useful_steps: expected {fewest} (min_steps of this policy) .. {most} (its T)"
                f", got {self.max_useful_steps}"
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class Case:
    """One measurement."""

    engine: EngineName
    robots: int


class CpuMeter:
    """Cores in use between the first and the last look at a counter of processor time.

    Args:
        cpu_s: reads it; None if it cannot be known.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, cpu_s: Callable[[], float | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cpu_s, self._clock = cpu_s, clock
        self._looks: list[tuple[float, float]] = []

    def look(self) -> None:
        """Read it now."""
        cpu_s = self._cpu_s()
        if cpu_s is not None:
            self._looks.append((self._clock(), cpu_s))

    @property
    def cores(self) -> float | None:
        """Processor time over time; None with fewer than two looks."""
        if len(self._looks) < 2:
            return None
        (first_s, first_cpu_s), (last_s, last_cpu_s) = self._looks[0], self._looks[-1]
        return (last_cpu_s - first_cpu_s) / (last_s - first_s)


def summarise(
    case: Case,
    fleet: Fleet,
    record: FleetRecord,
    pings_s: Sequence[float],
    server_cpu: float | None,
) -> dict[str, Any]:
    """One row of the result.

    Args:
        case: what was measured.
        fleet: what it was measured with.
        record: what became of the requests.
        pings_s: latencies of pings meanwhile.
        server_cpu: cores that the server used.
    """
    due = len(record.due_s)
    counts = {name: int(np.count_nonzero(record.outcome == name)) for name in OUTCOMES}
    latencies_s = _known(record.latency_s)
    steps = record.num_steps[record.num_steps > 0]
    served = np.bincount(record.robot[record.outcome == "on_time"], minlength=fleet.robots)
    return {
        "robots": case.robots,
        "engine": case.engine,
        "num_steps": fleet.num_steps,
        "offered_rps": due / fleet.duration_s,
        "on_time_rps": counts["on_time"] / fleet.duration_s,
        "late_rate": counts["late"] / due,
        "refused_rate": counts["refused"] / due,
        "lost_rate": counts["lost"] / due,
        "miss_rate": (due - counts["on_time"]) / due,
        "due_requests": due,
        "num_steps_p50": quantile(steps.tolist(), 0.5),
        "num_steps_min": int(steps.min()) if len(steps) else None,
        "rows_per_call_p50": quantile(_known(record.rows_per_call), 0.5),
        "latency_p50_s": quantile(latencies_s, 0.5),
        "latency_p99_s": p99(latencies_s),
        "latency_p999_s": p999(latencies_s),
        "latency_max_s": max(latencies_s, default=None),
        "refusal_p50_s": quantile(_known(record.refusal_s), 0.5),
        "first_row_p99_s": p99(_known(record.queue_s)),
        "ping_p99_s": p99(pings_s),
        "fairness": jain_index(served.tolist()),
        "least_served": least_share(served.tolist()),
        "server_cpu": server_cpu,
        "generator_cpu": record.cpu_s / fleet.duration_s,
    }


def _known(samples: npt.NDArray[np.float64]) -> list[float]:
    known: list[float] = samples[~np.isnan(samples)].tolist()
    return known


def write_requests(path: Path, records: Mapping[Case, FleetRecord]) -> None:
    """Raw samples, rounded to be small: numpy arrays ENGINE.ROBOTS.COLUMN, an entry a request.

    Columns: outcome (uint8, place in `OUTCOMES`), settled_s (float16, from due to the answer or the
    refusal), queue_s, rows_per_call (float16) and num_steps (uint16). Half precision is within
    0.05%; what was late is told by `outcome`. Who asked, and when it was due, are what
    `benchmarks.fleet.due_times` gives, from time 0 on.
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    for case, record in records.items():
        settled_s = np.where(np.isnan(record.latency_s), record.refusal_s, record.latency_s)
        places = [place * (record.outcome == name) for place, name in enumerate(OUTCOMES)]
        mine = {
            "outcome": np.sum(places, axis=0).astype(np.uint8),
            "settled_s": settled_s.astype(np.float16),
            "queue_s": record.queue_s.astype(np.float16),
            "rows_per_call": record.rows_per_call.astype(np.float16),
            "num_steps": record.num_steps.astype(np.uint16),
        }
        columns |= {f"{case.engine}.{case.robots}.{name}": mine[name] for name in mine}
    with results.written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]  # takes them for allow_pickle


def start_server(stack: ExitStack, engine: EngineName, config: LoadConfig) -> ServerProcess:
    """A server with this engine, until the stack is closed."""
    steps = str(config.max_useful_steps)
    match engine:
        case "deadline":
            module, options = "policy_server", ["--max-useful-steps", steps]
        case "fifo" | "null":
            module = "benchmarks.baseline_server"
            options = ["--engine", engine, "--default-steps", steps]
    options += ["--backend", config.backend, *FLEET_OPTIONS]
    server = running_server(config.checkpoint, *options, module=module)
    return stack.enter_context(server)


def measure(
    case: Case, config: LoadConfig, server: ServerProcess, watch: Callable[[float], object]
) -> tuple[dict[str, Any], FleetRecord]:
    """One case, against a server that nobody else asks.

    Args:
        case: what to measure.
        config: how.
        server: with the case's engine.
        watch: told the time since the start of the run, some times a second.

    Returns:
        (row of the result, raw samples).

    Raises:
        RuntimeError: the server ended.
    """
    fleet = config.fleet(case.robots)
    meter = CpuMeter(lambda: server.cpu_s)

    def look(run_s: float) -> None:
        if 0 <= run_s <= fleet.duration_s:
            meter.look()
        watch(run_s)

    with pinging(server.address) as pings:
        record = drive_fleet(server.address, fleet, processes=config.processes, watch=look)
    if server.process.poll() is not None:
        msg = f"the server ended while it was measured with {case}"
        raise RuntimeError(msg)
    start_s = record.started_at_s
    pings_s = pings.between(start_s, start_s + fleet.duration_s)
    return summarise(case, fleet, record, pings_s, meter.cores), record


def run(config: LoadConfig, console: Console) -> list[dict[str, Any]]:
    """Measure every case, in random order; what is done is written after each."""
    config.check_steps()
    cases = [Case(engine, robots) for engine in config.engine for robots in config.robots]
    order = random.Random(config.seed).sample(cases, len(cases))
    rows: dict[Case, dict[str, Any]] = {}
    records: dict[Case, FleetRecord] = {}
    with ExitStack() as stack:
        console.print(f"starting {', '.join(config.engine)} (loading, export, calibration) …")
        servers = {engine: start_server(stack, engine, config) for engine in config.engine}
        each_s = WARM_UP_S + config.duration_s
        bar = stack.enter_context(
            tqdm(total=round(len(order) * each_s), unit="s", desc="driving", file=sys.stderr)
        )
        for number, case in enumerate(order):
            bar.set_postfix_str(f"{case.robots} robots, {case.engine}")

            def watch(run_s: float, done_s: float = number * each_s) -> None:
                bar.update(round(done_s + min(WARM_UP_S + run_s, each_s)) - bar.n)

            rows[case], records[case] = measure(case, config, servers[case.engine], watch)
            delay_s = p99(_known(records[case].send_delay_s))
            if delay_s is not None and delay_s > BEHIND_S:
                bar.write(
                    f"{case}: 1% of the requests were sent more than {delay_s * 1e3:.1f} ms late, "
                    "which their latency contains; try more --processes, or a quieter machine",
                    file=sys.stderr,
                )
            done = [one for one in cases if one in rows]
            results.write_results(
                config.out, config.name, vars(config), [rows[one] for one in done]
            )
            write_requests(
                config.out / f"{config.name}_requests.npz", {one: records[one] for one in done}
            )
    return [rows[case] for case in cases]


def main(config: LoadConfig) -> None:
    """Measure, print the table and who carries how many, write results, raw samples and plot."""
    console = results.console()
    rows = run(config, console)
    plot(rows, config.budget_ms / 1e3, config.out / f"{config.name}.png")
    console.print(table_of(rows))
    console.print(carried_text(rows))
    files = f"{config.name}.json, {config.name}_requests.npz and {config.name}.png"
    console.print(f"wrote {files} to {config.out}")
