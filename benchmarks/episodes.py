"""Episodes in simulated time: many at once, no wall clock, answers as late as one likes.

The robot's side is the real one (observation history, time-indexed action buffer, safe action);
only the clock and the transport are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from client.action_buffer import ActionBuffer
from client.action_limits import ActionLimits
from client.errors import UnsafeActionError
from client.history import ObservationHistory
from client.sims.simulation import SimulatedRobot, Simulation
from client.specs import PolicySpec

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


@dataclass(frozen=True)
class Ending:
    """How an episode ended.

    Attributes:
        outcome: "asked", "opposite", "other" or "timeout".
        scores: task → how well that one was done, 0..1; empty if the robot has outcomes only.
    """

    outcome: str
    scores: Mapping[str, float] = field(default_factory=dict)


class _Episode:
    def __init__(
        self,
        spec: EpisodeSpec,
        policy_spec: PolicySpec,
        limits: ActionLimits,
        simulation: Simulation[Any],
        conditions: Callable[[np.random.Generator], Conditions],
    ) -> None:
        self.spec = spec
        self.simulation = simulation
        self.conditions = conditions
        self.history = ObservationHistory(policy_spec)
        self.buffer = ActionBuffer(
            limits, horizon=policy_spec.horizon, control_period_s=policy_spec.control_period_s
        )
        self.pending: list[tuple[float, float, npt.NDArray[np.float32]]] = []
        self.rng = np.random.default_rng(spec.seed)
        self._policy_spec = policy_spec
        simulation.reset(simulation.sample_start(self.rng))
        self.commanded: npt.NDArray[np.float32] = simulation.safe_action()

    @property
    def outcome(self) -> str | None:
        return self.simulation.outcome(self.spec.task)

    @property
    def now_s(self) -> float:
        return self.simulation.ticks * self._policy_spec.control_period_s

    def observe(self) -> None:
        self.history.add(self.simulation.ticks, self.simulation.observation())

    def act(self) -> None:
        """Take in the answers that have arrived, then execute what is due, or hold the pose."""
        # half a nanosecond of slack: delays that are whole ticks must not be late by rounding
        latest_s = self.now_s + 5e-10
        for due_s, t_obs_s, actions in self.pending:
            if due_s <= latest_s:
                with suppress(UnsafeActionError):  # as the control loop does: it is counted
                    self.buffer.add(actions, t_obs_s)
        self.pending = [answer for answer in self.pending if answer[0] > latest_s]
        due = self.buffer.action_at(self.now_s, self.commanded)
        self.commanded = self.simulation.safe_action() if due is None else due[0]
        self.simulation.step(self.commanded)


def play(
    robot: SimulatedRobot,
    specs: Sequence[EpisodeSpec],
    sample: Sample,
    conditions: Callable[[np.random.Generator], Conditions],
    progress: Callable[[int], object] = lambda _: None,
    *,
    simulations: list[Simulation[Any]] | None = None,
) -> list[Ending]:
    """Play episodes to their end.

    Args:
        robot: who plays.
        specs: what to play.
        sample: the policy.
        conditions: draws, from the episode's own generator, how a request is answered.
        progress: told how many episodes have ended since the last call.
        simulations: to be reused (one may take a fifth of a second to build); grows as needed.
    """
    simulations = [] if simulations is None else simulations
    endings: list[Ending] = []
    for first in range(0, len(specs), MAX_AT_ONCE):
        batch = specs[first : first + MAX_AT_ONCE]
        simulations.extend(robot.simulation() for _ in range(len(batch) - len(simulations)))
        episodes = [
            _Episode(spec, robot.spec, robot.limits, simulation, conditions)
            for spec, simulation in zip(batch, simulations, strict=False)
        ]
        endings.extend(_play_batch(robot.spec, episodes, sample, progress))
    return endings


def _play_batch(
    policy_spec: PolicySpec,
    episodes: Sequence[_Episode],
    sample: Sample,
    progress: Callable[[int], object],
) -> list[Ending]:
    running = list(episodes)
    while running:
        for episode in running:
            episode.observe()
        if running[0].simulation.ticks % policy_spec.exec_steps == 0:
            _ask(running, sample)
        for episode in running:
            episode.act()
        still = [episode for episode in running if episode.outcome is None]
        progress(len(running) - len(still))
        running = still
    return [Ending(str(episode.outcome), episode.simulation.scores()) for episode in episodes]


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
            name: np.stack([history[name] for history in histories]) for name in histories[0]
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
        phrasings: task → what people say, for every task of the robot, in its order.
    """
    tasks = tuple(phrasings)
    root = np.random.SeedSequence((seed, _EPISODE_STREAM))
    specs = []
    for index, child in enumerate(root.spawn(episodes_per_task * len(tasks))):
        task = tasks[index % len(tasks)]
        rng = np.random.default_rng(child)
        texts = phrasings[task]
        instruction = texts[int(rng.integers(len(texts)))]
        specs.append(EpisodeSpec(int(rng.integers(2**63)), task, instruction))
    return specs
