"""What `benchmarks.timeline` shows to people: a table of its phases, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from rich.table import Table

from benchmarks.generator import OUTCOMES
from benchmarks.hog_report import Spans, shade

_COLORS = {"on_time": "tab:green", "late": "tab:red", "refused": "tab:orange", "lost": "black"}


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people, in milliseconds and percent."""

    def ms(seconds: float | None) -> str:
        return "–" if seconds is None else f"{seconds * 1e3:.1f}"

    table = Table(title="phase by phase (latencies in ms)")
    table.add_column("phase", no_wrap=True)
    for name in ("robots", "due", "late/refused/lost", "steps", "5%–95%", "p50", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        due = max(1, row["due_requests"])
        steps, low, high = (row[f"num_steps_{name}"] for name in ("p50", "p5", "p95"))
        table.add_row(
            row["phase"],
            str(row["robots"]),
            str(row["due_requests"]),
            "/".join(f"{100 * row[name] / due:.2g}" for name in OUTCOMES[1:]) + "%",
            "–" if steps is None else f"{steps:g}",
            "–" if low is None else f"{low:g}–{high:g}",
            *(ms(row[f"latency_{name}_s"]) for name in ("p50", "p99", "max")),
        )
    return table


def plot(rows: Sequence[dict[str, Any]], visits_s: Spans, budget_s: float, path: Path) -> None:
    """Robots, steps, latency and outcomes over time.

    Args:
        rows: of the result.
        visits_s: (from, to) of each visit of the hog.
        budget_s: a line in the plot of latencies.
        path: of the picture.
    """
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": (1, 2, 2, 2)})
    robots, steps, latency, outcomes = panels
    begin_s, end_s = series(rows, "begin_s"), series(rows, "end_s")
    middle_s = (begin_s + end_s) / 2
    robots.step(begin_s, series(rows, "robots"), where="post", color="black")
    robots.set(ylabel="robots asking", yscale="log")
    steps.fill_between(
        middle_s,
        series(rows, "num_steps_p5"),
        series(rows, "num_steps_p95"),
        color="tab:blue",
        alpha=0.2,
        label="5–95%",
        linewidth=0,
    )
    steps.plot(middle_s, series(rows, "num_steps_p50"), color="tab:blue", label="median")
    steps.set(ylabel="denoising steps", ylim=(0, None))
    for name, style, label in (("p50", "-", "median"), ("max", ":", "slowest")):
        latency.plot(
            middle_s,
            1e3 * series(rows, f"latency_{name}_s"),
            style,
            color="tab:purple",
            label=label,
        )
    _draw_p99(latency, rows)
    budget_ms = 1e3 * budget_s
    latency.axhline(budget_ms, color="black", linestyle="--", label=f"budget {budget_ms:g} ms")
    latency.set(ylabel="latency from when due, ms", yscale="log")
    outcomes.stackplot(
        middle_s,
        [series(rows, name) / (end_s - begin_s) for name in OUTCOMES],
        labels=[name.replace("_", " ") for name in OUTCOMES],
        colors=[_COLORS[name] for name in OUTCOMES],
    )
    outcomes.set(ylabel="requests per second", xlabel="time, s", xlim=(0, end_s[-1]))
    for panel in (robots, latency):
        panel.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
        panel.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
    for panel in panels:
        shade(panel, visits_s, end_s[-1])
        for row in rows[1:]:
            panel.axvline(row["begin_s"], color="gray", linewidth=0.6)
        panel.grid(alpha=0.3)
        if panel is not robots:
            panel.legend(fontsize=7, loc="upper right")
    for row in rows:
        robots.annotate(
            row["phase"],
            ((row["begin_s"] + row["end_s"]) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def series(rows: Sequence[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    """One number of every bin, all phases together; nan where it is not known."""
    every = [value for row in rows for value in row["bins"][name]]
    return np.array([np.nan if value is None else value for value in every], np.float64)


def _draw_p99(panel: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Of each phase: a bin has too few requests for it."""
    known = [row for row in rows if row["latency_p99_s"] is not None]
    for number, row in enumerate(known):
        panel.plot(
            [row["begin_s"], row["end_s"]],
            [1e3 * row["latency_p99_s"]] * 2,
            color="tab:brown",
            label="p99 of the phase" if number == 0 else "",
        )
