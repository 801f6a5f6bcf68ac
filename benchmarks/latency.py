"""How long do a server's answers take? Measured over its socket, by steps and guidance.

Back to back (`measure`), for what an answer costs, and at a rate (`ask_at_rate`), for what a robot
meets: there a slow answer is still in the way when the next one is due.
"""

from __future__ import annotations

import csv
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks import results
from client import CannotServeError, ConnectionLostError, PolicyClient, PolicyError
from client.history import ObservationHistory
from client.outstanding import Chunk
from client.sims.simulation import load_robot, robot_names
from client.specs import PolicySpec
from client.ticker import Ticker

CLEARLY_OVER = 1.5
"""A case whose median is so many times its budget is not measured at length: it cannot fit."""
_QUICK_LOOK = 5
_STARTS = 32
_BUDGET_S = 10.0  # fixed counts are never shortened, so back to back it only decides what is "late"
_TIMEOUT_S = 30.0
_TIMEOUT_AT_RATE_S = 2.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Asked:
    """What is asked for, again and again.

    Attributes:
        num_steps: denoising steps, exactly.
        guidance_scale: w.
    """

    num_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Question:
    """What a robot sees and is told: arrays [obs_steps, …] by name, and words."""

    observation: Mapping[str, npt.NDArray[Any]]
    instruction: str


@dataclass(frozen=True)
class Latencies:
    """Raw samples, in seconds.

    Attributes:
        answers: by what was asked.
        pings: of messages that ask for nothing, in between: the floor under all of them.
    """

    answers: Mapping[Asked, list[float]]
    pings: list[float]


Samples = list[tuple[dict[str, Any], list[float]]]
"""(what they are of, raw samples in seconds)."""


def questions_for(spec: PolicySpec, seed: int) -> list[Question]:
    """Starts of a simulated robot, each told one of its tasks; for any other robot, zeros."""
    if spec.task not in robot_names():
        zeros = {
            name: np.zeros(array.shape, array.dtype) for name, array in spec.observation.items()
        }
        return [Question(zeros, "do nothing in particular")]
    rng = np.random.default_rng(seed)
    robot = load_robot(spec.task)
    simulation = robot.simulation()
    phrasings = robot.phrasings("known")
    questions = []
    for number in range(_STARTS):
        simulation.reset(simulation.sample_start(rng))
        history = ObservationHistory(spec)
        history.add(0, simulation.observation())
        instruction = phrasings[robot.tasks[number % len(robot.tasks)]][0]
        questions.append(Question(history.stacked(), instruction))
    return questions


def measure(
    address: str,
    cases: Sequence[Asked],
    questions: Sequence[Question],
    *,
    budget_s: float,
    samples: int,
    seed: int,
    progress: Callable[[int], object] = lambda _: None,
) -> Latencies:
    """Latency of each case and of pings: one request at a time, in random order.

    Args:
        address: of a server that nobody else asks.
        cases: what to ask for.
        questions: what to ask it about; drawn at random.
        budget_s: the longest latency of interest; a case that is clearly over it gets a quick look
            (five samples), since one that takes seconds would take hours.
        samples: of every other case, and of pings.
        seed: of the order and the questions.
        progress: told how many of (cases + 1) · samples are done, or left out, since the last call.

    Raises:
        PolicyError: a request was not answered.
    """
    rng = random.Random(seed)
    with PolicyClient(address) as policy:
        policy.metadata(timeout_s=_TIMEOUT_S)

        def ask(asked: Asked | None) -> float:
            if asked is None:
                return policy.ping(timeout_s=_TIMEOUT_S)
            question = rng.choice(questions)
            return policy.act(
                question.observation,
                question.instruction,
                budget_s=_BUDGET_S,
                num_steps=asked.num_steps,
                guidance_scale=asked.guidance_scale,
                timeout_s=_TIMEOUT_S,
            ).latency_s

        _warm_up(policy, questions)
        answers = {case: [ask(case) for _ in range(_QUICK_LOOK)] for case in cases}
        worth = [case for case in cases if median(answers[case]) <= CLEARLY_OVER * budget_s]
        progress(samples * (len(cases) - len(worth)))
        answers.update({case: [] for case in worth})
        pings: list[float] = []
        order = [*worth, None] * samples
        rng.shuffle(order)
        for asked in order:
            (pings if asked is None else answers[asked]).append(ask(asked))
            progress(1)
    return Latencies(answers, pings)


