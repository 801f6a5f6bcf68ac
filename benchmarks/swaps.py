"""What do robots notice when the server swaps its model? A fleet, and SIGHUP again and again.

Two checkpoints that differ in their names take turns at the served path. Each swap loads, exports,
calibrates and warms up beside the model that is served, on the same machine as everything else.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from benchmarks.fleet import FLEET_OPTIONS, WARM_UP_S, Fleet, FleetRecord, drive_fleet
from benchmarks.generator import OUTCOMES
from benchmarks.server_process import ServerProcess, running_server
from benchmarks.statistics import p99, quantile
from models import checkpoint
from policy_server.backends.choice import BackendName

_TAKEN = " in place of "
"""What the server logs when a model has taken over."""


@dataclass(frozen=True)
class SwapsConfig:
    """What `python -m benchmarks swaps` takes.

    Attributes:
        swaps: how many.
        every_s: from one swap to the next; it must be over by then.
        robots: each asks at its own phase.
        rate_hz: requests of each robot per second.
        budget_ms: from when a request is due to when its answer must be there.
        max_useful_steps: in place of the checkpoint's own; see `LoadConfig`.
        checkpoint: folder of the policy; the bundled one if not given.
        backend: what runs the network.
        seed: of phases and observations.
        out: folder of swaps.json.
    """

    swaps: int = 10
    every_s: float = 15.0
    robots: int = 20
    rate_hz: float = 10.0
    budget_ms: float = 80.0
    max_useful_steps: int = 10
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    backend: BackendName = "auto"
    seed: int = 9
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if self.swaps < 1:
            msg = f"swaps: expected at least 1, got {self.swaps}"
            raise ValueError(msg)
        if not self.budget_ms > 0:
            msg = f"budget_ms: expected more than 0, got {self.budget_ms}"
            raise ValueError(msg)
        _ = self.fleet  # which checks the others

    @property
    def fleet(self) -> Fleet:
        """What is asked; the first stretch is without a swap."""
        duration_s = (self.swaps + 1) * self.every_s
        budget_s = self.budget_ms / 1e3
        return Fleet(self.robots, self.rate_hz, budget_s, duration_s, None, None, self.seed)


@dataclass
class Swapping:
    """Puts the next checkpoint in place and tells the server, when it is time.

    Attributes:
        folder: that is served.
        server: to tell.
        every_s: from one swap to the next.
        swaps: how many.
        asked_s: when each was asked for, from the start of the run.
        taken_s: when each was seen to have happened.
    """

    folder: Path
    server: ServerProcess
    every_s: float
    swaps: int
    asked_s: list[float] = field(default_factory=list)
    taken_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The names that take turns."""
        self._manifest = checkpoint.read_manifest(self.folder)
        self.names = (self._manifest.model_id, f"{self._manifest.model_id}-swapped")

    def follow(self, run_s: float) -> None:
        """Called some times a second with the time since the start of the run.

        Raises:
            RuntimeError: a swap was not over when it was time for the next.
        """
        if len(self.taken_s) < len(self.asked_s) <= self.server.log.count(_TAKEN):
            self.taken_s.append(run_s)
        if len(self.asked_s) < self.swaps and run_s >= (len(self.asked_s) + 1) * self.every_s:
            if len(self.taken_s) < len(self.asked_s):
                last = "\n".join(self.server.log.splitlines()[-3:])
                msg = f"no swap within {self.every_s:g} s; try a larger --every-s\n{last}"
                raise RuntimeError(msg)
            self.asked_s.append(run_s)
            model_id = self.names[len(self.asked_s) % 2]
            checkpoint.write_manifest(self.folder, replace(self._manifest, model_id=model_id))
            self.server.process.send_signal(signal.SIGHUP)


def loading(
    due_s: npt.NDArray[np.float64], asked_s: Sequence[float], taken_s: Sequence[float]
) -> npt.NDArray[np.bool_]:
    """Which of these instants were while a model was being loaded."""
    within = np.zeros(len(due_s), bool)
    for begin_s, end_s in zip(asked_s, taken_s, strict=True):
        within |= (due_s >= begin_s) & (due_s < end_s)
    return within


