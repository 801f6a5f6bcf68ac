"""Which way of sampling deserves to be the default? Rules on measured outcomes (pure).

Everything is judged on the same episodes, and what is cheaper or already there stays unless
something else is better by more than chance: a change must earn itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.step_cost import largest_within
from models.grids import GridName
from models.guidance import network_rows
from models.samplers import SamplerName
from models.sampling import Sampling

USEFUL_WITHIN = 0.015
"""More steps are useful while success is more than this below the best: about two and a half
standard errors of 300 episodes near 99%, and the best of many counts is a little lucky."""
USABLE_WITHIN = 0.10
"""A count whose success is at most this below the best gives a usable chunk."""
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


def choose(rows: Sequence[Mapping[str, Any]], best: float | None = None) -> tuple[int, int]:
    """(min_steps, max_useful_steps) from rows with `num_steps` and `success_rate`.

    Each is the smallest count from which on every measured one is within its bound of the best, so
    that a lucky count below a bad one does not count.

    Args:
        rows: one a count.
        best: success that they are held against; the best of `rows` if not given.
    """
    reference: float = max(row["success_rate"] for row in rows) if best is None else best

    def smallest_within(bound: float) -> int:
        chosen = max(row["num_steps"] for row in rows)
        for row in sorted(rows, key=lambda row: row["num_steps"], reverse=True):
            if row["success_rate"] < reference - bound:
                break
            chosen = row["num_steps"]
        return int(chosen)

    return smallest_within(USABLE_WITHIN), smallest_within(USEFUL_WITHIN)


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

    Each is compared with the first, at `LEVEL` over their number (Bonferroni); of several that are
    better the best is taken, the earliest listed if equal.

    Args:
        succeeded: candidate → success by episode, the same episodes for all.
    """
    first: K
    first, *others = succeeded
    better = [
        other
        for other in others
        if sum(succeeded[other]) > sum(succeeded[first])
        and paired_p_value(succeeded[other], succeeded[first]) <= LEVEL / len(others)
    ]
    return max(better, key=lambda other: sum(succeeded[other]), default=first)


def choose_guidance(cells: Sequence[Cell]) -> float:
    """The w that takes the fewest network rows, unless another is better by more than chance.

    Args:
        cells: the same lists of episodes for every w.
    """
    succeeded: dict[float, list[bool]] = {}
    for cell in sorted(cells, key=lambda cell: network_rows(cell.sampling.guidance_scale)):
        succeeded.setdefault(cell.sampling.guidance_scale, []).extend(cell.succeeded)
    return first_unless_better(succeeded)


def choose_pair(cells: Sequence[Cell]) -> Choice:
    """Sampler and grid with the fewest useful steps, and how many these are.

    Ties go to the fewest usable steps, then to the pair listed first unless another succeeds more
    often by more than chance. A pair whose success does not come near the best is no candidate.

    Args:
        cells: the same episodes and the same counts for every pair.
    """
    pairs: dict[tuple[SamplerName, GridName], dict[int, Cell]] = {}
    for cell in cells:
        counts = pairs.setdefault((cell.sampling.sampler, cell.sampling.grid), {})
        counts[cell.sampling.num_steps] = cell
    best = max(cell.row()["success_rate"] for cell in cells)
    choices = {
        pair: Choice(*pair, *choose([cell.row() for cell in counts.values()], best))
        for pair, counts in pairs.items()
    }
    chosen_cell = {pair: pairs[pair][choices[pair].max_useful_steps] for pair in pairs}
    good = [p for p in pairs if chosen_cell[p].row()["success_rate"] >= best - USEFUL_WITHIN]
    if not good:  # nowhere does success stay at its best: the largest counts decide
        good = list(pairs)
    fewest = min((choices[p].max_useful_steps, choices[p].min_steps) for p in good)
    tied = [p for p in good if (choices[p].max_useful_steps, choices[p].min_steps) == fewest]
    return choices[first_unless_better({pair: chosen_cell[pair].succeeded for pair in tied})]


def recommend(
    choice: Choice, latencies_s: Mapping[int, float], budget_s: float, miss_rate: float
) -> str:
    """What all this means on this machine, in plain English.

    Args:
        choice: of steps.
        latencies_s: step count → (1 − miss_rate) quantile of latency, from min_steps up; if all are
            far too slow, a lower bound of that of min_steps alone.
        budget_s: what it must not exceed.
        miss_rate: largest share of answers that may be late.
    """
    fewest, most = choice.min_steps, choice.max_useful_steps
    budget = f"{budget_s * 1e3:g} ms with a miss rate of at most {miss_rate:g} on this machine"
    fits = largest_within(latencies_s, budget_s)
    if fits is None:
        return (
            f"Not even min_steps = {fewest} fits {budget_s * 1e3:g} ms: it takes "
            f"{latencies_s[fewest] * 1e3:.1f} ms or more. This machine cannot serve this policy in "
            "time: allow more, or use a faster machine or a smaller network. What is written says "
            "how good how many steps are, not how fast, so it is written all the same."
        )
    if fits < most:
        return (
            f"Only {fits} of the {most} useful steps fit {budget}. The planner gives what fits, "
            f"and refuses a request that does not leave time for {fewest}."
        )
    more = (
        f"At least {fits} would fit (more were not measured)."
        if fits == max(latencies_s)
        else f"Up to {fits} would fit."
    )
    return (
        f"max_useful_steps = {most} fits {budget}: the {1 - miss_rate:.10g} quantile of latency is "
        f"{latencies_s[most] * 1e3:.1f} ms. {more}"
    )
