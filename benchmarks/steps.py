"""The lesson's first exercise: sample quality over inference time, by step count and sampler."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.table import Table
from tqdm import tqdm

from benchmarks import points, results
from benchmarks.episodes import make_specs
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

LESSON = {
    1000: ("best", 100.0),
    100: ("very good", 10.0),
    50: ("good", 5.0),
    10: ("acceptable", 1.0),
    1: ("poor", 0.1),
}
"""Quality and seconds that the lesson's table (75.3) gives for a step count."""
DDPM_STEPS = 1000
MOST_LOGSNR_STEPS = 100
"""Beyond it neighbouring points of the log-SNR grid fall on the same integer at the clean end."""
NUM_SETS = 2


@dataclass(frozen=True, kw_only=True)
class StepsConfig(SweepConfig):
    """What `python -m benchmarks steps` takes.

    Attributes:
        num_steps: step counts to try; those up to 100 also on the log-SNR grid and with
            DPM-Solver++(2M). DDPM always takes 1000.
    """

    num_steps: tuple[int, ...] = (1, 2, 5, 8, 10, 25, 50, 100, 250, 500, 1000)
    seed: int = 5
    out: Path = Path("results/steps")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        self.check_values("num_steps", 1, DDPM_STEPS)


def point_cases(num_steps: Sequence[int]) -> list[Sampling]:
    """Every sampler on the grids that suit it."""
    few = [count for count in num_steps if count <= MOST_LOGSNR_STEPS]
    return [
        *(Sampling(count, "ddim", "leading") for count in num_steps),
        *(Sampling(count, "ddim", "trailing") for count in num_steps),
        *(Sampling(count, "ddim", "logsnr") for count in few),
        *(Sampling(count, "dpmpp_2m", "logsnr") for count in few),
        Sampling(DDPM_STEPS, "ddpm"),
        Sampling(DDPM_STEPS, "ddpm_beta"),
    ]


def robot_cases(num_steps: Sequence[int]) -> list[Sampling]:
    """As for points, less the grid that no server uses."""
    return [sampling for sampling in point_cases(num_steps) if sampling.grid != "leading"]


