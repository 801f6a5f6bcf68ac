"""Where should the uniform log-SNR grid begin and end? Chosen on mixtures that no report uses."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from benchmarks.point_quality import reference, sliced_w2
from benchmarks.points import PointModel
from models.grids import uniform_logsnr
from models.mixtures import Mixture
from models.sampling import Sampling

_POINTS = 4_000
_MIXTURE_STREAM = 0x717


@dataclass(frozen=True)
class LogsnrConfig:
    """What `python -m benchmarks logsnr` takes.

    Attributes:
        noisy_end: log-SNR of the first timestep, values to try.
        clean_end: log-SNR of the last one, values to try.
        num_steps: step counts that the range must serve.
        mixtures: how many random targets.
        seed: of the targets; 100 or more, since it chooses.
        out: folder of logsnr.json and logsnr.png.
    """

    noisy_end: tuple[float, ...] = (-10, -9, -8, -7, -6, -5)
    clean_end: tuple[float, ...] = (6, 6.5, 7, 7.5, 8)
    num_steps: tuple[int, ...] = (5, 8, 12, 16)
    mixtures: int = 24
    seed: int = 100
    out: Path = Path("results/logsnr")

    def __post_init__(self) -> None:
        """Check ranges, and keep choosing and reporting apart."""
        if min(self.mixtures, *map(len, (self.noisy_end, self.clean_end, self.num_steps))) < 1:
            raise ValueError(
                "noisy_end, clean_end, num_steps, mixtures: expected one or more of each"
            )
        if self.seed < 100:
            msg = f"seed: expected 100 or more (smaller ones are for reports), got {self.seed}"
            raise ValueError(msg)


def random_mixture(rng: np.random.Generator) -> Mixture:
    """2 to 5 modes somewhere in a square somewhere, narrow or wide."""
    half = rng.uniform(0.2, 0.8)
    centre = rng.uniform(half - 0.85, 0.85 - half, 2)
    modes = centre + rng.uniform(-half, half, (int(rng.integers(2, 6)), 2))
    return Mixture((tuple((float(x), float(y)) for x, y in modes),), rng.uniform(0.04, 0.12))


def choose(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """The range whose worst case is least bad.

    A range's regret on a (mixture, step count) is by which factor another range is better there;
    the range with the smallest largest regret is taken, so that no target is served badly. (Means
    hardly differ: they have a flat optimum.)
    """
    ranges = sorted({tuple(row["ends"]) for row in rows})
    cases = sorted({(row["mixture"], row["num_steps"]) for row in rows})
    error = {(tuple(r["ends"]), (r["mixture"], r["num_steps"])): r["sw2"] for r in rows}
    best = {case: min(error[ends, case] for ends in ranges) for case in cases}
    regret = {ends: max(error[ends, case] / best[case] for case in cases) for ends in ranges}
    return min(ranges, key=lambda ends: regret[ends])


def run(config: LogsnrConfig) -> list[dict[str, Any]]:
    """Error of DPM-Solver++(2M) with the exact score on every target, count and range."""
    rng = np.random.default_rng((config.seed, _MIXTURE_STREAM))
    rows = []
    ranges = list(itertools.product(config.noisy_end, config.clean_end))
    total = config.mixtures * len(ranges) * len(config.num_steps)
    with tqdm(total=total, desc="ranges", file=sys.stderr) as bar:
        for index in range(config.mixtures):
            model = PointModel.exact(random_mixture(rng))
            alpha_bar = model.diffusion.alpha_bar
            target = reference(model.mixture, 0, config.seed + index, _POINTS)
            for ends, count in itertools.product(ranges, config.num_steps):
                sampling = Sampling(count, "dpmpp_2m", "logsnr")
                timesteps = uniform_logsnr(count, len(alpha_bar) - 1, alpha_bar, ends)
                points = model.sample(sampling, 0, _POINTS, config.seed + index, timesteps)
                rows.append(
                    {
                        "mixture": index,
                        "ends": ends,
                        "num_steps": count,
                        "sw2": sliced_w2(points, target),
                    }
                )
                bar.update()
    return rows


def plot(config: LogsnrConfig, rows: list[dict[str, Any]], path: Path) -> None:
    """Geometric mean of the error by range, one panel a step count."""
    figure = Figure(figsize=(4 * len(config.num_steps), 3.6), layout="constrained")
    panels = figure.subplots(1, len(config.num_steps), squeeze=False)[0]
    chosen = choose(rows)
    for panel, count in zip(panels, config.num_steps, strict=True):
        means = [
            [_mean(rows, (noisy, clean), count) for clean in config.clean_end]
            for noisy in config.noisy_end
        ]
        image = panel.imshow(means, aspect="auto", cmap="viridis_r")
        panel.plot(
            config.clean_end.index(chosen[1]),
            config.noisy_end.index(chosen[0]),
            "*",
            markersize=16,
            color="tab:red",
        )
        panel.set(title=f"{count} steps", xlabel="log-SNR at the clean end")
        panel.set_xticks(range(len(config.clean_end)), map(str, config.clean_end))
        panel.set_yticks(range(len(config.noisy_end)), map(str, config.noisy_end))
        figure.colorbar(image, ax=panel, label="sliced W2")
    panels[0].set_ylabel("log-SNR at the noisy end")
    figure.savefig(path, dpi=130)


def _mean(rows: list[dict[str, Any]], ends: tuple[float, float], count: int) -> float:
    mine = [r["sw2"] for r in rows if tuple(r["ends"]) == ends and r["num_steps"] == count]
    return float(np.exp(np.mean(np.log(mine))))


def main(config: LogsnrConfig) -> None:
    """Measure, print the table, write `logsnr.json` and `logsnr.png`."""
    rows = run(config)
    results.write_results(config.out, "logsnr", vars(config), rows)
    plot(config, rows, config.out / "logsnr.png")
    chosen = choose(rows)
    table = Table(title="sliced W2 (geometric mean over mixtures) by range and denoising steps")
    for name in ("log-SNR from … to", *(f"{count} steps" for count in config.num_steps), ""):
        table.add_column(name, justify="right")
    for ends in itertools.product(config.noisy_end, config.clean_end):
        means = [f"{_mean(rows, ends, count):.4f}" for count in config.num_steps]
        table.add_row(f"{ends[0]:g} … {ends[1]:g}", *means, "chosen" if ends == chosen else "")
    console = results.console()
    console.print(table)
    console.print(f"wrote logsnr.json and logsnr.png to {config.out}")
