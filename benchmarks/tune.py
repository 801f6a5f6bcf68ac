"""How many steps are useful? Success by step count on validation seeds, written to the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from tyro.conf import Positional

from benchmarks import results, success
from benchmarks.success import SuccessConfig
from models import checkpoint

USEFUL_WITHIN = 0.015
"""More steps are useful while success is more than this below the best of all counts: about three
standard errors of 600 episodes near 99%, and the best of many counts is a little lucky."""
USABLE_WITHIN = 0.10
"""A count whose success is at most this below the best gives a usable chunk."""


@dataclass(frozen=True)
class TuneConfig:
    """What `python -m benchmarks tune` takes.

    Attributes:
        checkpoint: folder whose manifest is written.
        num_steps: step counts to try.
        episodes: per task and count.
        guidance_scale: w; the checkpoint's default if not given.
        seed: of validation; 100 or more, which no report uses.
        phrasings: what the policy is told.
    """

    checkpoint: Positional[Path]
    num_steps: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 10, 15, 25)
    episodes: int = 100
    guidance_scale: float | None = None
    seed: int = 100
    phrasings: str = "known"

    def __post_init__(self) -> None:
        """Keep validation and reports apart."""
        if self.seed < 100:
            msg = f"seed: expected 100 or more (smaller ones are for reports), got {self.seed}"
            raise ValueError(msg)


def choose(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """(min_steps, max_useful_steps) from rows with `num_steps` and `success_rate`.

    Each is the smallest count from which on every measured one is within its bound of the best, so
    that a lucky count below a bad one does not count.
    """
    best = max(row["success_rate"] for row in rows)

    def smallest_within(bound: float) -> int:
        chosen = max(row["num_steps"] for row in rows)
        for row in sorted(rows, key=lambda row: row["num_steps"], reverse=True):
            if row["success_rate"] < best - bound:
                break
            chosen = row["num_steps"]
        return int(chosen)

    return smallest_within(USABLE_WITHIN), smallest_within(USEFUL_WITHIN)


def main(config: TuneConfig) -> None:
    """Measure, print the table, write `min_steps` and `max_useful_steps` into the manifest."""
    console = results.console()
    manifest = checkpoint.read_manifest(config.checkpoint)
    w = manifest.defaults.guidance_scale if config.guidance_scale is None else config.guidance_scale
    rows = []
    for count in config.num_steps:
        measured = success.run(
            SuccessConfig(
                checkpoint=config.checkpoint,
                episodes=config.episodes,
                num_steps=count,
                guidance_scale=w,
                seed=config.seed,
                phrasings=config.phrasings,
            )
        )[-1]
        rows.append(
            {
                "num_steps": count,
                "guidance_scale": w,
                "phrasings": config.phrasings,
                "seed": config.seed,
                "episodes": measured["episodes"],
                "success_rate": round(measured["success_rate"], 4),
                "opposite_rate": round(measured["opposite_rate"], 4),
            }
        )
    min_steps, max_useful_steps = choose(rows)
    manifest = dataclasses.replace(
        manifest,
        min_steps=min_steps,
        max_useful_steps=max_useful_steps,
        success_by_steps=tuple(rows),
    )
    checkpoint.write_manifest(config.checkpoint, manifest)
    table = Table(title=f"success by denoising steps, w = {w:g}, validation seed {config.seed}")
    for name in ("steps", "success", "opposite", ""):
        table.add_column(name, justify="right")
    for row in rows:
        marks = {min_steps: "min_steps", max_useful_steps: "max_useful_steps"}
        table.add_row(
            str(row["num_steps"]),
            f"{row['success_rate']:.1%}",
            f"{row['opposite_rate']:.1%}",
            marks.get(row["num_steps"], ""),
        )
    console.print(table)
    console.print(f"wrote {config.checkpoint / checkpoint.MANIFEST}")
