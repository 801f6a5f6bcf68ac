"""How many denoising steps fit the deadline? A real server, a real-time robot, every step count."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from benchmarks.episodes import Ending, EpisodeSpec
from benchmarks.policy_choice import PolicyChoice
from benchmarks.scores import score_fields
from benchmarks.server_process import running_server
from benchmarks.statistics import p99, quantile, wilson_interval
from client import ControlLoop, PolicyClient
from client.loop_stats import LoopStats, RequestRecord
from client.sims.real_time import RealTimeRobot, sample_pool
from client.sims.simulation import SimulatedRobot
from client.specs import PolicySpec
from policy_server.backends.choice import BackendName

Background = Literal["idle", "busy"]
NumSteps = int | Literal["auto"]

_POOL_PER_TASK = 20
_TIMEOUT_S = 2.0
_HOGS = 2
_HOG = "while True:\n    pass"


@dataclass(frozen=True, kw_only=True)
class DeadlinesConfig(PolicyChoice):
    """What `python -m benchmarks deadlines` takes.

    Attributes:
        num_steps: step counts to try; auto leaves it to the server's planner.
        background: idle, or busy: two processes that keep two cores at full load.
        duration_s: of each case, in wall-clock time; the episode that it cuts short does not
            count, so make it many times the longest one (desk: 2.5 s, pusht: 30 s).
        budget_ms: time from when a request is due to when its answer must be there.
        guidance_scale: w; the checkpoint's default if not given.
        backend: what runs the network.
        seed: of starts, phrasings and the order of the cases.
        out: folder of deadlines.json, deadlines_requests.csv and deadlines.png.
    """

    num_steps: tuple[NumSteps, ...] = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, "auto")
    background: tuple[Background, ...] = ("idle", "busy")
    duration_s: float = 20.0
    budget_ms: float = 80.0
    guidance_scale: float | None = None
    backend: BackendName = "auto"
    seed: int = 1
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        for name in ("duration_s", "budget_ms"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True)
class _Case:
    num_steps: NumSteps
    background: Background


@contextmanager
def load_on_all_cores(background: Background) -> Iterator[None]:
    """With "busy", two processes that do nothing but compute, for as long as the context lasts."""
    with ExitStack() as stack:
        for _ in range(_HOGS if background == "busy" else 0):
            hog = stack.enter_context(subprocess.Popen([sys.executable, "-c", _HOG]))
            stack.callback(hog.kill)
        yield


def _warm_up(policy: PolicyClient, spec: PolicySpec) -> None:
    """One answer that is not counted: whatever was asked before this case is over after it."""
    zeros = {name: np.zeros(array.shape, array.dtype) for name, array in spec.observation.items()}
    policy.act(zeros, "warm up", budget_s=10.0, num_steps=1, timeout_s=20.0)


@dataclass(frozen=True)
class Played:
    """Episodes that came to an end."""

    specs: list[EpisodeSpec] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)


def drive(
    case: _Case,
    config: DeadlinesConfig,
    address: str,
    robot: RealTimeRobot,
    words: Callable[[str], str],
) -> tuple[LoopStats, Played]:
    """Drive the robot in real time for `duration_s`; return what the loop counted and endings.

    `words` says what it is told when it is asked for a task.
    """
    played = Played()
    with PolicyClient(address) as policy:
        metadata = policy.metadata(timeout_s=10.0)
        _warm_up(policy, metadata.spec)
        loop = ControlLoop(
            robot,
            policy,
            metadata.spec,
            instruction=lambda: instruction,
            budget_s=config.budget_ms / 1e3,
            num_steps=None if case.num_steps == "auto" else case.num_steps,
            guidance_scale=config.guidance_scale,
            timeout_s=_TIMEOUT_S,
        )
        end_s = time.monotonic() + config.duration_s
        while time.monotonic() < end_s:
            robot.begin_next()
            instruction = words(robot.task)
            loop.begin_episode()
            while robot.outcome is None and time.monotonic() < end_s:
                loop.step()
            if robot.outcome is not None:
                played.specs.append(EpisodeSpec(config.seed, robot.task, instruction))
                played.endings.append(Ending(robot.outcome, robot.simulation.scores()))
        return loop.drain(), played


def summarise(
    case: _Case, config: DeadlinesConfig, served: dict[str, Any], stats: LoopStats, played: Played
) -> dict[str, Any]:
    """One row of the result."""
    ends = [ending.outcome for ending in played.endings]
    answered = [r for r in stats.requests if r.latency_s is not None]
    latencies = [r.latency_s for r in answered if r.latency_s is not None]
    staleness = [r.staleness_s for r in stats.requests if r.staleness_s is not None]
    steps = [r.num_steps for r in answered if r.num_steps is not None]
    nfe = [r.nfe for r in answered if r.nfe is not None]
    return {
        "num_steps": case.num_steps,
        "background": case.background,
        "budget_s": config.budget_ms / 1e3,
        **served,
        "num_steps_p50": median(steps) if steps else None,
        "num_steps_min": min(steps, default=None),
        "nfe_p50": median(nfe) if nfe else None,
        "due_requests": stats.due_requests,
        "late": stats.late,
        "refused": stats.refused,
        "lost": stats.lost,
        "miss_rate": stats.miss_rate,
        "control_ticks": stats.control_ticks,
        "starved": stats.starved,
        "waiting": stats.waiting,
        "skipped": stats.skipped,
        "overruns": stats.overruns,
        "rejected": stats.rejected.total(),
        "latency_p50_s": quantile(latencies, 0.5),
        "latency_p99_s": p99(latencies),
        "latency_max_s": max(latencies, default=None),
        "staleness_p50_s": quantile(staleness, 0.5),
        "episodes": len(ends),
        "success_rate": ends.count("asked") / len(ends) if ends else None,
        "success_interval": wilson_interval(ends.count("asked"), len(ends)) if ends else None,
        "opposite_rate": ends.count("opposite") / len(ends) if ends else None,
        **(score_fields(played.specs, played.endings) if ends else {}),
    }


def _shuffled_tasks(kind: SimulatedRobot, rng: random.Random) -> list[str]:
    """Every task equally often."""
    return rng.sample(kind.tasks * _POOL_PER_TASK, len(kind.tasks) * _POOL_PER_TASK)


def run(config: DeadlinesConfig, console: Console) -> list[dict[str, Any]]:
    """Measure every case, in random order; what is done is written after each."""
    manifest, kind = config.read()
    most = manifest.diffusion.num_timesteps
    for count in config.num_steps:
        if count != "auto" and not 1 <= count <= most:
            msg = f"num_steps: expected 1..{most} or auto, got {count}"
            raise ValueError(msg)
    longest_s = kind.episode_ticks * kind.spec.control_period_s
    if config.duration_s < longest_s:  # or only those would count that are over early
        msg = (
            f"duration_s: expected at least {longest_s:g}, the longest episode of "
            f"{kind.spec.task!r}, and better ten times that; got {config.duration_s:g}"
        )
        raise ValueError(msg)
    rng = random.Random(config.seed)
    cases = [_Case(n, b) for b in config.background for n in config.num_steps]
    order = rng.sample(cases, len(cases))
    robot = RealTimeRobot(kind, sample_pool(kind, _shuffled_tasks(kind, rng), config.seed))
    phrasings = kind.phrasings("known")

    def words(task: str) -> str:
        return rng.choice(phrasings[task])

    rows: dict[_Case, dict[str, Any]] = {}
    records: dict[_Case, list[RequestRecord]] = {}
    console.print(f"starting a server for {config.folder} (loading, export, calibration) …")
    with running_server(config.folder, "--backend", config.backend) as server:
        with PolicyClient(server.address) as client:
            metadata = client.metadata(timeout_s=10.0)
        w = config.guidance_scale
        served = {
            "guidance_scale": metadata.defaults.guidance_scale if w is None else w,
            "backend": metadata.backend,
        }
        total_s = len(order) * config.duration_s
        with tqdm(total=round(total_s), unit="s", desc="driving", file=sys.stderr) as bar:
            for case in order:
                bar.set_postfix_str(f"{case.num_steps} steps, {case.background}")
                with load_on_all_cores(case.background):
                    stats, played = drive(case, config, server.address, robot, words)
                if server.process.poll() is not None:
                    msg = f"the server ended while it was measured with {case}"
                    raise RuntimeError(msg)
                rows[case] = summarise(case, config, served, stats, played)
                records[case] = list(stats.requests)
                done = [one for one in cases if one in rows]
                results.write_results(
                    config.out, "deadlines", vars(config), [rows[one] for one in done]
                )
                write_requests(
                    config.out / "deadlines_requests.csv", {one: records[one] for one in done}
                )
                bar.update(round(config.duration_s))
    return [rows[case] for case in cases]


def write_requests(path: Path, records: dict[_Case, list[RequestRecord]]) -> None:
    """Raw samples: one line a request."""
    names = [one.name for one in fields(RequestRecord)]
    with (
        results.written_whole(path) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["num_steps_asked", "background", *names])
        for case, requests in records.items():
            for record in requests:
                row = [getattr(record, name) for name in names]
                writer.writerow(
                    [
                        case.num_steps,
                        case.background,
                        *(f"{v:.6f}" if isinstance(v, float) else v for v in row),
                    ]
                )


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people, in milliseconds and percent."""

    def ms(seconds: float | None) -> str:
        return "–" if seconds is None else f"{seconds * 1e3:.1f}"

    def percent(share: float | None) -> str:
        return "–" if share is None else f"{share:.1%}"

    table = Table(title="deadline misses and task success by denoising steps")
    for name in ("steps", "cores", "requests", "missed", "p50 ms", "max ms"):
        table.add_column(name, justify="right")
    scored = any("score" in row for row in rows)
    for name in ("steps given", "starved", "episodes", "success", *(["score"] if scored else [])):
        table.add_column(name, justify="right")
    for row in rows:
        given = "–" if row["num_steps_p50"] is None else f"{row['num_steps_p50']:g}"
        table.add_row(
            str(row["num_steps"]),
            row["background"],
            str(row["due_requests"]),
            percent(row["miss_rate"]),
            ms(row["latency_p50_s"]),
            ms(row["latency_max_s"]),
            given,
            percent(row["starved"] / max(1, row["control_ticks"])),
            str(row["episodes"]),
            percent(row["success_rate"]),
            *([f"{row['score']:.3f}" if "score" in row else "–"] if scored else []),
        )
    return table


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Latency against the budget, miss rate and success or score over steps, idle and busy."""
    quality = "score" if any("score" in row for row in rows) else "success"
    value = "score" if quality == "score" else "success_rate"
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    styles = {"idle": ("tab:blue", "o"), "busy": ("tab:red", "s")}
    for background in dict.fromkeys(row["background"] for row in rows):
        color, marker = styles[background]
        mine = [row for row in rows if row["background"] == background]
        fixed = sorted((r for r in mine if r["num_steps"] != "auto"), key=lambda r: r["num_steps"])
        auto = [row for row in mine if row["num_steps"] == "auto"]
        for panel, name in zip(panels, ("latency_p50_s", "miss_rate", value), strict=True):
            scale = 1e3 if name.endswith("_s") else 100
            steps = [row["num_steps"] for row in fixed]
            panel.plot(
                steps,
                [np.nan if row.get(name) is None else scale * row[name] for row in fixed],
                color=color,
                marker=marker,
                label=f"fixed steps, {background}",
            )
            for row in auto:
                if row.get(name) is not None and row["num_steps_p50"] is not None:
                    panel.plot(
                        row["num_steps_p50"],
                        scale * row[name],
                        color=color,
                        marker="*",
                        markersize=17,
                        markeredgecolor="black",
                        linestyle="none",
                        label=f"auto, {background}",
                    )
        known = [row for row in fixed if row.get(f"{quality}_interval") is not None]
        panels[2].fill_between(
            [row["num_steps"] for row in known],
            *([100 * row[f"{quality}_interval"][end] for row in known] for end in (0, 1)),
            color=color,
            alpha=0.12,
            label=f"95% interval, {background}",
        )
        worst = [1e3 * row["latency_max_s"] if row["latency_max_s"] else np.nan for row in fixed]
        steps = [row["num_steps"] for row in fixed]
        panels[0].plot(steps, worst, color=color, linestyle=":", label=f"slowest, {background}")
    budget_ms = 1e3 * rows[0]["budget_s"]
    panels[0].axhline(budget_ms, color="black", linestyle="--", label=f"budget {budget_ms:g} ms")
    panels[0].set(
        yscale="log",
        ylabel="latency from when due, ms",
        title="latency of answered requests (median)",
    )
    panels[1].set(ylabel="missed requests, %", ylim=(-4, 104), title="deadline misses")
    panels[2].set(
        ylabel="mean score, %" if quality == "score" else "episodes, %",
        ylim=(-4, 104),
        title=f"task {quality}",
    )
    for panel in panels:
        panel.set(xscale="log", xlabel="denoising steps")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    panels[2].legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=130)


def main(config: DeadlinesConfig) -> None:
    """Measure, print the table, write results, raw samples and the plot."""
    console = results.console()
    rows = run(config, console)
    plot(rows, config.out / "deadlines.png")
    console.print(table_of(rows))
    console.print(f"wrote deadlines.json, deadlines_requests.csv and deadlines.png to {config.out}")


def recorded_conditions(path: Path, background: Background) -> list[tuple[float, int]]:
    """(latency in seconds, steps) of every "auto" request of a recording; inf if not answered.

    Args:
        path: a deadlines_requests.csv.
        background: beside which they were measured.

    Raises:
        ValueError: it has no such request.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["num_steps_asked"], row["background"]) == ("auto", background)
            and row["outcome"] != "abandoned"
        ]
    if not rows:
        msg = f"{path}: expected {background} requests with num_steps_asked = auto, found none"
        raise ValueError(msg)
    return [
        (float(row["latency_s"]), int(row["num_steps"])) if row["latency_s"] else (float("inf"), 1)
        for row in rows
    ]
