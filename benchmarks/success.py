"""Does the policy do what it is told? Task success in simulated time, by task, with intervals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from benchmarks.deadlines import recorded_conditions
from benchmarks.episodes import Conditions, Ending, EpisodeSpec, make_specs, play
from benchmarks.policy_choice import PolicyChoice
from benchmarks.robot_policy import RobotPolicy
from benchmarks.scores import score_fields
from benchmarks.statistics import wilson_interval

OUTCOMES = {"asked": "success", "opposite": "opposite", "other": "other", "timeout": "timeout"}


@dataclass(frozen=True, kw_only=True)
class SuccessConfig(PolicyChoice):
    """What `python -m benchmarks success` takes.

    Attributes:
        episodes: per task.
        num_steps: denoising steps of every answer.
        guidance_scale: w; 0 is the plain conditional model, −1 ignores the instruction; the
            checkpoint's default if not given.
        seed: of starts, phrasings and noise. Training uses seed 0 and 1, choosing uses 100 and up.
        phrasings: known (trained on), unseen (held out), validation, or a JSON file: task → list.
        delay_ms: every answer comes this late.
        replay: a deadlines_requests.csv; delay and step count of every answer are then drawn from
            its "auto" requests, and num_steps and delay_ms have no effect.
        replay_background: beside which those requests were measured.
        out: folder of success.json.
    """

    episodes: int = 50
    num_steps: int = 10
    guidance_scale: float | None = None
    seed: int = 1
    phrasings: str = "known"
    delay_ms: float = 0.0
    replay: Path | None = None
    replay_background: Literal["idle", "busy"] = "busy"
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        for name in ("episodes", "num_steps"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.delay_ms >= 0:
            msg = f"delay_ms: expected at least 0, got {self.delay_ms}"
            raise ValueError(msg)


def success_rows(specs: Sequence[EpisodeSpec], endings: Sequence[Ending]) -> list[dict[str, Any]]:
    """A row a task and one for all: rates and, if there are any, mean scores; 95% intervals."""
    played = list(zip(specs, endings, strict=True))
    rows = []
    for task in (*dict.fromkeys(spec.task for spec in specs), "all"):
        mine = [(spec, ending) for spec, ending in played if task in (spec.task, "all")]
        outcomes = [ending.outcome for _, ending in mine]
        row: dict[str, Any] = {"task": task, "episodes": len(mine)}
        for outcome, name in OUTCOMES.items():
            count = outcomes.count(outcome)
            row[f"{name}_rate"] = count / len(mine)
            row[f"{name}_interval"] = wilson_interval(count, len(mine))
        asked, ended = zip(*mine, strict=True)
        rows.append(row | score_fields(asked, ended))
    return rows


def run(config: SuccessConfig) -> list[dict[str, Any]]:
    """Play the episodes with a progress bar; return the rows."""
    _, robot = config.read()
    policy = RobotPolicy(config.folder)
    policy.sampling(config.num_steps)  # refuses a bad count before anything is played
    specs = make_specs(config.episodes, config.seed, robot.phrasings(config.phrasings))
    policy.embed([spec.instruction for spec in specs])
    sample = policy.sample(lambda steps: policy.sampling(steps, config.guidance_scale))
    recorded = [(config.delay_ms / 1e3, config.num_steps)]
    if config.replay is not None:
        recorded = recorded_conditions(config.replay, config.replay_background)

    def conditions(rng: np.random.Generator) -> Conditions:
        return Conditions(*recorded[int(rng.integers(len(recorded)))])

    with tqdm(total=len(specs), desc="episodes", unit="episode", file=sys.stderr) as bar:
        endings = play(robot, specs, sample, conditions, bar.update)
    return success_rows(specs, endings)


def success_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """For people."""
    table = Table(title=title)
    scored = ["score", "wrong_score"] if "score" in rows[0] else []
    for name in ("task", "episodes", "success", "95% interval", "opposite", "other", "timeout"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name in scored:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for row in rows:
        low, high = row["success_interval"]
        table.add_row(
            row["task"],
            str(row["episodes"]),
            f"{row['success_rate']:.1%}",
            f"{low:.1%} … {high:.1%}",
            *(f"{row[f'{name}_rate']:.1%}" for name in ("opposite", "other", "timeout")),
            *("{:.3f} ({:.3f}–{:.3f})".format(row[n], *row[f"{n}_interval"]) for n in scored),
        )
    return table


def main(config: SuccessConfig) -> None:
    """Measure, print the table, write `success.json`."""
    rows = run(config)
    how = f"{config.num_steps} steps, {config.delay_ms:g} ms delay"
    if config.replay is not None:
        how = f"steps and delays of {config.replay}, {config.replay_background}"
    w = config.guidance_scale
    guided = "default w" if w is None else f"w = {w:g}"
    title = f"{guided}, {config.phrasings} phrasings, {how}"
    results.console().print(success_table(rows, title))
    path = results.write_results(config.out, "success", vars(config), rows)
    results.console().print(f"wrote {path}")