def run(config: StepsConfig) -> list[dict[str, Any]]:
    """Measure every case."""
    record = Record(config.out, "steps", vars(config))
    policy = config.robot_policy([DDPM_STEPS])
    models = point_models(config.mixture)
    mixture = models[0].mixture
    for name, floor in (("truth", points.truth_quality), ("reference", points.reference_quality)):
        record.add({"target": "points", "network": name, **floor(mixture, NUM_SETS)})
    cases = list(itertools.product(models, point_cases(config.num_steps)))
    for model, sampling in tqdm(cases, desc="points", file=sys.stderr):
        row = describe_points(model, sampling) | points.measure(model, sampling, NUM_SETS)
        record.add(row, partial(model.sample, sampling, 0, 1, 0))
    if policy is not None:
        name = policy.robot.spec.task
        specs = make_specs(config.episodes, config.seed, policy.robot.phrasings("known"))
        for sampling in tqdm(robot_cases(config.num_steps), desc=name, file=sys.stderr):
            record.add(play_row(policy, specs, sampling), partial(policy.draw, sampling))
    record.add_times()
    record.finish()
    return record.rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """DDIM by step count, the lesson's own table beside it, then the other samplers."""
    table = Table(title="quality by denoising steps (points: sliced W2 to the target, ×1000)")
    for name in ("sampler", "grid", "steps", "lesson says", "exact", "trained", "on mode"):
        justify: Literal["left", "right"] = "left" if name in ("sampler", "grid") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    judged = [f"{row['target']} {quality_of(row)[0]}" for row in robot_rows(rows)]
    for name in ("ms", judged[0] if judged else "robot", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in pick(rows, target="points", network="exact"):
        how = {name: row[name] for name in ("sampler", "grid", "num_steps")}
        (trained,) = pick(rows, target="points", network="concat_mlp", **how)
        robot = pick(robot_rows(rows), **how)
        word, seconds = LESSON.get(row["num_steps"], ("", 0.0))
        table.add_row(
            row["sampler"],
            row["grid"],
            str(row["num_steps"]),
            f"{word}, {seconds:g} s" if word and row["sampler"] == "ddim" else "",
            f"{1e3 * row['sw2']:.1f}",
            f"{1e3 * trained['sw2']:.1f}",
            f"{row['on_mode']:.1%}",
            f"{1e3 * trained['time_s']:.2f}",
            f"{quality_of(robot[0])[1]:.1%}" if robot else "–",
            f"{1e3 * robot[0]['time_s']:.2f}" if robot else "–",
        )
    for row in rows[:2]:
        table.add_row(row["network"], "", "", "", f"{1e3 * row['sw2']:.1f}", "", "")
    return table


STYLES = {
    ("ddim", "leading"): ("tab:gray", "v", "DDIM, leading"),
    ("ddim", "trailing"): ("tab:blue", "o", "DDIM, trailing"),
    ("ddim", "logsnr"): ("tab:green", "s", "DDIM, log-SNR"),
    ("dpmpp_2m", "logsnr"): ("tab:red", "D", "DPM-Solver++(2M), log-SNR"),
    ("ddpm", "trailing"): ("tab:orange", "*", "DDPM, posterior variance"),
    ("ddpm_beta", "trailing"): ("tab:purple", "P", "DDPM, variance beta"),
}


def _curves(
    panel: Axes, rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]
) -> None:
    """One curve a sampler and grid over inference time, step counts written beside DDIM's."""
    for (sampler, grid), (color, marker, label) in STYLES.items():
        mine = sorted(pick(rows, sampler=sampler, grid=grid), key=lambda row: row["num_steps"])
        if not mine:
            continue
        times = [1e3 * row["time_s"] for row in mine]
        panel.plot(
            times,
            [value(row) for row in mine],
            color=color,
            marker=marker,
            markersize=10 if len(mine) == 1 else 5,
            linestyle="-" if len(mine) > 1 else "none",
            label=label,
        )
        if (sampler, grid) in {("ddim", "trailing"), ("dpmpp_2m", "logsnr")}:
            for row, time_ms in zip(mine, times, strict=True):
                panel.annotate(
                    str(row["num_steps"]),
                    (time_ms, value(row)),
                    textcoords="offset points",
                    xytext=(4, 5),
                    fontsize=7,
                    color=color,
                )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Quality over the time of one sample: exact score, trained network, robot."""
    robot = robot_rows(rows)
    figure = Figure(figsize=(16 if robot else 11, 5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 3 if robot else 2))
    for panel, network, title in zip(
        panels[:2], ("exact", "concat_mlp"), ("exact score", "trained network"), strict=True
    ):
        mine = pick(rows, target="points", network=network)
        _curves(panel, mine, lambda row: float(row["sw2"]))
        for row, style in zip(rows[:2], ("--", ":"), strict=True):
            label = {"truth": "perfect samples", "reference": "resolution"}[row["network"]]
            panel.axhline(row["sw2"], color="black", linestyle=style, linewidth=1, label=label)
        panel.set(yscale="log", ylabel="sliced Wasserstein-2 distance", title=f"2-D, {title}")
    if robot:
        _curves(panels[2], robot, lambda row: 100 * quality_of(row)[1])
        for row in robot:
            quality, _, (low, high) = quality_of(row)
            panels[2].vlines(1e3 * row["time_s"], 100 * low, 100 * high, "grey", linewidth=0.8)
        panels[2].set(
            ylabel="mean score, %" if quality == "score" else "episodes that succeed, %",
            ylim=(-4, 104),
            title=f"{row['target']} policy, 95% interval",
        )
    for panel in panels:
        panel.set(xscale="log", xlabel="time of one sample, ms (numbers: denoising steps)")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main(config: StepsConfig) -> None:
    """Measure, print the table, write `steps.json` and `steps.png`."""
    rows = run(config)
    plot(rows, config.out / "steps.png")
    console = results.console()
    console.print(table_of(rows))
    console.print(f"wrote steps.json and steps.png to {config.out}")
