"""Does anybody notice hostile messages? One robot, without and beside a client that sends them.

The hostile client mutates valid messages, sends noise, bombs of nesting, size and number, and asks
for everything there is (benchmarks/hostile_messages.py), and opens connections that break ZeroMQ's
own protocol. It reads what it gets: every message but a cancellation is owed exactly one reply,
and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from benchmarks.fleet import WARM_UP_S, Fleet, FleetRecord, drive_fleet
from benchmarks.generator import OUTCOMES
from benchmarks.reporting_process import ReportingProcess, reporting_process
from benchmarks.server_process import ServerProcess, running_server
from benchmarks.statistics import p99, quantile, wilson_interval
from models import checkpoint
from policy_server.backends.choice import BackendName

Phase = Literal["quiet", "hostile"]
PHASES: tuple[Phase, ...] = ("quiet", "hostile")
_COLORS = {"quiet": "tab:blue", "hostile": "tab:red"}
_ROOM = 1.1
"""The robot asks for so many times as long as the messages should take."""
_SENDER_ENDS_WITHIN_S = 600.0


@dataclass(frozen=True)
class HostileConfig:
    """What `python -m benchmarks hostile` takes.

    Attributes:
        messages: that are hostile.
        messages_hz: sent in a second, or fewer if the server is slower.
        rate_hz: requests of the robot per second.
        budget_ms: time from when a request is due to when its answer must be there.
        checkpoint: folder of the policy; the bundled one if not given.
        backend: what runs the network.
        seed: of the messages and of what the robot asks; a report's, so below 100.
        out: folder of hostile.json and hostile.png.
    """

    messages: int = 100_000
    messages_hz: float = 1000.0
    rate_hz: float = 10.0
    budget_ms: float = 80.0
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    backend: BackendName = "auto"
    seed: int = 9
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if self.messages < 1:
            msg = f"messages: expected at least 1, got {self.messages}"
            raise ValueError(msg)
        for name in ("messages_hz", "budget_ms"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0 <= self.seed < 100:
            msg = f"seed: expected 0..99 (larger ones are for choosing), got {self.seed}"
            raise ValueError(msg)
        self.fleet()  # which checks rate_hz

    def fleet(self) -> Fleet:
        """One robot, for a little longer than the messages should take."""
        duration_s = _ROOM * self.messages / self.messages_hz + 1 / self.rate_hz
        return Fleet(1, self.rate_hz, self.budget_ms / 1e3, duration_s, None, None, self.seed)


def hostile_process(
    address: str, messages: int, messages_hz: float, seed: int
) -> AbstractContextManager[ReportingProcess]:
    """A hostile client in a process of its own; it reports what it sent and got."""
    return reporting_process(
        "the hostile client",
        "benchmarks.hostile_sender",
        *(address, messages, messages_hz, seed),
        ends_within_s=_SENDER_ENDS_WITHIN_S,
    )


def _measure(
    phase: Phase, config: HostileConfig, server: ServerProcess, watch: Callable[[float], object]
) -> tuple[dict[str, Any], FleetRecord]:
    """One phase: its row of the result, and what became of the robot's requests."""
    before = server.resident_bytes
    hostile: dict[str, Any] = {}
    with ExitStack() as stack:
        started: list[ReportingProcess] = []

        def look(run_s: float) -> None:
            if phase == "hostile" and run_s >= 0 and not started:
                process = hostile_process(
                    server.address, config.messages, config.messages_hz, config.seed
                )
                started.append(stack.enter_context(process))
            watch(run_s)

        record = drive_fleet(server.address, config.fleet(), watch=look)
        if started:
            hostile = started[0].report()
    if server.process.poll() is not None:
        msg = f"the server ended in the {phase} phase with exit status {server.process.returncode}"
        raise RuntimeError(msg)
    return _row(phase, record, (before, server.resident_bytes), hostile), record


def _row(
    phase: Phase,
    record: FleetRecord,
    resident: tuple[int | None, int | None],
    hostile: dict[str, Any],
) -> dict[str, Any]:
    due = len(record.due_s)
    missed = int(np.count_nonzero(record.outcome != "on_time"))
    latency_s = record.latency_s[~np.isnan(record.latency_s)].tolist()
    before, after = resident
    return {
        "phase": phase,
        "due_requests": due,
        "miss_rate": missed / due,
        "miss_interval": wilson_interval(missed, due),
        **{f"{name}_rate": float(np.mean(record.outcome == name)) for name in OUTCOMES[1:]},
        "latency_p50_s": quantile(latency_s, 0.5),
        "latency_p99_s": p99(latency_s),
        "latency_max_s": max(latency_s, default=None),
        "num_steps_min": min(record.num_steps[record.num_steps > 0].tolist(), default=None),
        "memory_growth_bytes": None if before is None or after is None else after - before,
        "hostile": hostile,
    }


