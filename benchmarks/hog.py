"""Are deadlines kept beside a neighbour who takes all cores, and comes and goes?

One robot at a high rate with a tight budget, and three policies in turn, in short blocks of one
run: elastic steps; a fixed number of steps on the same server; and a server without a network,
which misses what wire, machine and generator make anybody miss. A policy is judged by how much
more it misses than that.
"""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from tqdm import tqdm

from benchmarks import hog_report, results
from benchmarks.deadlines import load_on_all_cores
from benchmarks.fleet import FleetRecord, fleet_questions, question_columns, run_jobs
from benchmarks.generator import OUTCOMES, Asked, Job
from benchmarks.latency import Question
from benchmarks.server_process import running_server
from client import PolicyClient
from models import checkpoint
from policy_server.backends.choice import BackendName

Policy = Literal["elastic", "null", "fixed"]
POLICIES: tuple[Policy, ...] = ("elastic", "null", "fixed")

_GAP_S = 0.1
"""After a block, so that what it left behind is done when the next one begins."""
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class HogConfig:
    """What `python -m benchmarks hog` takes.

    Attributes:
        checkpoint: folder of the policy; the bundled one if not given.
        requests: of each of the three policies.
        rate_hz: requests of the robot per second.
        budget_ms: time from when a request is due to when its answer must be there.
        num_steps: of the fixed policy, and the most that the elastic one may take.
        guidance_scale: w.
        block_s: for so long one policy is asked before it is another one's turn.
        hog_s: for so long, roughly, the neighbour stays, and stays away.
        backend: what runs the network.
        seed: of the order of the policies, their phases and observations.
        out: folder of hog.json, hog_requests.npz and hog.png.
    """

    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    requests: int = 10_000
    rate_hz: float = 50.0
    budget_ms: float = 15.0
    num_steps: int = 50
    guidance_scale: float = 1.0
    block_s: float = 1.0
    hog_s: float = 10.0
    backend: BackendName = "auto"
    seed: int = 7
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("rate_hz", "budget_ms", "block_s", "hog_s"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("requests", "num_steps"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.block_s * self.rate_hz < 1:
            msg = f"block_s: expected a period of {1 / self.rate_hz:g} s, got {self.block_s:g}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Schedule:
    """Who is asked when, and when the neighbour is there.

    Attributes:
        due_s: of each policy's requests, float64 [requests and those that warm up], rising; from
            the start of the run, below 0 what warms up.
        visits_s: (from, to) of each visit of the neighbour.
        ends_s: when all is over.
    """

    due_s: dict[Policy, npt.NDArray[np.float64]]
    visits_s: tuple[tuple[float, float], ...]
    ends_s: float


def make_schedule(config: HogConfig) -> Schedule:
    """Rounds of one block a policy, in random order; the hog comes and goes between rounds.

    Half of the rounds, give or take one, are beside the hog. In a block the requests are exactly a
    period apart; its first one comes at a random time of a period, so that they do not keep in step
    with the system's timer ticks. One round before the start warms up.
    """
    rng = random.Random(config.seed)
    period_s = 1 / config.rate_hz
    in_block = round(config.block_s * config.rate_hz)
    turn_s = in_block * period_s + period_s + _GAP_S
    round_s = turn_s * len(POLICIES)
    rounds = -(-config.requests // in_block)
    due_s: dict[Policy, list[float]] = {policy: [] for policy in POLICIES}
    for number in range(-1, rounds):
        count = min(in_block, config.requests - max(number, 0) * in_block)
        for turn, policy in enumerate(rng.sample(POLICIES, len(POLICIES))):
            begin_s = number * round_s + turn * turn_s + rng.uniform(0, period_s)
            due_s[policy] += [begin_s + i * period_s for i in range(count)]
    pairs = max(1, round(rounds * round_s / (2 * config.hog_s)))
    stretches = np.array_split(np.arange(rounds), 2 * min(pairs, max(1, rounds // 2)))
    visits = tuple(
        (float(there[0] * round_s), float((there[-1] + 1) * round_s))
        for there in stretches[1::2]
        if len(there)
    )
    return Schedule({p: np.array(due_s[p]) for p in POLICIES}, visits, rounds * round_s)


@dataclass
class Hog:
    """Two processes that keep both cores busy, there at some times and away at others.

    Attributes:
        visits_s: (from, to) of each planned visit, rising.
        visited_s: (from, to) of each visit as it was; one that has not ended lasts for ever.
    """

    visits_s: Sequence[tuple[float, float]]
    visited_s: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Not there yet."""
        self._there = ExitStack()

    def follow(self, now_s: float) -> None:
        """Let them come or go, if it is time."""
        expected = any(begin_s <= now_s < end_s for begin_s, end_s in self.visits_s)
        if expected and not self.there:
            self._there.enter_context(load_on_all_cores("busy"))
            self.visited_s.append((now_s, float("inf")))
        elif self.there and not expected:
            self.leave(now_s)

    def leave(self, now_s: float) -> None:
        """End them."""
        self._there.close()
        if self.there:
            self.visited_s[-1] = (self.visited_s[-1][0], now_s)

    @property
    def there(self) -> bool:
        """Whether they are at work."""
        return bool(self.visited_s) and self.visited_s[-1][1] == float("inf")

    def beside(self, due_s: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which of these instants they were there at."""
        there = np.zeros(len(due_s), bool)
        for begin_s, end_s in self.visited_s:
            there |= (due_s >= begin_s) & (due_s < end_s)
        return there


def jobs_of(
    config: HogConfig,
    schedule: Schedule,
    addresses: dict[Policy, str],
    questions: Sequence[Question],
) -> list[Job]:
    """One job a policy; its one robot has the policy's place in `POLICIES` as its number."""
    session = uuid.uuid4().hex
    instruction, observation = question_columns(questions)
    jobs = []
    for number, policy in enumerate(POLICIES):
        due_s = schedule.due_s[policy]
        asked = Asked(
            address=addresses[policy],
            session=f"{session}-{number}",
            budget_s=config.budget_ms / 1e3,
            num_steps=config.num_steps if policy == "fixed" else None,
            guidance_scale=config.guidance_scale,
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
    return jobs


@contextmanager
def _servers(config: HogConfig) -> Iterator[dict[Policy, str]]:
    options = ["--backend", config.backend, "--max-useful-steps", str(config.num_steps)]
    with (
        running_server(config.checkpoint, *options) as real,
        running_server(
            config.checkpoint,
            *("--engine", "null", "--backend", "torch"),
            module="benchmarks.baseline_server",
        ) as null,
    ):
        yield {"elastic": real.address, "null": null.address, "fixed": real.address}


def run(config: HogConfig, console: Console) -> tuple[FleetRecord, Hog]:
    """Measure; return what became of every request, and when the neighbour was there."""
    schedule = make_schedule(config)
    hog = Hog(schedule.visits_s)
    console.print(f"starting two servers for {config.checkpoint} (loading, export, calibration) …")
    with _servers(config) as addresses, ExitStack() as stack:
        stack.callback(hog.leave, schedule.ends_s)
        with PolicyClient(addresses["elastic"]) as client:
            spec = client.metadata(timeout_s=_TIMEOUT_S).spec
        jobs = jobs_of(config, schedule, addresses, fleet_questions(spec, config.seed))
        bar = stack.enter_context(
            tqdm(total=round(schedule.ends_s), unit="s", desc="asking", file=sys.stderr)
        )

        def watch(now_s: float) -> None:
            hog.follow(now_s)
            bar.set_postfix_str("beside the hog" if hog.there else "", refresh=False)
            bar.update(max(0, min(round(now_s), bar.total) - bar.n))

        return run_jobs(jobs, watch=watch), hog


def write_requests(path: Path, record: FleetRecord, beside_hog: npt.NDArray[np.bool_]) -> None:
    """Raw samples: numpy arrays POLICY.COLUMN, an entry a request, in the order of their due times.

    Columns: due_s (float32, from the start of the run), hog (bool, there when it was due), outcome
    (uint8, place in `OUTCOMES`), settled_s (float32, from due to the answer or the refusal),
    send_delay_s (float32, from due to the sending) and num_steps (uint16).
    """
    settled_s = np.where(np.isnan(record.latency_s), record.refusal_s, record.latency_s)
    places = [place * (record.outcome == name) for place, name in enumerate(OUTCOMES)]
    columns: dict[str, npt.NDArray[Any]] = {
        "due_s": record.due_s.astype(np.float32),
        "hog": beside_hog,
        "outcome": np.sum(places, axis=0).astype(np.uint8),
        "settled_s": settled_s.astype(np.float32),
        "send_delay_s": record.send_delay_s.astype(np.float32),
        "num_steps": record.num_steps.astype(np.uint16),
    }
    samples = {
        f"{policy}.{name}": values[record.robot == number]
        for number, policy in enumerate(POLICIES)
        for name, values in columns.items()
    }
    with results.written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **samples)


def main(config: HogConfig) -> None:
    """Measure, print the table, write results, raw samples and the plot."""
    console = results.console()
    record, hog = run(config, console)
    beside_hog = hog.beside(record.due_s)
    rows = hog_report.rows_of(record, beside_hog, POLICIES)
    of_hog = {"hog_visits_s": hog.visited_s}
    results.write_results(config.out, "hog", {**vars(config), **of_hog}, rows)
    write_requests(config.out / "hog_requests.npz", record, beside_hog)
    hog_report.plot(record, hog.visited_s, rows, config.budget_ms / 1e3, config.out / "hog.png")
    console.print(hog_report.table_of(rows))
    console.print(hog_report.verdict(rows))
    console.print(f"wrote hog.json, hog_requests.npz and hog.png to {config.out}")