def misnamed(
    record: FleetRecord, names: Sequence[str], asked_s: Sequence[float], taken_s: Sequence[float]
) -> int:
    """Answers that name a model which was not served when they were asked for.

    Args:
        record: what became of the requests.
        names: that take turns; the first one is served first.
        asked_s: when each swap was asked for.
        taken_s: when each had happened; between the two, either name is right.
    """
    answered = record.model_id != ""
    wrong = answered & ~np.isin(record.model_id, list(names))
    begins_s = [-np.inf, *taken_s]
    ends_s = [*asked_s, np.inf]
    for number, (begin_s, end_s) in enumerate(zip(begins_s, ends_s, strict=True)):
        served = (record.due_s >= begin_s) & (record.due_s < end_s)
        wrong |= answered & served & (record.model_id != names[number % 2])
    return int(np.count_nonzero(wrong))


def row_of(while_: str, record: FleetRecord, which: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """What became of some of the requests."""
    counts = {name: int(np.count_nonzero(record.outcome[which] == name)) for name in OUTCOMES}
    latency_s = record.latency_s[which]
    latencies_s = latency_s[~np.isnan(latency_s)].tolist()
    steps = record.num_steps[which & (record.num_steps > 0)].tolist()
    return {
        "while": while_,
        "due_requests": int(np.count_nonzero(which)),
        **counts,
        "missed": int(np.count_nonzero(which)) - counts["on_time"],
        "num_steps_p50": quantile(steps, 0.5),
        "latency_p50_s": quantile(latencies_s, 0.5),
        "latency_p99_s": p99(latencies_s),
        "latency_max_s": max(latencies_s, default=None),
    }


def run(config: SwapsConfig, console: Console) -> tuple[FleetRecord, Swapping]:
    """Measure; return what became of every request, and when models took over."""
    console.print("starting the server (loading, export, calibration) …")
    options = ["--backend", config.backend, "--max-useful-steps", str(config.max_useful_steps)]
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(config.checkpoint, Path(name) / "served")
        with (
            running_server(folder, *options, *FLEET_OPTIONS) as server,
            tqdm(
                total=round(WARM_UP_S + config.fleet.duration_s),
                unit="s",
                desc="asking",
                file=sys.stderr,
            ) as bar,
        ):
            swapping = Swapping(folder, server, config.every_s, config.swaps)

            def watch(run_s: float) -> None:
                swapping.follow(run_s)
                bar.set_postfix_str(f"{len(swapping.taken_s)} swaps", refresh=False)
                bar.update(max(0, min(round(WARM_UP_S + run_s), bar.total) - bar.n))

            record = drive_fleet(server.address, config.fleet, watch=watch)
    if len(swapping.taken_s) < config.swaps:
        msg = f"{len(swapping.taken_s)} of {config.swaps} swaps happened; try a larger --every-s"
        raise RuntimeError(msg)
    return record, swapping


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people; latencies in ms."""
    table = Table(title="requests while models are swapped (latencies in ms)")
    columns = ("while", "due", *OUTCOMES, "steps", "p50", "p99", "max")
    for column in columns:
        table.add_column(column, justify="left" if column == "while" else "right")
    for row in rows:
        latencies = [row[f"latency_{name}_s"] for name in ("p50", "p99", "max")]
        table.add_row(
            row["while"],
            str(row["due_requests"]),
            *(str(row[outcome]) for outcome in OUTCOMES),
            "–" if row["num_steps_p50"] is None else f"{row['num_steps_p50']:g}",
            *("–" if s is None else f"{s * 1e3:.1f}" for s in latencies),
        )
    return table


def main(config: SwapsConfig) -> None:
    """Measure, print the table, write the results."""
    console = results.console()
    record, swapping = run(config, console)
    within = loading(record.due_s, swapping.asked_s, swapping.taken_s)
    rows = [
        row_of("nothing is loaded", record, ~within),
        row_of("a model is loaded", record, within),
        row_of("all", record, np.ones_like(within)),
    ]
    wrong = misnamed(record, swapping.names, swapping.asked_s, swapping.taken_s)
    happened = {
        "asked_s": swapping.asked_s,
        "taken_s": swapping.taken_s,
        "answers": {name: int(np.sum(record.model_id == name)) for name in swapping.names},
        "misnamed": wrong,
    }
    results.write_results(config.out, "swaps", {**vars(config), **happened}, rows)
    console.print(table_of(rows))
    took_s = np.subtract(swapping.taken_s, swapping.asked_s)
    console.print(
        f"{len(took_s)} swaps, each ready after {took_s.min():.1f} to {took_s.max():.1f} s; "
        f"{wrong} answers with a name that was not their model's"
    )
    console.print(f"wrote swaps.json to {config.out}")
