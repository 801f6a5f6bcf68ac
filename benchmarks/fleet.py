"""A fleet of robots that ask at fixed times, whatever becomes of their requests (open loop).

A server's trouble must not slow down those who measure it: a load of callers that wait for their
answers asks less the slower it is answered, and never meets what a robot would (coordinated
omission). Here every request has an instant at which it is due, fixed before the run, and all is
counted from there. Each robot has a session of its own; the robots of one process share a
connection (benchmarks/generator.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from benchmarks.generator import LOST_AFTER_S, OUTCOMES, READY, Asked, Job, Notes
from benchmarks.latency import Question, questions_for
from client import PolicyClient
from client.history import ObservationHistory
from client.sims.desk import phrasings as desk_phrasings
from client.sims.desk.experts import expert_action
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import DESK_SPEC, TASKS
from client.specs import PolicySpec

FLEET_OPTIONS = ("--max-in-flight-per-client", "1000")
"""Of a server, for the robots of one process are one client to it: so many that a fleet meets the
engine's own bound first, which is shared out by robot."""
WARM_UP_S = 1.0
"""Before what counts: the robots learn what the way to the server takes."""
QUESTIONS = 300
PHRASINGS_PER_TASK = 2
_STREAM = 0xF1EE7
_HEAD_START_S = 0.2  # from telling the processes when to start to their first request
_WATCH_PERIOD_S = 0.1
_CONNECTED_WITHIN_S = 10.0
_IDLE_WITHIN_S = 120.0  # a server that refuses nothing may have a minute's work left over
_ENDS_WITHIN_S = 30.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Fleet:
    """What a number of robots ask for.

    Attributes:
        robots: each asks at its own phase.
        rate_hz: requests of each robot per second.
        budget_s: from when a request is due to when its answer is of use.
        duration_s: of what is counted; a second of warming up comes before.
        num_steps: exactly so many; None is elastic.
        guidance_scale: w; None is the checkpoint's default.
        seed: of phases and observations.
    """

    robots: int
    rate_hz: float
    budget_s: float
    duration_s: float
    num_steps: int | None
    guidance_scale: float | None
    seed: int = 6

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("rate_hz", "budget_s", "duration_s"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.robots < 1:
            msg = f"robots: expected at least 1, got {self.robots}"
            raise ValueError(msg)
        if self.duration_s * self.rate_hz < 1 - _ROUNDING:
            msg = (
                f"duration_s: expected at least one period of {1 / self.rate_hz:g} s, "
                f"got {self.duration_s}"
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class FleetRecord:
    """What became of every request that was due, an entry each, ordered by due_s.

    Attributes:
        robot: int64 [requests], who asked: 0 .. robots − 1.
        due_s: float64 [requests], from the start of the run.
        latency_s: float64 [requests], from due to the answer; nan if there was none.
        outcome: str [requests]: "on_time"; "late", answered after its budget; "refused", by the
            server or since nothing of its budget was left at sending; "lost", not answered
            within a second after its budget.
        refusal_s: float64 [requests], from due to the refusal; nan if it was not refused.
        num_steps: int64 [requests], executed; 0 without an answer.
        rows_per_call: float64 [requests], mean number of requests in its network calls, itself
            included; nan without an answer.
        queue_s: float64 [requests], in the server before any work; nan without an answer.
        model_id: str [requests], of the model that answered; empty without an answer.
        send_delay_s: float64 [requests], from due to the sending: how far the generator itself was
            behind; nan if it was not sent.
        started_at_s: `time.monotonic()` at the start of the run.
        cpu_s: used by the generator in the run, all its processes together.
    """

    robot: npt.NDArray[np.int64]
    due_s: npt.NDArray[np.float64]
    latency_s: npt.NDArray[np.float64]
    outcome: npt.NDArray[np.str_]
    refusal_s: npt.NDArray[np.float64]
    num_steps: npt.NDArray[np.int64]
    rows_per_call: npt.NDArray[np.float64]
    queue_s: npt.NDArray[np.float64]
    model_id: npt.NDArray[np.str_]
    send_delay_s: npt.NDArray[np.float64]
    started_at_s: float
    cpu_s: float


@lru_cache(maxsize=4)
def desk_questions(count: int, seed: int) -> tuple[Question, ...]:
    """What robots at the desk see and are told while scripted experts do what is asked.

    Args:
        count: how many, at least 1; they come request period by request period, task by task.
        seed: of the starts and the phrasings, of which there are two a task.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, _STREAM)))
    texts = {
        task: rng.choice(known, PHRASINGS_PER_TASK, replace=False).tolist()
        for task, known in desk_phrasings.known().items()
    }
    desk = Desk()
    questions: list[Question] = []
    episode = 0
    while len(questions) < count:
        task = TASKS[episode % len(TASKS)]
        instruction = texts[task][episode // len(TASKS) % PHRASINGS_PER_TASK]
        episode += 1
        desk.reset(desk.sample_start(rng))
        history = ObservationHistory(DESK_SPEC)
        while desk.outcome(task) is None:
            history.add(desk.ticks, desk.observation())
            if desk.ticks % DESK_SPEC.exec_steps == 0:
                questions.append(Question(history.stacked(), instruction))
            desk.step(expert_action(task, desk))
    return tuple(questions[:count])


def fleet_questions(spec: PolicySpec, seed: int) -> Sequence[Question]:
    """A few hundred for the desk, which has experts; fewer starts for any other robot."""
    return desk_questions(QUESTIONS, seed) if spec.task == "desk" else questions_for(spec, seed)


def due_times(fleet: Fleet) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Who asks when: (robot int64 [requests], due_s float64 [requests]), ordered by due_s.

    A robot's phase is drawn at random and its period is exact. Times below 0 are the warm-up.
    """
    rng = np.random.default_rng(np.random.SeedSequence((fleet.seed, _STREAM, fleet.robots)))
    period_s = 1 / fleet.rate_hz
    phase_s = rng.uniform(0.0, period_s, fleet.robots)
    periods = np.arange(-round(WARM_UP_S / period_s), round(fleet.duration_s / period_s))
    due_s = (phase_s[:, None] + period_s * periods).ravel()
    robot = np.repeat(np.arange(fleet.robots, dtype=np.int64), len(periods))
    order = np.argsort(due_s, kind="stable")
    return robot[order], due_s[order]


def drive_fleet(
    address: str,
    fleet: Fleet,
    *,
    processes: int = 1,
    watch: Callable[[float], object] = lambda _: None,
) -> FleetRecord:
    """Have the fleet's requests sent by processes of their own; return what became of each.

    Before the run every instruction is asked once, so that it is embedded when it counts, and so
    that the server is done with whatever it was asked before.

    Args:
        address: of a server.
        fleet: what it is asked.
        processes: among which the robots are divided.
        watch: called some times a second with the time since the start of the run, which is
            negative during the warm-up.

    Raises:
        PolicyError: the server cannot be reached or did not answer before the run.
        RuntimeError: the server said that a request, or it itself, is at fault.
    """
    with PolicyClient(address) as policy:
        spec = policy.metadata(timeout_s=_CONNECTED_WITHIN_S).spec
    questions = fleet_questions(spec, fleet.seed)
    return run_jobs(_jobs(address, fleet, questions, processes), watch=watch)


def run_jobs(
    jobs: Sequence[Job], *, watch: Callable[[float], object] = lambda _: None
) -> FleetRecord:
    """Run any jobs side by side, each in a process of its own; see `drive_fleet`.

    Args:
        jobs: of different robots, if they are to be told apart afterwards.
        watch: see `drive_fleet`.

    Raises:
        PolicyError, RuntimeError: see `drive_fleet`.
    """
    _have_embedded(jobs)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folders = [Path(name) / str(number) for number in range(len(jobs))]
        workers = []
        for job, folder in zip(jobs, folders, strict=True):
            folder.mkdir()
            job.save(folder)
            workers.append(stack.enter_context(_worker(folder)))
        for worker in workers:
            worker.await_ready()
        first_s = float(min(job.due_s[0] for job in jobs))
        started_at_s = time.monotonic() + _HEAD_START_S - min(first_s, 0.0)
        for worker in workers:
            worker.start(started_at_s)
        until_s = max(job.due_s[-1] + job.asked.budget_s for job in jobs) + LOST_AFTER_S
        while not all(worker.ended for worker in workers):
            now_s = time.monotonic() - started_at_s
            watch(now_s)
            if now_s > until_s + _ENDS_WITHIN_S:
                msg = f"a generator process did not end within {_ENDS_WITHIN_S:g} s after the run"
                raise RuntimeError(msg)
            time.sleep(_WATCH_PERIOD_S)
        notes = [Notes.load(folder) for folder in folders]
    return _merged(jobs, notes, started_at_s)


def _have_embedded(jobs: Sequence[Job]) -> None:
    """Ask every instruction once, of whom it will be asked."""
    rows: dict[tuple[str, str], tuple[Job, int]] = {}
    for job in jobs:
        for row, instruction in enumerate(job.instruction.tolist()):
            rows.setdefault((job.asked.address, instruction), (job, row))
    for address in dict.fromkeys(address for address, _ in rows):
        with PolicyClient(address) as policy:
            policy.metadata(timeout_s=_CONNECTED_WITHIN_S)
            for (asked_of, instruction), (job, row) in rows.items():
                if asked_of == address:
                    policy.act(
                        {name: array[row] for name, array in job.observation.items()},
                        instruction,
                        budget_s=_IDLE_WITHIN_S,  # it may wait for whatever is there already
                        num_steps=1,
                        timeout_s=_IDLE_WITHIN_S,
                    )


def question_columns(
    questions: Sequence[Question],
) -> tuple[npt.NDArray[np.str_], dict[str, npt.NDArray[Any]]]:
    """As a `Job` has them: instructions, and observations by name, an entry a question."""
    observation = {
        name: np.stack([question.observation[name] for question in questions])
        for name in questions[0].observation
    }
    return np.array([question.instruction for question in questions]), observation


def _jobs(address: str, fleet: Fleet, questions: Sequence[Question], processes: int) -> list[Job]:
    """The fleet's requests, divided among processes by robot.

    Each robot begins somewhere in the questions and goes on in their order.
    """
    robot, due_s = due_times(fleet)
    rng = np.random.default_rng(np.random.SeedSequence((fleet.seed, _STREAM)))
    begins = rng.integers(len(questions), size=fleet.robots)
    asked_before = np.empty_like(robot)
    each = len(robot) // fleet.robots
    asked_before[np.argsort(robot, kind="stable")] = np.tile(np.arange(each), fleet.robots)
    question = (begins[robot] + asked_before) % len(questions)
    asked = Asked(address, uuid.uuid4().hex, fleet.budget_s, fleet.num_steps, fleet.guidance_scale)
    instruction, observation = question_columns(questions)
    processes = min(processes, fleet.robots)
    mine = [robot % processes == number for number in range(processes)]
    return [
        Job(asked, robot[own], due_s[own], question[own], instruction, observation) for own in mine
    ]


def _merged(jobs: Sequence[Job], notes: Sequence[Notes], started_at_s: float) -> FleetRecord:
    """One record of all processes, without the warm-up."""
    due_s = np.concatenate([job.due_s for job in jobs])
    order = np.argsort(due_s, kind="stable")
    order = order[due_s[order] >= 0]

    def joined(name: str) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = np.concatenate([getattr(one, name) for one in notes])
        return values[order]

    outcome = np.array(OUTCOMES)[np.concatenate([one.outcome for one in notes])[order]]
    refused = outcome == "refused"
    settled_s = joined("settled_s")
    return FleetRecord(
        robot=np.concatenate([job.robot for job in jobs])[order],
        due_s=due_s[order],
        latency_s=np.where(refused, np.nan, settled_s),
        outcome=outcome,
        refusal_s=np.where(refused, settled_s, np.nan),
        num_steps=np.concatenate([one.num_steps for one in notes])[order],
        rows_per_call=joined("rows_per_call"),
        queue_s=joined("queue_s"),
        model_id=np.concatenate([one.model_id for one in notes])[order],
        send_delay_s=joined("send_delay_s"),
        started_at_s=started_at_s,
        cpu_s=float(sum(one.cpu_s for one in notes)),
    )


@dataclass(frozen=True)
class _Worker:
    """A generator process."""

    process: subprocess.Popen[str]
    log: IO[str]

    def await_ready(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != READY:
            self.process.wait()
            raise self._failure()

    def start(self, at_s: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{at_s!r}\n")
        self.process.stdin.flush()

    @property
    def ended(self) -> bool:
        """Whether it is done; raises if it failed."""
        code = self.process.poll()
        if code:
            raise self._failure()
        return code == 0

    def _failure(self) -> RuntimeError:
        self.log.seek(0)
        last = self.log.read().strip().splitlines()[-1:]
        return RuntimeError(f"the load generator failed: {' '.join(last)}")


@contextmanager
def _worker(folder: Path) -> Iterator[_Worker]:
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generator", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; we end it
        ) as process,
    ):
        try:
            yield _Worker(process, log)
        finally:
            process.kill()