def run(
    config: HostileConfig, console: Console
) -> tuple[list[dict[str, Any]], dict[Phase, FleetRecord]]:
    """Measure both phases, one after the other, on one server."""
    each_s = WARM_UP_S + config.fleet().duration_s
    rows: list[dict[str, Any]] = []
    records: dict[Phase, FleetRecord] = {}
    console.print(f"starting a server for {config.checkpoint} (loading, export, calibration) …")
    with (
        running_server(config.checkpoint, "--backend", config.backend) as server,
        tqdm(total=round(2 * each_s), unit="s", desc="asking", file=sys.stderr) as bar,
    ):
        for number, phase in enumerate(PHASES):
            bar.set_postfix_str(phase)

            def watch(run_s: float, done_s: float = number * each_s) -> None:
                bar.update(round(done_s + min(WARM_UP_S + run_s, each_s)) - bar.n)

            row, records[phase] = _measure(phase, config, server, watch)
            rows.append(row)
    return rows, records


def table_of(rows: list[dict[str, Any]]) -> Table:
    """For people, in milliseconds, percent and megabytes."""
    table = Table(title="one robot, without and beside a hostile client (latencies in ms)")
    table.add_column("phase")
    for name in ("requests", "missed", "late/refused/lost", "p50", "p99", "max", "memory, MB"):
        table.add_column(name, justify="right", no_wrap=True)

    def ms(seconds: float | None) -> str:
        return "–" if seconds is None else f"{seconds * 1e3:.1f}"

    for row in rows:
        growth = row["memory_growth_bytes"]
        table.add_row(
            row["phase"],
            str(row["due_requests"]),
            f"{row['miss_rate']:.2%}",
            "/".join(f"{100 * row[f'{name}_rate']:.2f}" for name in OUTCOMES[1:]),
            *(ms(row[f"latency_{name}_s"]) for name in ("p50", "p99", "max")),
            "–" if growth is None else f"{growth / 1e6:+.1f}",
        )
    return table


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the hostile client got, in words."""
    hostile = rows[-1]["hostile"]
    return (
        f"{hostile['messages']} hostile messages and {hostile['connections']} hostile connections "
        f"in {hostile['duration_s']:.0f} s: {hostile['replies']} replies, "
        f"{hostile['unanswered']} of those owed did not come, {hostile['surplus']} were not owed"
    )


def plot(records: dict[Phase, FleetRecord], config: HostileConfig, path: Path) -> None:
    """The robot's latency over time, and its distribution, in both phases."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    over_time, spread = figure.subplots(1, 2, gridspec_kw={"width_ratios": (2, 1)})
    for phase, record in records.items():
        answered = ~np.isnan(record.latency_s)
        latency_ms = 1e3 * record.latency_s[answered]
        color = _COLORS[phase]
        over_time.scatter(record.due_s[answered], latency_ms, s=5, color=color, label=phase)
        share = np.arange(1, len(latency_ms) + 1) / len(record.due_s)
        spread.step(np.sort(latency_ms), 1 - share, where="post", color=color, label=phase)
    over_time.axhline(config.budget_ms, color="black", linestyle="--", linewidth=0.8)
    spread.axvline(config.budget_ms, color="black", linestyle="--", linewidth=0.8)
    over_time.set(
        yscale="log",
        xlabel="time, s",
        ylabel="latency from when due, ms",
        title=f"one robot (dashed: budget {config.budget_ms:g} ms)",
    )
    spread.set(
        xscale="log", yscale="log", xlabel="latency, ms", title="share of requests that take longer"
    )
    for panel in (over_time, spread):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(config: HostileConfig) -> None:
    """Measure, print the table, write results and the plot."""
    console = results.console()
    rows, records = run(config, console)
    results.write_results(config.out, "hostile", vars(config), rows)
    plot(records, config, config.out / "hostile.png")
    console.print(table_of(rows))
    console.print(verdict(rows))
    console.print(f"wrote hostile.json and hostile.png to {config.out}")
