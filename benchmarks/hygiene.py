"""Do the server's real-time measures help? Each is left out in turn, and others are added.

One robot asks several servers in turn, in short blocks of one run, so that whatever else the
machine does happens to all. Beside it somebody comes with new words again and again, which have to
be encoded by the thread next to the loop. All of that first on a machine that is idle otherwise,
then beside two programs that do nothing but compute.
"""

from __future__ import annotations

import gc
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from benchmarks.deadlines import Background, load_on_all_cores
from benchmarks.fleet import FleetRecord, fleet_questions, question_columns, run_jobs
from benchmarks.generator import Asked, Job
from benchmarks.hygiene_server import Change
from benchmarks.server_process import running_server
from benchmarks.statistics import p99, p999, quantile
from client import PolicyClient
from models import checkpoint

CHANGES: tuple[Change, ...] = get_args(Change)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
_GAP_S = 0.1
_NEWCOMER_EVERY_S = 0.5
_NEWCOMER_BUDGET_S = 1.0


@dataclass(frozen=True)
class HygieneConfig:
    """What `python -m benchmarks hygiene` takes.

    Attributes:
        requests: of each server, with and without neighbours.
        rate_hz: requests of the robot per second.
        budget_ms: time from when a request is due to when its answer must be there.
        num_steps: of each request: always as many, so that latencies can be compared, and so many
            that a neighbour comes between them.
        block_s: for so long one server is asked before it is another one's turn.
        checkpoint: folder of the policy; the bundled one if not given.
        seed: of the order of the servers and the observations.
        out: folder of hygiene.json.
    """

    requests: int = 10_000
    rate_hz: float = 50.0
    budget_ms: float = 80.0
    num_steps: int = 50
    block_s: float = 1.0
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    seed: int = 10
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("requests", "rate_hz", "budget_ms", "num_steps", "block_s"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.block_s * self.rate_hz < 1:
            msg = f"block_s: expected a period of {1 / self.rate_hz:g} s, got {self.block_s:g}"
            raise ValueError(msg)


def blocks(config: HygieneConfig) -> list[tuple[float, Change]]:
    """(begin, who is asked) of each block: rounds of one a server, in random order.

    The first round, before 0, warms up.
    """
    rng = random.Random(config.seed)
    rounds = -(-config.requests // round(config.block_s * config.rate_hz))
    turn_s = config.block_s + _GAP_S
    order = [rng.sample(CHANGES, len(CHANGES)) for _ in range(rounds + 1)]
    turns = [change for one in order for change in one]
    return [((i - len(CHANGES)) * turn_s, change) for i, change in enumerate(turns)]


def due_times(config: HygieneConfig, change: Change) -> npt.NDArray[np.float64]:
    """When a server is asked, float64 [requests and those that warm up], rising."""
    in_block = np.arange(round(config.block_s * config.rate_hz)) / config.rate_hz
    mine = [begin_s + in_block for begin_s, whose in blocks(config) if whose == change]
    return np.concatenate(mine)[: config.requests + len(in_block)]


def full_collection_s() -> dict[str, float]:
    """What a full garbage collection takes in this process, which holds more than the server's."""

    def timed_s() -> float:
        begun_s = time.monotonic()
        gc.collect()
        return time.monotonic() - begun_s

    seconds = {"not_frozen": min(timed_s() for _ in range(3))}
    gc.freeze()
    seconds["frozen"] = min(timed_s() for _ in range(3))
    gc.unfreeze()
    return seconds


def row_of(change: Change, background: Background, record: FleetRecord) -> dict[str, Any]:
    """What a robot of this server met."""
    mine = record.robot == CHANGES.index(change)
    latency_s = record.latency_s[mine]
    latencies_s = latency_s[~np.isnan(latency_s)].tolist()
    return {
        "change": change,
        "background": background,
        "due_requests": int(mine.sum()),
        "missed": int(np.count_nonzero(record.outcome[mine] != "on_time")),
        "latency_p50_s": quantile(latencies_s, 0.5),
        "latency_p99_s": p99(latencies_s),
        "latency_p999_s": p999(latencies_s),
        "latency_max_s": max(latencies_s, default=None),
    }


def run(config: HygieneConfig) -> dict[Background, FleetRecord]:
    """Ask all servers in turn; robots are numbered as in `CHANGES`."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        folder = shutil.copytree(config.checkpoint, Path(name) / "exported")
        export = [sys.executable, "-m", "models", "export", str(folder)]
        subprocess.run(export, check=True, capture_output=True)
        addresses: dict[Change, str] = {}
        for change in tqdm(CHANGES, desc="starting servers", file=sys.stderr):
            server = running_server(
                folder, "--backend", "onnx", "--change", change, module="benchmarks.hygiene_server"
            )
            addresses[change] = stack.enter_context(server).address
        newcomers = {c: stack.enter_context(PolicyClient(a)) for c, a in addresses.items()}
        spec = newcomers["none"].metadata(timeout_s=10.0).spec
        questions = fleet_questions(spec, config.seed)
        instruction, observation = question_columns(questions)
        session, jobs = uuid.uuid4().hex, []
        for number, change in enumerate(CHANGES):
            due_s = due_times(config, change)
            asked = Asked(
                addresses[change],
                f"{session}-{number}",
                config.budget_ms / 1e3,
                config.num_steps,
                guidance_scale=None,
            )
            jobs.append(
                Job(
                    asked,
                    robot=np.full(len(due_s), number, np.int64),
                    due_s=due_s,
                    question=np.arange(len(due_s)) % len(questions),
                    instruction=instruction,
                    observation=observation,
                )
            )
        turns = blocks(config)
        ends_s = turns[-1][0] + config.block_s
        came_s = [-np.inf]

        def watch(bar: tqdm[None], now_s: float) -> None:
            bar.update(max(0, min(round(now_s), bar.total) - bar.n))
            for change, newcomer in newcomers.items():
                newcomer.poll(0.0)
                turn = max((t for t in turns if t[0] <= now_s), default=turns[0])
                if turn[1] == change and now_s >= came_s[0] + _NEWCOMER_EVERY_S and now_s < ends_s:
                    came_s[0] = now_s
                    newcomer.submit(
                        questions[0].observation,
                        f"please, {uuid.uuid4().hex}",
                        budget_s=_NEWCOMER_BUDGET_S,
                    )

        records: dict[Background, FleetRecord] = {}
        for background in BACKGROUNDS:
            came_s[0] = -np.inf
            with (
                load_on_all_cores(background),
                tqdm(total=round(ends_s), unit="s", desc=background, file=sys.stderr) as bar,
            ):
                records[background] = run_jobs(jobs, watch=partial(watch, bar))
        return records


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people; latencies in ms."""
    table = Table(title="one robot, by what is changed (latencies in ms)")
    for column in ("machine", "change", "due", "missed", "p50", "p99", "p99.9", "max"):
        named = column in ("machine", "change")
        table.add_column(column, justify="left" if named else "right")
    for row in rows:
        latencies = [row[f"latency_{name}_s"] for name in ("p50", "p99", "p999", "max")]
        table.add_row(
            row["background"],
            row["change"],
            str(row["due_requests"]),
            str(row["missed"]),
            *("–" if s is None else f"{s * 1e3:.1f}" for s in latencies),
        )
    return table


def main(config: HygieneConfig) -> None:
    """Measure, print the table, write the results."""
    console = results.console()
    collection_s = full_collection_s()
    records = run(config)
    rows = [
        row_of(change, background, record)
        for background, record in records.items()
        for change in CHANGES
    ]
    results.write_results(
        config.out, "hygiene", {**vars(config), "full_collection_s": collection_s}, rows
    )
    console.print(table_of(rows))
    shown = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in collection_s.items())
    console.print(f"a full garbage collection: {shown}")
    console.print(f"wrote hygiene.json to {config.out}")