def _warm_up(policy: PolicyClient, questions: Sequence[Question]) -> None:
    """Have every instruction embedded: that is done once a text, not once a request."""
    for question in {question.instruction: question for question in questions}.values():
        policy.act(
            question.observation,
            question.instruction,
            budget_s=_BUDGET_S,
            num_steps=1,
            timeout_s=_TIMEOUT_S,
        )


class Answerer(Protocol):
    """The part of `PolicyClient` that `ask_at_rate` uses."""

    def submit(
        self,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: str,
        *,
        budget_s: float,
        num_steps: int,
        guidance_scale: float,
        due_s: float,
        timeout_s: float,
    ) -> int:
        """See `PolicyClient.submit`."""

    def poll(self, timeout_s: float) -> list[Chunk | PolicyError]:
        """See `PolicyClient.poll`."""


@dataclass(frozen=True)
class AtRate:
    """What became of requests that were due at a fixed rate.

    Attributes:
        due_requests: all of them.
        late: answered after their budget.
        refused: not answered, since there was no time or room.
        lost: not answered at all, or not even asked in time.
        latencies_s: of those answered, from when they were due.
        answer_s: of those answered, from sending to arrival.
    """

    due_requests: int
    late: int
    refused: int
    lost: int
    latencies_s: list[float]
    answer_s: list[float]

    @property
    def missed(self) -> int:
        """Due requests that were late, refused or lost."""
        return self.late + self.refused + self.lost

    @property
    def miss_rate(self) -> float:
        """Share of due requests that were missed."""
        return self.missed / self.due_requests


def ask_at_rate(
    policy: Answerer,
    asked: Asked,
    questions: Sequence[Question],
    *,
    period_s: float,
    duration_s: float,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
) -> AtRate:
    """Ask once a period, whether or not the answer before has come; the period is the budget.

    Args:
        policy: a client whose server nobody else asks.
        asked: what to ask for.
        questions: what to ask it about; drawn at random.
        period_s: between two requests.
        duration_s: rounded up to whole periods.
        seed: of the questions.
        clock: the client's.

    Raises:
        PolicyError: an answer that says the request itself, or the server, is at fault.
    """
    rng = random.Random(seed)
    settled: list[Chunk | PolicyError] = []
    # polling, never sleeping: an answer just before the next tick must not be taken in after it
    ticker = Ticker(period_s, clock=clock, sleep=lambda left_s: settled.extend(policy.poll(left_s)))
    due_requests = math.ceil(duration_s / period_s - _ROUNDING)
    submitted = 0
    while (tick := ticker.wait()).index < due_requests:
        question = rng.choice(questions)
        policy.submit(
            question.observation,
            question.instruction,
            budget_s=period_s,
            num_steps=asked.num_steps,
            guidance_scale=asked.guidance_scale,
            due_s=tick.time_s,
            timeout_s=max(_TIMEOUT_AT_RATE_S, period_s),
        )
        submitted += 1
    while len(settled) < submitted:
        settled.extend(policy.poll(period_s))
    chunks = []
    refused = 0
    lost = due_requests - submitted  # the client was held up itself
    for result in settled:
        match result:
            case Chunk():
                chunks.append(result)
            case CannotServeError():
                refused += 1
            case ConnectionLostError():
                lost += 1
            case _:
                raise result
    return AtRate(
        due_requests=due_requests,
        late=sum(chunk.late for chunk in chunks),
        refused=refused,
        lost=lost,
        latencies_s=[chunk.latency_s for chunk in chunks],
        answer_s=[chunk.round_trip_s for chunk in chunks],
    )


def write_samples(path: Path, samples: Samples) -> None:
    """A CSV file with a line a sample: what it is of, and `latency_s`.

    Args:
        path: of the file.
        samples: of anything that has the same keys; these name the columns.

    Raises:
        ValueError: one has a key that the first has not.
    """
    columns = [*(samples[0][0] if samples else ()), "latency_s"]
    with (
        results.written_whole(path) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for of, seconds in samples:
            writer.writerows({**of, "latency_s": f"{one:.6f}"} for one in seconds)
