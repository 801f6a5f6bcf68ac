"""The lesson's third exercise: what the guidance scale does to points, and to a robot."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from tqdm import tqdm

from benchmarks import points, results
from benchmarks.episodes import make_specs
from benchmarks.points import PointModel
from benchmarks.scores import quality_of
from benchmarks.sweep import (
    Record,
    SweepConfig,
    describe_points,
    pick,
    play_row,
    point_models,
    robot_rows,
)
from models.sampling import Sampling

MOST_2M_STEPS = 50
"""DPM-Solver++(2M) is for few steps; with a thousand it is DDIM."""
_SHOWN_POINTS = 1_000


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig(SweepConfig):
    """What `python -m benchmarks guidance` takes.

    Attributes:
        guidance_scale: w of Ho & Salimans; 0 is the plain conditional model, −1 ignores the
            condition. diffusers' guidance_scale is 1 + w.
        num_steps: step counts on the 2-D target, on the log-SNR grid.
        robot_num_steps: step count on the robot.
        phrasings: what the robot's policy is told.
        episodes: per task of the robot, w and phrasings; 0 leaves it out.
    """

    guidance_scale: tuple[float, ...] = (-1, 0, 1, 3, 7, 15)
    num_steps: tuple[int, ...] = (10, 50, 1000)
    robot_num_steps: int = 10
    phrasings: tuple[Literal["known", "unseen"], ...] = ("known", "unseen")
    episodes: int = 20
    seed: int = 7
    out: Path = Path("results/guidance")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        self.check_values("guidance_scale", -1, 100)
        self.check_values("num_steps", 1, 1000)


def point_cases(config: GuidanceConfig) -> list[Sampling]:
    """DDIM at every count, DPM-Solver++(2M) at the small ones."""
    return [
        Sampling(count, sampler, "logsnr", guidance_scale=w)
        for w in config.guidance_scale
        for count in config.num_steps
        for sampler in ("ddim", "dpmpp_2m")
        if sampler == "ddim" or count <= MOST_2M_STEPS
    ]


def run(config: GuidanceConfig, models: Sequence[PointModel]) -> list[dict[str, Any]]:
    """Measure every case."""
    record = Record(config.out, "guidance", vars(config))
    policy = config.robot_policy([config.robot_num_steps])
    cases = list(itertools.product(models, point_cases(config)))
    for model, sampling in tqdm(cases, desc="points", file=sys.stderr):
        row = describe_points(model, sampling) | points.measure(model, sampling)
        record.add(row, partial(model.sample, sampling, 0, 1, 0))
    if policy is not None:
        name = policy.robot.spec.task
        both = list(itertools.product(config.phrasings, config.guidance_scale))
        for words, w in tqdm(both, desc=name, file=sys.stderr):
            specs = make_specs(config.episodes, config.seed, policy.robot.phrasings(words))
            sampling = policy.sampling(config.robot_num_steps, w)
            row = {**play_row(policy, specs, sampling), "phrasings": words}
            record.add(row, partial(policy.draw, sampling))
    record.add_times()
    record.finish()
    return record.rows


def _opposed(row: dict[str, Any]) -> float:
    """How well something else than what was asked for was done."""
    opposed: float = row["wrong_score" if "wrong_score" in row else "opposite_rate"]
    return opposed


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Adherence, quality and diversity by w; shares in percent."""
    table = Table(title="guidance: adherence to the condition, and what it costs (shares in %)")
    for name in ("of", "sampler", "steps", "w", "accuracy", "on mode", "at bound"):
        left = name in ("of", "sampler")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    judged = [quality_of(row)[0] for row in robot_rows(rows)]
    for name in ("covered", "entropy", judged[0] if judged else "success", "opposed"):
        table.add_column(name, justify="right", no_wrap=True)
    shares = ("accuracy", "on_mode", "at_bound", "mode_coverage")
    for row in rows:
        how = (row["sampler"], str(row["num_steps"]), f"{row['guidance_scale']:g}")
        if row["target"] != "points":
            found = (f"{100 * share:.1f}" for share in (quality_of(row)[1], _opposed(row)))
            table.add_row(f"{row['target']}, {row['phrasings']}", *how, *[""] * 5, *found)
        else:
            found = (f"{100 * row[name]:.1f}" for name in shares)
            name = "exact score" if row["network"] == "exact" else "trained"
            table.add_row(name, *how, *found, f"{row['mode_entropy']:.3f}", "", "")
    return table


