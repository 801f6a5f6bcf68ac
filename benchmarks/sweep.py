"""What the sweeps `steps`, `eta` and `guidance` share: models, rows and their record."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import results
from benchmarks.desk_policy import DeskPolicy
from benchmarks.episodes import EpisodeSpec
from benchmarks.points import PointModel
from benchmarks.statistics import wilson_interval
from models.mixtures import QUADRANTS, Mixture
from models.sampling import Sampling
from models.train_mixture import trained_network

_ROUNDS = 9
_TIMING_SEED = 0


def point_models(mixture_file: Path | None, out: Path) -> list[PointModel]:
    """The exact score and a trained network, for one target.

    Args:
        mixture_file: JSON; the quadrants, whose network is bundled, if not given.
        out: where a network for another target is trained, once.
    """
    mixture = QUADRANTS if mixture_file is None else Mixture.load(mixture_file)
    trained = trained_network(mixture, out / "mixture_network")
    return [
        PointModel.exact(mixture),
        PointModel.make("concat_mlp", mixture, trained.diffusion, trained.network),
    ]


def describe(target: str, network: str, sampling: Sampling) -> dict[str, Any]:
    """How a row's samples were made."""
    return {
        "target": target,
        "network": network,
        "backend": "torch",
        "sampler": sampling.sampler,
        "grid": sampling.grid,
        "num_steps": sampling.num_steps,
        "nfe": sampling.nfe,
        "eta": sampling.eta,
        "guidance_scale": sampling.guidance_scale,
    }


def desk_success(
    desk: DeskPolicy, specs: Sequence[EpisodeSpec], sampling: Sampling
) -> dict[str, Any]:
    """Success of episodes that are answered at once."""
    outcomes = desk.play(specs, sampling)
    asked = outcomes.count("asked")
    return {
        "episodes": len(outcomes),
        "success_rate": asked / len(outcomes),
        "success_interval": wilson_interval(asked, len(outcomes)),
        "opposite_rate": outcomes.count("opposite") / len(outcomes),
    }


class Record:
    """Rows of a running benchmark; what is done is on disk after each."""

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._out, self._name, self._config = out, name, config
        self._timed: list[tuple[dict[str, Any], Callable[[], object]]] = []

    def add(self, row: dict[str, Any], draw: Callable[[], object] | None = None) -> None:
        """Take a row and write all of them; `draw` makes one such sample, to be timed later."""
        self.rows.append(row)
        if draw is not None:
            self._timed.append((row, draw))
        self._write()

    def add_times(self) -> None:
        """Give every row `time_s`: the median over rounds, each of which draws all in random order.

        Timed one after another, a busy neighbour would decide which sampler looks slow.
        """
        rng = random.Random(_TIMING_SEED)
        durations: dict[int, list[float]] = {index: [] for index in range(len(self._timed))}
        with tqdm(total=_ROUNDS * len(self._timed), desc="timing", file=sys.stderr) as bar:
            for _ in range(_ROUNDS):
                for index in rng.sample(range(len(self._timed)), len(self._timed)):
                    begun_s = time.perf_counter()
                    self._timed[index][1]()
                    durations[index].append(time.perf_counter() - begun_s)
                    bar.update()
        for index, (row, _) in enumerate(self._timed):
            row["time_s"] = statistics.median(durations[index])
        self._write()

    def _write(self) -> None:
        results.write_results(self._out, self._name, self._config, self.rows)


def pick(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
