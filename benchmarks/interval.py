"""Where should guidance act? Intervals of noise levels, each with the rows that it saves.

Published advice conflicts: everywhere (Ho & Salimans 2022), at middle levels only (Kynkäänniemi et
al. 2024, arXiv:2404.07724), only early or only late. Here each is tried on 2-D points, whose truth
is known, with the exact score and with a trained network.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table
from tqdm import tqdm

from benchmarks import points, results
from benchmarks.points import PointModel
from benchmarks.sweep import Record, describe_points, pick, point_models
from models.guidance import EVERYWHERE, Interval, check_interval
from models.sampling import Sampling


@dataclass(frozen=True)
class IntervalConfig:
    """What `python -m benchmarks interval` takes.

    Attributes:
        guidance_interval: pairs of noise levels, the standard deviation of the noise in x_t, from 0
            (clean) to 1 (nothing but noise), between which guidance acts.
        guidance_scale: w of Ho & Salimans; not 0 or −1, which need one network row anyhow.
        num_steps: step counts, DDIM on the log-SNR grid.
        mixture: as for `guidance`.
        out: folder of interval.json and interval.png.
    """

    guidance_interval: tuple[tuple[float, float], ...] = (
        EVERYWHERE,
        (0.0, 0.99),
        (0.0, 0.9),
        (0.0, 0.5),
        (0.2, 1.0),
        (0.5, 1.0),
        (0.9, 1.0),
        (0.2, 0.9),
        (0.5, 0.99),
    )
    guidance_scale: tuple[float, ...] = (1, 3, 7)
    num_steps: tuple[int, ...] = (10, 50)
    mixture: Path | None = None
    out: Path = Path("results/interval")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for interval in self.guidance_interval:
            check_interval("guidance_interval", interval)
        for name in ("guidance_interval", "guidance_scale", "num_steps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                msg = f"{name}: expected one value or more, each once, got {values}"
                raise ValueError(msg)
        if {0, -1} & set(self.guidance_scale):
            raise ValueError("guidance_scale: expected other values than 0 and −1, which are none")
        if not all(1 <= count <= 1000 for count in self.num_steps):
            msg = f"num_steps: expected 1..1000, got {self.num_steps}"
            raise ValueError(msg)


def run(config: IntervalConfig, models: Sequence[PointModel]) -> list[dict[str, Any]]:
    """Measure every case; w = 0 is the first of each step count, to compare with."""
    record = Record(config.out, "interval", vars(config))
    guided = itertools.product(config.guidance_scale, config.guidance_interval)
    ways: list[tuple[float, Interval]] = [(0.0, EVERYWHERE), *guided]
    cases = list(itertools.product(models, config.num_steps, ways))
    for model, count, (w, interval) in tqdm(cases, desc="points", file=sys.stderr):
        sampling = Sampling(count, grid="logsnr", guidance_scale=w, guidance_interval=interval)
        record.add(describe_points(model, sampling) | points.measure(model, sampling))
    record.finish()
    return record.rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Adherence, quality and diversity by w and interval."""
    table = Table(title="guidance at some noise levels only (shares in %, entropy in nats)")
    for name in ("of", "steps", "w", "acts at", "rows", "accuracy", "on mode", "at bound"):
        table.add_column(name, justify="left" if name == "of" else "right", no_wrap=True)
    for name in ("entropy", "sliced W2 ×1000"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["guidance_interval"]
        table.add_row(
            row["network"],
            str(row["num_steps"]),
            f"{row['guidance_scale']:g}",
            f"{low:g} .. {high:g}" if row["guidance_scale"] else "",
            str(row["nfe"]),
            *(f"{100 * row[name]:.1f}" for name in ("accuracy", "on_mode", "at_bound")),
            f"{row['mode_entropy']:.3f}",
            f"{1e3 * row['sw2']:.1f}",
        )
    return table


def plot(config: IntervalConfig, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Share on a mode against diversity: a panel for each w and count, a mark for each interval."""
    cases = list(itertools.product(config.num_steps, config.guidance_scale))
    width = len(config.guidance_scale)
    size = (4.2 * width, 3.6 * len(config.num_steps))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(config.num_steps), width, squeeze=False).flat
    for panel, (count, w) in zip(panels, cases, strict=True):
        for network, marker in (("exact", "o"), ("concat_mlp", "^")):
            mine = pick(rows, network=network, num_steps=count, guidance_scale=w)
            for number, row in enumerate(mine):
                low, high = row["guidance_interval"]
                panel.plot(
                    row["mode_entropy"],
                    row["on_mode"],
                    marker,
                    color=f"C{number}",
                    label=f"{low:g} .. {high:g}" if marker == "o" else None,
                )
        panel.set(title=f"w = {w:g}, {count} steps", xlabel="entropy of modes, nats")
        panel.set_ylabel("on a mode (○ exact score, △ trained)")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=6, title="acts at noise levels", title_fontsize=6)
    figure.savefig(path, dpi=110)


def main(config: IntervalConfig) -> None:
    """Measure, print the table, write results and the plot."""
    rows = run(config, point_models(config.mixture))
    plot(config, rows, config.out / "interval.png")
    console = results.console()
    console.print(table_of(rows))
    console.print(f"wrote interval.json and interval.png to {config.out}")
