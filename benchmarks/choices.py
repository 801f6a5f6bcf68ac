"""Which way of sampling deserves to be the default? Rules on measured outcomes (pure).

Everything is judged on the same episodes, and what is cheaper or already there stays unless
something else is better by more than chance: a change must earn itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from models.grids import GridName
from models.guidance import network_rows
from models.samplers import SamplerName
from models.sampling import Sampling

USEFUL_WITHIN = 0.015
"""More steps are useful while success is lower than the best by more than this and than chance."""
USABLE_WITHIN = 0.10
"""A count gives a usable chunk unless success is lower by more than this and than chance."""
LEVEL = 0.05
"""Of the test that says whether a difference is more than chance; shared by all candidates."""

K = TypeVar("K")


@dataclass(frozen=True)
class Cell:
    """Outcomes of the same episodes under one way of sampling.

    Attributes:
        sampling: how every answer was sampled.
        phrasings: which list the instructions are from.
        seed: of starts, phrasings and noise.
        outcomes: of each episode.
    """

    sampling: Sampling
    phrasings: str
    seed: int
    outcomes: tuple[str, ...]

    @property
    def succeeded(self) -> list[bool]:
        """Of each episode."""
        return [outcome == "asked" for outcome in self.outcomes]

    def row(self) -> dict[str, Any]:
        """For result files and the manifest."""
        how = self.sampling
        return {
            "sampler": how.sampler,
            "grid": how.grid,
            "eta": how.eta,
            "guidance_scale": how.guidance_scale,
            "num_steps": how.num_steps,
            "nfe": how.nfe,
            "phrasings": self.phrasings,
            "seed": self.seed,
            "episodes": len(self.outcomes),
            "success_rate": round(self.outcomes.count("asked") / len(self.outcomes), 4),
            "opposite_rate": round(self.outcomes.count("opposite") / len(self.outcomes), 4),
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


def paired_p_value(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Two-sided exact p of McNemar's test: how surprising are the episodes that only one wins?

    Under the null hypothesis each episode in which the two differ is a fair coin (McNemar 1947; the
    exact binomial form).

    Args:
        one: success by episode.
        other: success in the same episodes.

    Raises:
        ValueError: not equally many.
    """
    only_one = sum(a and not b for a, b in zip(one, other, strict=True))
    only_other = sum(b and not a for a, b in zip(one, other, strict=True))
    differ = only_one + only_other
    tail = sum(math.comb(differ, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / (1 << differ))


def first_unless_better(succeeded: Mapping[K, Sequence[bool]]) -> K:
    """The first candidate, unless another succeeds more often by more than chance.

    Each is compared with the first, at `LEVEL` over their number (Bonferroni). Among several that
    are better the same rule holds, so the best of them, which may be lucky, is not simply taken.

    Args:
        succeeded: candidate → success by episode, the same episodes for all.
    """
    first: K
    first, *others = succeeded
    better = {
        other: succeeded[other]
        for other in others
        if sum(succeeded[other]) > sum(succeeded[first])
        and paired_p_value(succeeded[other], succeeded[first]) <= LEVEL / len(others)
    }
    return first_unless_better(better) if better else first


def choose_guidance(cells: Sequence[Cell]) -> float:
    """The w that takes the fewest network rows, unless another is better by more than chance.

    Args:
        cells: the same lists of episodes for every w.
    """
    succeeded: dict[float, list[bool]] = {}
    for cell in sorted(cells, key=lambda cell: network_rows(cell.sampling.guidance_scale)):
        succeeded.setdefault(cell.sampling.guidance_scale, []).extend(cell.succeeded)
    return first_unless_better(succeeded)


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

    A cell is worse than the best of all if its success is lower by more than a bound and, as the
    best of many is a little lucky, by more than chance: at `LEVEL` over their number (Bonferroni).
    The useful steps of a pair are the smallest count from which on, up to the largest that is not
    worse, none is; the usable ones likewise, at most the useful ones. So a lucky count below a bad
    one does not count, and neither does a bad one at the end.

    The pair listed first stays, unless one with fewer useful steps is better with so few, by more
    than chance; of those with equally many useful steps likewise with the fewest usable ones. A
    pair that is worse than the best at every count is no candidate.

    Args:
        cells: the same episodes and the same counts for every pair.
    """
    best = max(cells, key=lambda cell: sum(cell.succeeded))
    level = LEVEL / max(1, len(cells) - 1)

    def not_worse(cell: Cell, bound: float) -> bool:
        short = sum(best.succeeded) - sum(cell.succeeded)
        return (
            short <= bound * len(best.outcomes)
            or paired_p_value(best.succeeded, cell.succeeded) > level
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
            {one: pairs[one.sampler, one.grid][num_steps].succeeded for one in candidates}
        )

    fewest = min(one.max_useful_steps for one in choices)
    others = [one for one in choices if one.max_useful_steps == fewest]
    chosen = first_unless_better_with(fewest, list(dict.fromkeys([choices[0], *others])))
    tied = [one for one in choices if one.max_useful_steps == chosen.max_useful_steps]
    fewest = min(one.min_steps for one in tied)
    others = [one for one in tied if one.min_steps == fewest]
    return first_unless_better_with(fewest, list(dict.fromkeys([chosen, *others])))
