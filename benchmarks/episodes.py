"""Desk episodes in simulated time: many at once, no wall clock, answers as late as one likes.

The robot's side is the real one (observation history, time-indexed action buffer, safe action);
only the clock and the transport are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from client.action_buffer import ActionBuffer
from client.errors import ServerFaultError
from client.history import ObservationHistory
from client.sims.desk.simulation import Desk
from client.sims.desk.spec import DESK_SPEC, TASKS

MAX_AT_ONCE = 100
_EPISODE_STREAM = 0xE15


@dataclass(frozen=True)
class Conditions:
    """How one request is answered.

    Attributes:
        delay_s: from the observation to the answer, in simulated time.
        num_steps: denoising steps of the answer.
    """

    delay_s: float
    num_steps: int


Sample = Callable[
    [Mapping[str, npt.NDArray[Any]], Sequence[str], Sequence[int], int], npt.NDArray[np.float32]
]
"""(observations [R, …], instructions, seeds, num_steps) → chunks [R, horizon, action_dim]."""


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode: who is asked for what, from which start.

    Attributes:
        seed: of the start, and of everything drawn in this episode.
        task: what success means.
        instruction: what the policy is told.
    """

    seed: int
    task: str
    instruction: str


@dataclass
class _Episode:
    spec: EpisodeSpec
    desk: Desk
    conditions: Callable[[np.random.Generator], Conditions]
    history: ObservationHistory = field(default_factory=lambda: ObservationHistory(DESK_SPEC))
    buffer: ActionBuffer = field(
        default_factory=lambda: ActionBuffer(
            horizon=DESK_SPEC.horizon,
            action_dim=DESK_SPEC.action_dim,
            control_period_s=DESK_SPEC.control_period_s,
        )
    )
    pending: list[tuple[float, float, npt.NDArray[np.float32]]] = field(default_factory=list)
    grip: float = -1.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.spec.seed)
        self.desk.reset(self.desk.sample_start(self.rng))

    @property
    def outcome(self) -> str | None:
        return self.desk.outcome(self.spec.task)

    @property
    def now_s(self) -> float:
        return self.desk.ticks * DESK_SPEC.control_period_s

    def observe(self) -> None:
        self.history.add(self.desk.ticks, self.desk.observation())

    def act(self) -> None:
        """Take in the answers that have arrived, then execute what is due, or hold the pose."""
        # half a nanosecond of slack: delays that are whole ticks must not be late by rounding
        latest_s = self.now_s + 5e-10
        for due_s, t_obs_s, actions in self.pending:
            if due_s <= latest_s:
                self.buffer.add(actions, t_obs_s)
        self.pending = [answer for answer in self.pending if answer[0] > latest_s]
        due = self.buffer.action_at(self.now_s)
        hold = np.array([0, 0, 0, self.grip], np.float32)
        try:
            action = hold if due is None else DESK_SPEC.validate_action(due)
        except ServerFaultError:  # as the control loop does: it never reaches the robot
            action = hold
        self.grip = float(action[3])
        self.desk.step(action)


def play(
    specs: Sequence[EpisodeSpec],
    sample: Sample,
    conditions: Callable[[np.random.Generator], Conditions],
    progress: Callable[[int], object] = lambda _: None,
    desks: list[Desk] | None = None,
) -> list[str]:
    """Play episodes to their end.

    Args:
        specs: what to play.
        sample: the policy.
        conditions: draws, from the episode's own generator, how a request is answered.
        progress: told how many episodes have ended since the last call.
        desks: simulators to reuse (each takes a fifth of a second to build); grows as needed.

    Returns:
        "asked", "opposite", "other" or "timeout", one an episode.
    """
    desks = [] if desks is None else desks
    outcomes: list[str] = []
    for first in range(0, len(specs), MAX_AT_ONCE):
        batch = specs[first : first + MAX_AT_ONCE]
        desks.extend(Desk() for _ in range(len(batch) - len(desks)))
        episodes = [
            _Episode(spec, desk, conditions) for spec, desk in zip(batch, desks, strict=False)
        ]
        outcomes.extend(_play_batch(episodes, sample, progress))
    return outcomes


def _play_batch(
    episodes: Sequence[_Episode], sample: Sample, progress: Callable[[int], object]
) -> list[str]:
    running = list(episodes)
    while running:
        for episode in running:
            episode.observe()
        if running[0].desk.ticks % DESK_SPEC.exec_steps == 0:
            _ask(running, sample)
        for episode in running:
            episode.act()
        still = [episode for episode in running if episode.outcome is None]
        progress(len(running) - len(still))
        running = still
    return [str(episode.outcome) for episode in episodes]


def _ask(episodes: Sequence[_Episode], sample: Sample) -> None:
    """One request of every episode; those with the same step count share a call."""
    drawn = [episode.conditions(episode.rng) for episode in episodes]
    for num_steps in sorted({one.num_steps for one in drawn}):
        group = [
            (episode, one)
            for episode, one in zip(episodes, drawn, strict=True)
            if one.num_steps == num_steps
        ]
        histories = [episode.history.stacked() for episode, _ in group]
        observation = {
            name: np.stack([history[name] for history in histories])
            for name in DESK_SPEC.observation
        }
        seeds = [int(episode.rng.integers(2**63)) for episode, _ in group]
        texts = [episode.spec.instruction for episode, _ in group]
        chunks = sample(observation, texts, seeds, num_steps)
        for (episode, one), actions in zip(group, chunks, strict=True):
            now_s = episode.now_s
            episode.pending.append((now_s + one.delay_s, now_s, actions))


def make_specs(
    episodes_per_task: int, seed: int, phrasings: Mapping[str, Sequence[str]]
) -> list[EpisodeSpec]:
    """The same number of episodes for every task, each with a phrasing drawn at random.

    Args:
        episodes_per_task: of each.
        seed: different seeds share no start and no draw.
        phrasings: task → what people say.
    """
    root = np.random.SeedSequence((seed, _EPISODE_STREAM))
    specs = []
    for child, index in zip(
        root.spawn(episodes_per_task * len(TASKS)),
        range(episodes_per_task * len(TASKS)),
        strict=True,
    ):
        task = TASKS[index % len(TASKS)]
        rng = np.random.default_rng(child)
        texts = phrasings[task]
        instruction = texts[int(rng.integers(len(texts)))]
        specs.append(EpisodeSpec(int(rng.integers(2**63)), task, instruction))
    return specs
