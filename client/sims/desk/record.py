"""Record demonstrations to a file: disturbed episodes, each labelled with what the expert would do.

What is executed is the expert's action plus noise, what is stored is the expert's action alone
(DART, Laskey et al. 2017, arXiv:1703.09327), so the file shows how to come back from where a
learner's errors lead. Every episode has its own random stream, so the file does not depend on how
many processes made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from client.sims.desk.experts import expert_action
from client.sims.desk.simulation import Desk, DeskStart
from client.sims.desk.spec import TASKS

AFTER_TICKS = 20  # recorded after success, so that every chunk begun before it has an end
_EPISODES_PER_JOB = 30


@dataclass(frozen=True)
class Noise:
    """What is added to the hand's three actions of one episode.

    Attributes:
        drift_std: standard deviation of the part that stays for about `drift_ticks`.
        drift_ticks: its correlation time.
        white_std: standard deviation of the part that is new in every tick.
        shove_rate: chance per tick that a shove begins: full action in a random direction.
        shove_ticks: shortest and longest shove.
    """

    drift_std: float
    white_std: float
    shove_rate: float
    drift_ticks: float = 10.0
    shove_ticks: tuple[int, int] = (4, 10)


def sample_noise(rng: np.random.Generator) -> Noise:
    """Draw the noise of one episode: one in five is clean, two in five are shoved about once."""
    kind = rng.uniform()
    if kind < 0.2:
        return Noise(0.0, 0.0, 0.0)
    shove_rate = 0.015 if kind > 0.6 else 0.0
    return Noise(rng.uniform(0.05, 0.4), rng.uniform(0.0, 0.3), shove_rate)


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        task: what was asked.
        observation: by the names of the robot's specification: what was observed, as many rows as
            differ; frames of a camera are fewer than ticks.
        newest: by the same names: int64 [ticks], the row that was seen in each tick.
        action: float32 [ticks, 4], what the expert does in each of them.
        dropped: attempts before it in which the noise won.
    """

    task: str
    observation: dict[str, npt.NDArray[Any]]
    newest: dict[str, npt.NDArray[np.int64]]
    action: npt.NDArray[np.float32]
    dropped: int


def record_episode(desk: Desk, seed: int, index: int) -> Episode:
    """Record demonstration number `index`; tries anew until the asked task is what gets done."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    task = TASKS[index % len(TASKS)]
    dropped = 0
    while True:
        found = _attempt(desk, desk.sample_start(rng), task, sample_noise(rng), rng)
        if found is not None:
            seen, action = found
            return Episode(task, seen.rows(), seen.newest(), action, dropped)
        dropped += 1


def record(
    episodes: int, seed: int, workers: int, make: Callable[[], Desk] = Desk
) -> dict[str, npt.NDArray[Any]]:
    """Record demonstrations, the tasks in turn.

    Args:
        episodes: how many.
        seed: of starts and noise, which do not depend on what is observed.
        workers: processes.
        make: a desk, which says what is observed.

    Returns:
        Arrays by name: action float32 [ticks, 4] of all episodes, one after another, and what was
        observed, by the names of the robot's specification: of a `Desk` state float32 [ticks, 13].
        Where an array has fewer rows than there are ticks, NAME_at int64 [ticks] says which one was
        seen in each. episode_ends int64 [episodes], where each ends; task [episodes];
        dropped int64 [episodes], failed attempts; seed int64.
    """
    jobs = [
        range(first, min(first + _EPISODES_PER_JOB, episodes))
        for first in range(0, episodes, _EPISODES_PER_JOB)
    ]
    done: dict[int, list[Episode]] = {}
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=episodes, unit="episode", desc="recording") as bar,
    ):
        futures = {pool.submit(_record_some, make, seed, job): job for job in jobs}
        for future in as_completed(futures):
            done[futures[future].start] = future.result()
            bar.update(len(futures[future]))
    recorded = [episode for first in sorted(done) for episode in done[first]]
    return {
        **_joined(recorded),
        "action": np.concatenate([e.action for e in recorded]),
        "episode_ends": np.cumsum([len(e.action) for e in recorded], dtype=np.int64),
        "task": np.array([e.task for e in recorded]),
        "dropped": np.array([e.dropped for e in recorded], dtype=np.int64),
        "seed": np.array(seed, dtype=np.int64),
    }


def _joined(recorded: Sequence[Episode]) -> dict[str, npt.NDArray[Any]]:
    """What was observed in all episodes: NAME, and where needed NAME_at, as `record` says."""
    joined = {}
    for name in recorded[0].observation:
        rows = [episode.observation[name] for episode in recorded]
        joined[name] = np.concatenate(rows)
        before = np.cumsum([0, *map(len, rows[:-1])])
        at = [e.newest[name] + first for e, first in zip(recorded, before, strict=True)]
        if len(joined[name]) < sum(map(len, at)):
            joined[f"{name}_at"] = np.concatenate(at)
    return joined


def save(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write what `record` gave; numpy reads it with allow_pickle=False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # takes them for allow_pickle


def _record_some(make: Callable[[], Desk], seed: int, indices: range) -> list[Episode]:
    desk = make()
    return [record_episode(desk, seed, index) for index in indices]


class _Observed:
    """Observations, tick by tick; an array that is the very one of the tick before is kept once."""

    def __init__(self) -> None:
        self._rows: dict[str, list[npt.NDArray[Any]]] = {}
        self._newest: dict[str, list[int]] = {}

    def add(self, observation: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in observation.items():
            rows = self._rows.setdefault(name, [])
            if not rows or rows[-1] is not array:
                rows.append(array)
            self._newest.setdefault(name, []).append(len(rows) - 1)

    def rows(self) -> dict[str, npt.NDArray[Any]]:
        return {name: np.array(rows) for name, rows in self._rows.items()}

    def newest(self) -> dict[str, npt.NDArray[np.int64]]:
        return {name: np.array(rows, np.int64) for name, rows in self._newest.items()}


def _attempt(
    desk: Desk, start: DeskStart, task: str, noise: Noise, rng: np.random.Generator
) -> tuple[_Observed, npt.NDArray[np.float32]] | None:
    """One episode: what was observed, and actions; or None if it did not end as asked."""
    desk.reset(start)
    seen, actions = _Observed(), []
    drift, shove, shove_ticks = np.zeros(3), np.zeros(3), 0
    keep = np.exp(-1.0 / noise.drift_ticks)
    drift_step = noise.drift_std * np.sqrt(1.0 - keep**2)
    left = AFTER_TICKS
    while left > 0:
        match desk.outcome(task):
            case None:
                pass
            case "asked":
                left -= 1
            case _:
                return None
        seen.add(desk.observation())
        actions.append(expert_action(task, desk))

        drift = keep * drift + drift_step * rng.standard_normal(3)
        if shove_ticks == 0 and rng.uniform() < noise.shove_rate:
            shove = rng.standard_normal(3)
            shove *= 1.5 / np.abs(shove).max()
            shove_ticks = int(rng.integers(*noise.shove_ticks, endpoint=True))
        executed = actions[-1].astype(np.float64)
        executed[:3] += drift + noise.white_std * rng.standard_normal(3)
        if shove_ticks > 0:
            executed[:3] += shove
            shove_ticks -= 1
        desk.step(np.clip(executed, -1.0, 1.0))
    return seen, np.array(actions)
