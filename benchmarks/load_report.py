"""What `benchmarks.load` shows to people: its table, its plot, and how many robots are carried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

CARRIED_MISS_RATE = 1e-3
"""A fleet is carried if no more than this share of its requests is missed."""
_STYLES = {
    "deadline": ("tab:blue", "o"),
    "fifo": ("tab:red", "s"),
    "null": ("tab:gray", "^"),
}


def carried(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """Engine → robots of the largest fleet that it carries; None if it carries none of these."""
    most: dict[str, int | None] = {row["engine"]: None for row in rows}
    for row in rows:
        if row["miss_rate"] <= CARRIED_MISS_RATE:
            most[row["engine"]] = max(most[row["engine"]] or 0, row["robots"])
    return most


def carried_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same in words, and how many times as many as fifo the deadline engine carries."""
    most = carried(rows)
    parts = [f"{engine} {robots or 'none of these'}" for engine, robots in most.items()]
    ours, theirs = most.get("deadline"), most.get("fifo")
    if ours and theirs:
        parts.append(f"deadline / fifo = {ours / theirs:.2g}")
    return f"robots carried (at most {CARRIED_MISS_RATE:.1%} missed): {', '.join(parts)}"


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people, in milliseconds and percent."""

    def shown(number: float | None, scale: float, pattern: str) -> str:
        return "–" if number is None else pattern.format(number * scale)

    def ms(seconds: float | None) -> str:
        return shown(seconds, 1e3, "{:.1f}" if seconds is None or seconds < 0.1 else "{:.0f}")

    table = Table(title="answers in time by robots (latencies in ms)")
    table.add_column("engine", no_wrap=True)
    names = ("robots", "in time", "missed", "late/refused/lost", "p50", "p99", "max")
    for name in (*names, "steps", "rows", "cores"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        how = "/".join(f"{100 * row[f'{name}_rate']:.2g}" for name in ("late", "refused", "lost"))
        table.add_row(
            row["engine"],
            str(row["robots"]),
            f"{row['on_time_rps']:.0f}/s",
            f"{row['miss_rate']:.2%}",
            f"{how}%",
            ms(row["latency_p50_s"]),
            ms(row["latency_p99_s"]),
            ms(row["latency_max_s"]),
            f"{row['num_steps_p50']:g} ≥{row['num_steps_min']}" if row["num_steps_p50"] else "–",
            shown(row["rows_per_call_p50"], 1, "{:.1f}"),
            shown(row["server_cpu"], 1, "{:.2f}"),
        )
    return table


def plot(rows: Sequence[dict[str, Any]], budget_s: float, path: Path) -> None:
    """Answers in time over those asked for; misses, latency and steps over robots.

    Args:
        rows: of the result.
        budget_s: a line in the plot of latencies.
        path: of the picture.
    """
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    panels = figure.subplots(1, 4)
    for engine in dict.fromkeys(row["engine"] for row in rows):
        mine = sorted((row for row in rows if row["engine"] == engine), key=lambda r: r["robots"])
        _draw(panels, mine, engine)
    most = max(row["offered_rps"] for row in rows)
    panels[0].plot([0, most], [0, most], "--", color="black", linewidth=0.8, label="all in time")
    panels[0].set(xlabel="requests due per second", ylabel="answers in time per second")
    panels[0].set_title("answers in time")
    least = CARRIED_MISS_RATE
    panels[1].axhline(100 * least, color="black", linestyle="--", linewidth=0.8)
    panels[1].set_yscale("symlog", linthresh=100 * least)
    panels[1].set(
        ylim=(0, 120),
        ylabel="missed requests, %",
        title=f"late, refused or lost (dashed: {least:.1%})",
    )
    panels[2].axhline(1e3 * budget_s, color="black", linestyle="--", linewidth=0.8)
    for style, name in (("-", "median"), ("--", "p99"), (":", "slowest")):
        panels[2].plot([], [], style, color="black", label=name)
    panels[2].set(
        yscale="log",
        ylabel="latency from when due, ms",
        title=f"answers (dashed: budget {1e3 * budget_s:g} ms)",
    )
    panels[3].set(ylabel="denoising steps", title="steps of an answer", ylim=(0, None))
    for panel in panels[1:]:
        panel.set(xlabel="robots")
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw(panels: Sequence[Axes], rows: Sequence[dict[str, Any]], engine: str) -> None:
    """One engine's lines in every panel."""
    color, marker = _STYLES[engine]
    robots = [row["robots"] for row in rows]

    def line(panel: Axes, name: str, label: str, style: str = "-", scale: float = 1.0) -> None:
        values = [np.nan if row[name] is None else scale * row[name] for row in rows]
        if not np.isnan(values).all():
            panel.plot(
                robots, values, color=color, linestyle=style, marker=marker, ms=4, label=label
            )

    panels[0].plot(
        [row["offered_rps"] for row in rows],
        [row["on_time_rps"] for row in rows],
        color=color,
        marker=marker,
        ms=4,
        label=engine,
    )
    line(panels[1], "miss_rate", engine, scale=100)
    line(panels[2], "latency_p50_s", "", scale=1e3)
    line(panels[2], "latency_p99_s", "", "--", 1e3)
    line(panels[2], "latency_max_s", "", ":", 1e3)
    if engine != "null":  # which has no steps
        line(panels[3], "num_steps_p50", f"{engine}, median")
        line(panels[3], "num_steps_min", f"{engine}, fewest", ":")
