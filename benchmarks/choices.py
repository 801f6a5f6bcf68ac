"""Which way of sampling deserves to be the default? Rules on measured episodes (pure).

Everything is judged on the same episodes, and what is cheaper or already there stays unless
something else is better by more than chance: a change must earn itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.statistics import bootstrap_interval
from models.grids import GridName
from models.guidance import EVERYWHERE, Interval, network_rows
from models.samplers import SamplerName
from models.sampling import Sampling

USEFUL_WITHIN = 0.015
"""More steps are useful while success is lower than the best by more than this and than chance."""
USABLE_WITHIN = 0.10
"""A count gives a usable chunk unless success is lower by more than this and than chance."""
LEVEL = 0.05
"""Of the test that says whether a difference is more than chance; shared by all candidates."""

_FLIPS = 20_000
_FLIPS_SEED = 0
_ROUNDING = 1e-9
K = TypeVar("K")


@dataclass(frozen=True)
class Cell:
    """Outcomes of the same episodes under one way of sampling.

    Attributes:
        sampling: how every answer was sampled.
        phrasings: which list the instructions are from.
        seed: of starts, phrasings and noise.
        outcomes: of each episode.
        scores: how well what was asked for was done in each, 0..1; none if there is nothing but
            the outcome.
        wrong_scores: how well something else was done instead, likewise.
    """

    sampling: Sampling
    phrasings: str
    seed: int
    outcomes: tuple[str, ...]
    scores: tuple[float, ...] = ()
    wrong_scores: tuple[float, ...] = ()

    @property
    def merits(self) -> list[float]:
        """What each episode is judged by: its score if it has one, else 1 for success."""
        return list(self.scores) or [float(outcome == "asked") for outcome in self.outcomes]

    def row(self, alpha_bar: npt.NDArray[np.float64]) -> dict[str, Any]:
        """For result files and the manifest.

        Args:
            alpha_bar: float64 [T], of the process.
        """
        how = self.sampling
        scores: dict[str, Any] = {}
        if self.scores:
            for name, values in (("score", self.scores), ("wrong_score", self.wrong_scores)):
                scores[name] = round(sum(values) / len(values), 4)
                low, high = bootstrap_interval(values)
                scores[f"{name}_interval"] = [round(low, 4), round(high, 4)]
        return {
            "sampler": how.sampler,
            "grid": how.grid,
            "eta": how.eta,
            "guidance_scale": how.guidance_scale,
            "guidance_interval": how.guidance_interval,
            "num_steps": how.num_steps,
            "nfe": how.nfe(alpha_bar),
            "phrasings": self.phrasings,
            "seed": self.seed,
            "episodes": len(self.outcomes),
            "success_rate": round(self.outcomes.count("asked") / len(self.outcomes), 4),
            "opposite_rate": round(self.outcomes.count("opposite") / len(self.outcomes), 4),
            **scores,
        }


@dataclass(frozen=True)
class Choice:
    """What the manifest will say.

    Attributes:
        sampler: default.
        grid: default.
        min_steps: fewest steps that give a usable chunk.
        max_useful_steps: more do not raise success.
    """

    sampler: SamplerName
    grid: GridName
    min_steps: int
    max_useful_steps: int


def paired_p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p of Fisher's sign-flip test: how surprising is the difference of the two sums?

    Under the null hypothesis each episode's difference might as well have the other sign (Fisher
    1935, §21). Of successes, 1 or 0, that is McNemar's test (1947), in the exact binomial form; of
    scores it is estimated from random flips, always the same ones.

    Args:
        one: success or score by episode.
        other: of the same episodes.

    Raises:
        ValueError: not equally many.
    """
    differences = [a - b for a, b in zip(one, other, strict=True) if a != b]
    if all(abs(difference) == 1 for difference in differences):
        differ = len(differences)
        fewer = min(differences.count(1), differences.count(-1))
        tail = sum(math.comb(differ, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / (1 << differ))
    rng = np.random.default_rng(_FLIPS_SEED)
    signs = 2.0 * rng.integers(2, size=(_FLIPS, len(differences)), dtype=np.int8) - 1.0
    sums = np.abs(signs @ np.array(differences, np.float64))
    as_surprising = int(np.count_nonzero(sums >= abs(math.fsum(differences)) - _ROUNDING))
    return (as_surprising + 1) / (_FLIPS + 1)


def first_unless_better(merits: Mapping[K, Sequence[float]]) -> K:
    """The first candidate, unless another does better by more than chance.

    Each is compared with the first, at `LEVEL` over their number (Bonferroni). Among several that
    are better the same rule holds, so the best of them, which may be lucky, is not simply taken.

    Args:
        merits: candidate → success or score by episode, the same episodes for all.
    """
    first: K
    first, *others = merits
    better = {
        other: merits[other]
        for other in others
        if sum(merits[other]) > sum(merits[first])
        and paired_p_value(merits[other], merits[first]) <= LEVEL / len(others)
    }
    return first_unless_better(better) if better else first


def choose_guidance(cells: Sequence[Cell]) -> float:
    """The w that takes the fewest network rows, unless another is better by more than chance.

    Args:
        cells: the same lists of episodes for every w.
    """
    merits: dict[float, list[float]] = {}
    for cell in sorted(cells, key=lambda cell: network_rows(cell.sampling.guidance_scale)):
        merits.setdefault(cell.sampling.guidance_scale, []).extend(cell.merits)
    return first_unless_better(merits)


def choose_interval(
    cells: Sequence[Cell], unguided: Sequence[Cell], alpha_bar: npt.NDArray[np.float64]
) -> Interval:
    """Where w acts: with the fewest network rows, unless another is better by more than chance.

    But for the whole of it, only what is better than no guidance by more than chance is chosen.

    Args:
        cells: the same lists of episodes for every interval.
        unguided: the same for w = 0; none if that was not tried.
        alpha_bar: float64 [T], of the process.
    """
    merits: dict[Interval, list[float]] = {}
    for cell in sorted(cells, key=lambda cell: cell.sampling.nfe(alpha_bar)):
        merits.setdefault(cell.sampling.guidance_interval, []).extend(cell.merits)
    without = [merit for cell in unguided for merit in cell.merits]

    def helps(mine: Sequence[float]) -> bool:
        return sum(mine) > sum(without) and paired_p_value(mine, without) <= LEVEL

    return first_unless_better(
        {
            interval: mine
            for interval, mine in merits.items()
            if interval == EVERYWHERE or not without or helps(mine)
        }
    )


def _smallest_of_run(counts: Iterable[int], good: Collection[int]) -> int:
    """From the largest good count down to just above the next one that is not; one is good."""
    run: list[int] = []
    for count in sorted(counts, reverse=True):
        if count in good:
            run.append(count)
        elif run:
            break
    return run[-1]


def choose_pair(cells: Sequence[Cell]) -> Choice:
    """Sampler and grid, how many steps are useful with them, and how few are usable.

    A cell is worse than the best of all if its success, or its mean score where there are scores,
    is lower by more than a bound and, as the best of many is a little lucky, by more than chance:
    at `LEVEL` over their number (Bonferroni).
    The useful steps of a pair are the smallest count from which on, up to the largest that is not
    worse, none is; the usable ones likewise, at most the useful ones. So a lucky count below a bad
    one does not count, and neither does a bad one at the end.

    The pair listed first stays, unless one with fewer useful steps is better with so few, by more
    than chance; of those with equally many useful steps likewise with the fewest usable ones. A
    pair that is worse than the best at every count is no candidate.

    Args:
        cells: the same episodes and the same counts for every pair.
    """
    best = max(cells, key=lambda cell: sum(cell.merits))
    level = LEVEL / max(1, len(cells) - 1)

    def not_worse(cell: Cell, bound: float) -> bool:
        short = sum(best.merits) - sum(cell.merits)
        return (
            short <= bound * len(best.outcomes) or paired_p_value(best.merits, cell.merits) > level
        )

    pairs: dict[tuple[SamplerName, GridName], dict[int, Cell]] = {}
    for cell in cells:
        counts = pairs.setdefault((cell.sampling.sampler, cell.sampling.grid), {})
        counts[cell.sampling.num_steps] = cell
    choices: list[Choice] = []
    for pair, counts in pairs.items():
        useful = {n for n, cell in counts.items() if not_worse(cell, USEFUL_WITHIN)}
        usable = {n for n, cell in counts.items() if not_worse(cell, USABLE_WITHIN)}
        if useful:
            most = _smallest_of_run(counts, useful)
            fewest = _smallest_of_run((n for n in counts if n <= most), usable)
            choices.append(Choice(*pair, fewest, most))

    def first_unless_better_with(num_steps: int, candidates: Sequence[Choice]) -> Choice:
        return first_unless_better(
            {one: pairs[one.sampler, one.grid][num_steps].merits for one in candidates}
        )

    fewest = min(one.max_useful_steps for one in choices)
    others = [one for one in choices if one.max_useful_steps == fewest]
    chosen = first_unless_better_with(fewest, list(dict.fromkeys([choices[0], *others])))
    tied = [one for one in choices if one.max_useful_steps == chosen.max_useful_steps]
    fewest = min(one.min_steps for one in tied)
    others = [one for one in tied if one.min_steps == fewest]
    return first_unless_better_with(fewest, list(dict.fromkeys([chosen, *others])))
