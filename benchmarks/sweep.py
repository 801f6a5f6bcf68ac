"""What the sweeps `steps`, `eta` and `guidance` share: models, rows and their record."""

from __future__ import annotations

import hashlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import results
from benchmarks.episodes import EpisodeSpec
from benchmarks.points import PointModel
from benchmarks.policy_choice import PolicyChoice
from benchmarks.robot_policy import RobotPolicy
from benchmarks.scores import success_fields
from models.mixtures import QUADRANTS, Mixture
from models.policy import DiffusionConfig
from models.sampling import Sampling
from models.train_mixture import trained_network

_ROUNDS = 9
_TIMING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class SweepConfig(PolicyChoice):
    """What every sweep takes.

    Attributes:
        mixture: JSON file of the 2-D target {"modes": [condition][mode][2], "std": …}; four
            quadrants with three modes each if not given. For another target a network is trained,
            once (some minutes), into runs/.
        episodes: per task of the robot, for every way of sampling the same; 0 leaves it out.
        seed: of the robot's starts, phrasings and noise; below 100, larger ones are for choosing.
        out: folder of the results.
    """

    mixture: Path | None = None
    episodes: int = 10
    seed: int
    out: Path

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        if self.episodes < 0:
            msg = f"episodes: expected at least 0, got {self.episodes}"
            raise ValueError(msg)
        if not 0 <= self.seed < 100:
            msg = f"seed: expected 0..99 (larger ones are for choosing), got {self.seed}"
            raise ValueError(msg)

    def check_values(self, name: str, low: float, high: float) -> None:
        """Refuse a field that does not list different values within a range.

        Raises:
            ValueError: naming the field.
        """
        values = getattr(self, name)
        if not values or len(set(values)) < len(values):
            msg = f"{name}: expected one value or more, each once, got {values}"
            raise ValueError(msg)
        for value in values:
            if not low <= value <= high:
                msg = f"{name}: expected {low:g}..{high:g}, got {value:g}"
                raise ValueError(msg)

    def robot_policy(self, num_steps: Sequence[int]) -> RobotPolicy | None:
        """The robot's policy, loaded and able to take so many steps; None if left out.

        Called before anything is measured: what is wrong with it is better known early.

        Raises:
            CheckpointError, ValueError: it is unusable, of another robot, or its T is too small.
        """
        if not self.episodes:
            return None
        self.read(remedy="--episodes 0 leaves the robot out")
        policy = RobotPolicy(self.folder)
        policy.sampling(max(num_steps))
        return policy


def point_models(mixture_file: Path | None) -> list[PointModel]:
    """The exact score and a trained network, for one target (see `SweepConfig.mixture`)."""
    mixture = QUADRANTS if mixture_file is None else Mixture.load(mixture_file)
    name = hashlib.sha256(repr(mixture).encode()).hexdigest()[:12]
    trained = trained_network(mixture, Path("runs") / f"mixture-{name}")
    return [
        PointModel.exact(mixture),
        PointModel.make("concat_mlp", mixture, trained.diffusion, trained.network),
    ]


def describe_points(model: PointModel, sampling: Sampling) -> dict[str, Any]:
    """How a row's points were made."""
    return _describe("points", model.network, sampling, model.diffusion)


def _describe(
    target: str, network: str, sampling: Sampling, diffusion: DiffusionConfig
) -> dict[str, Any]:
    """How a row's samples were made."""
    return {
        "target": target,
        "network": network,
        "backend": "torch",
        "sampler": sampling.sampler,
        "grid": sampling.grid,
        "num_steps": sampling.num_steps,
        "nfe": sampling.nfe(diffusion.alpha_bar),
        "eta": sampling.eta,
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": sampling.guidance_interval,
    }


def play_row(
    policy: RobotPolicy, specs: Sequence[EpisodeSpec], sampling: Sampling
) -> dict[str, Any]:
    """A row of episodes that are answered at once."""
    endings = policy.play(specs, sampling)
    manifest = policy.manifest
    how = _describe(policy.robot.spec.task, manifest.network.kind, sampling, manifest.diffusion)
    return how | success_fields(specs, endings)


class Record:
    """Rows of a running benchmark, in NAME.partial.json after each; NAME.json when it has finished.

    An interrupted run leaves what it has measured, and the results of the last whole one.
    """

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._out, self._name, self._config = out, name, config
        self._timed: list[tuple[dict[str, Any], Callable[[], object]]] = []

    def add(self, row: dict[str, Any], draw: Callable[[], object] | None = None) -> None:
        """Take a row; `draw` makes one such sample, to be timed later."""
        self.rows.append(row)
        if draw is not None:
            self._timed.append((row, draw))
        self._write(f"{self._name}.partial")

    def add_times(self) -> None:
        """Give every row `time_s` and its samples: rounds that draw everything, in random order.

        Timed one after another, a busy neighbour would decide which sampler looks slow.
        """
        rng = random.Random(_TIMING_SEED)
        for row, _ in self._timed:
            row["time_samples_s"] = []
        with tqdm(total=_ROUNDS * len(self._timed), desc="timing", file=sys.stderr) as bar:
            for _ in range(_ROUNDS):
                for row, draw in rng.sample(self._timed, len(self._timed)):
                    begun_s = time.perf_counter()
                    draw()
                    row["time_samples_s"].append(round(time.perf_counter() - begun_s, 7))
                    bar.update()
        for row, _ in self._timed:
            row["time_s"] = statistics.median(row["time_samples_s"])

    def finish(self) -> None:
        """Everything has been measured."""
        self._write(self._name)
        (self._out / f"{self._name}.partial.json").unlink(missing_ok=True)

    def _write(self, name: str) -> None:
        results.write_results(self._out, name, self._config, self.rows)


def robot_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of episodes; the others are of points."""
    return [row for row in rows if row["target"] != "points"]


def pick(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