def plot_points(config: GuidanceConfig, models: Sequence[PointModel], path: Path) -> None:
    """Scatter plots: a column a w, a row a network and step count, a colour a condition."""
    shown = list(itertools.product(models, config.num_steps))
    columns = len(config.guidance_scale)
    figure = Figure(figsize=(2.1 * columns, 2.1 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), columns, squeeze=False, sharex=True, sharey=True)
    for line, (model, count) in zip(panels, shown, strict=True):
        for panel, w in zip(line, config.guidance_scale, strict=True):
            sampling = Sampling(count, "ddim", "logsnr", guidance_scale=w)
            for condition in range(model.mixture.num_conditions):
                x, y = model.sample(sampling, condition, _SHOWN_POINTS, condition).T
                panel.plot(x, y, ".", markersize=1, alpha=0.5)
            panel.plot(*model.mixture.means.T, "k+", markersize=6)
            panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
        name = "exact score" if model.network == "exact" else "trained"
        line[0].set_ylabel(f"{name}\n{count} steps")
    for panel, w in zip(panels[0], config.guidance_scale, strict=True):
        panel.set_title(f"w = {w:g}" + {-1.0: ": unconditional", 0.0: ": conditional"}.get(w, ""))
    figure.savefig(path, dpi=110)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy, on-mode share and entropy over w at each count; success of the robot over w."""
    robot = robot_rows(rows)
    figure = Figure(figsize=(16, 4) if robot else (12, 4), layout="constrained")
    panels = figure.subplots(1, 4 if robot else 3)
    scales = list(dict.fromkeys(row["guidance_scale"] for row in rows))
    where = np.arange(len(scales))
    counts = list(dict.fromkeys(row["num_steps"] for row in pick(rows, target="points")))
    colors = dict(zip(counts, ("tab:blue", "tab:green", "tab:red", "tab:purple"), strict=False))
    for network, count in itertools.product(("exact", "concat_mlp"), counts):
        mine = pick(rows, target="points", network=network, sampler="ddim", num_steps=count)
        for panel, name in zip(panels, ("accuracy", "on_mode", "mode_entropy"), strict=False):
            panel.plot(
                where,
                [row[name] for row in mine],
                color=colors.get(count, "black"),
                marker="o",
                linestyle="-" if network == "exact" else ":",
                label=f"{count} steps, {'exact score' if network == 'exact' else 'trained'}",
            )
    titles = ("in the asked condition", "on a mode of it", "entropy of its modes, nats")
    for panel, title in zip(panels, titles, strict=False):
        panel.set(title=title)
    panels[0].legend(fontsize=7)
    for words in dict.fromkeys(row["phrasings"] for row in robot):
        mine = pick(robot, phrasings=words)
        asked, other = ([quality_of(row)[1] for row in mine], [_opposed(row) for row in mine])
        for name, values, style in (("asked", asked, "-"), ("opposite", other, ":")):
            panels[3].plot(
                where,
                values,
                color="tab:blue" if words == "known" else "tab:red",
                marker="o",
                linestyle=style,
                label=f"{name} task, {words}",
            )
        low, high = zip(*(quality_of(row)[2] for row in mine), strict=True)
        panels[3].fill_between(where, low, high, color=panels[3].lines[-1].get_color(), alpha=0.1)
    if robot:
        quality = quality_of(robot[0])[0]
        panels[3].set(title=f"{robot[0]['target']} policy: {quality}, 95% interval")
        panels[3].legend(fontsize=7)
    for panel in panels:
        panel.set_xticks(where, [f"{w:g}" for w in scales])
        panel.set_xlabel("guidance scale w")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main(config: GuidanceConfig) -> None:
    """Measure, print the table, write `guidance.json` and the plots."""
    models = point_models(config.mixture)
    rows = run(config, models)
    plot(rows, config.out / "guidance.png")
    plot_points(config, models, config.out / "guidance_points.png")
    console = results.console()
    console.print(table_of(rows))
    console.print(f"wrote guidance.json, guidance.png and guidance_points.png to {config.out}")
