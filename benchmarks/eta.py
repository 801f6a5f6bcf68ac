"""The lesson's second exercise: does a stochastic DDIM give better, or more diverse, samples?"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
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

NUM_SETS = 2


@dataclass(frozen=True, kw_only=True)
class EtaConfig(SweepConfig):
    """What `python -m benchmarks eta` takes.

    Attributes:
        eta: values to compare; 0 is deterministic, 1 ancestral DDPM.
        num_steps: step counts on the 2-D target.
        robot_num_steps: step counts on the robot.
    """

    eta: tuple[float, ...] = (0.0, 0.5, 1.0)
    num_steps: tuple[int, ...] = (5, 10, 25, 50, 100, 250, 1000)
    robot_num_steps: tuple[int, ...] = (1, 2, 5, 10, 50)
    seed: int = 6
    out: Path = Path("results/eta")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        super().__post_init__()
        self.check_values("eta", 0, 1)
        self.check_values("num_steps", 1, 1000)
        self.check_values("robot_num_steps", 1, 1000)


def run(config: EtaConfig) -> list[dict[str, Any]]:
    """Measure every case."""
    record = Record(config.out, "eta", vars(config))
    policy = config.robot_policy(config.robot_num_steps)
    models = point_models(config.mixture)
    cases = list(itertools.product(models, config.num_steps, config.eta))
    for model, count, eta in tqdm(cases, desc="points", file=sys.stderr):
        sampling = Sampling(count, eta=eta)
        row = describe_points(model, sampling) | points.measure(model, sampling, NUM_SETS)
        record.add(row, partial(model.sample, sampling, 0, 1, 0))
    if policy is not None:
        name = policy.robot.spec.task
        specs = make_specs(config.episodes, config.seed, policy.robot.phrasings("known"))
        both = list(itertools.product(config.robot_num_steps, config.eta))
        for count, eta in tqdm(both, desc=name, file=sys.stderr):
            sampling = Sampling(count, eta=eta)
            row = play_row(policy, specs, sampling) | policy.spread(specs, sampling)
            record.add(row, partial(policy.draw, sampling))
    record.add_times()
    record.finish()
    return record.rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Quality and diversity by step count and eta."""
    table = Table(title="DDIM by eta (points: sliced W2 ×1000; entropy of modes in nats)")
    for name in ("target", "network", "steps", "eta", "sliced W2", "on mode", "covered"):
        table.add_column(name, justify="left" if name in ("target", "network") else "right")
    judged = [quality_of(row)[0] for row in robot_rows(rows)]
    for name in ("entropy", judged[0] if judged else "success", "chunk spread"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["target"],
            row["network"],
            str(row["num_steps"]),
            f"{row['eta']:g}",
            *(
                ("", "", "", "", f"{quality_of(row)[1]:.1%}", f"{row['chunk_spread']:.4f}")
                if row["target"] != "points"
                else (
                    f"{1e3 * row['sw2']:.1f}",
                    f"{row['on_mode']:.1%}",
                    f"{row['mode_coverage']:.0%}",
                    f"{row['mode_entropy']:.3f}",
                )
            ),
        )
    return table


def plot(config: EtaConfig, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Quality and diversity over step count, a curve an eta."""
    robot = robot_rows(rows)
    figure = Figure(figsize=(16, 4) if robot else (11, 4), layout="constrained")
    panels = figure.subplots(1, 4 if robot else 3)
    colors = dict(zip(config.eta, ("tab:blue", "tab:green", "tab:red", "tab:purple"), strict=False))
    for eta, network in itertools.product(config.eta, ("exact", "concat_mlp")):
        mine = pick(rows, target="points", network=network, eta=eta)
        style = {
            "color": colors.get(eta, "black"),
            "marker": "o",
            "linestyle": "-" if network == "exact" else ":",
            "label": f"eta = {eta:g}, {'exact score' if network == 'exact' else 'trained'}",
        }
        counts = [row["num_steps"] for row in mine]
        for panel, name in zip(panels[:3], ("sw2", "on_mode", "mode_entropy"), strict=True):
            panel.plot(counts, [row[name] for row in mine], **style)
    titles = ("sliced Wasserstein-2", "share of samples on a mode", "entropy of modes, nats")
    for panel, title in zip(panels[:3], titles, strict=True):
        panel.set(title=title)
    panels[0].set(yscale="log")
    if robot:
        for eta in config.eta:
            mine = pick(robot, eta=eta)
            panels[3].plot(
                [row["num_steps"] for row in mine],
                [row["chunk_spread"] for row in mine],
                color=colors.get(eta, "black"),
                marker="o",
                label=f"eta = {eta:g}",
            )
        panels[3].set(title=f"{robot[0]['target']}: spread of chunks over seeds")
        panels[3].legend(fontsize=7)
    for panel in panels:
        panel.set(xscale="log", xlabel="denoising steps")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main(config: EtaConfig) -> None:
    """Measure, print the table, write `eta.json` and `eta.png`."""
    rows = run(config)
    plot(config, rows, config.out / "eta.png")
    console = results.console()
    console.print(table_of(rows))
    console.print(f"wrote eta.json and eta.png to {config.out}")
