"""What `python -m benchmarks speed` found: a table, and a plot of the distance to the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

_FLOOR = 1.0


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people: milliseconds, and how many times as long as the floor or as a baseline."""
    threads = rows[0]["threads"]
    table = Table(title=f"speed, {threads} thread{'s' * (threads > 1)}: milliseconds")
    for name in ("network", "backend"):
        table.add_column(name, no_wrap=True)
    numbers = ("robots", "rows", "step", "× floor", "steps", "request", "lesson", "diffusers")
    for name in (*numbers, "× faster"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["network"],
            row["backend"],
            str(row["robots"]),
            str(row["robots"] * (1 + row["guided"])),
            f"{row['step_p50_s'] * 1e3:.3f}",
            f"{row['step_p50_s'] / row['floor_step_s']:.1f}",
            str(row["num_steps"]),
            f"{row['request_p50_s'] * 1e3:.1f}",
            f"{row['lesson_loop_p50_s'] * 1e3:.1f}",
            f"{row['diffusers_p50_s'] * 1e3:.1f}",
            f"{row['lesson_loop_p50_s'] / row['request_p50_s']:.1f}{'*' * row['cut_short']}",
        )
    if any(row["cut_short"] for row in rows):
        table.caption = "* cut short, fewer samples; × faster: than the lesson's loop"
    return table


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A step of a request over the floor of float32: ours with each backend, and the two loops."""
    fewest = min(row["num_steps"] for row in rows)
    shown = [row for row in rows if row["num_steps"] == fewest]
    onnx, int8, torch = (
        [row for row in shown if row["backend"] == name] for name in ("onnx", "onnx-int8", "torch")
    )
    contenders = {
        "onnx: network call": [row["step_p50_s"] for row in onnx],
        "onnx: request": [row["request_p50_s"] / fewest for row in onnx],
        "onnx-int8: request": [row["request_p50_s"] / fewest for row in int8],
        "torch: request": [row["request_p50_s"] / fewest for row in torch],
        "diffusers": [row["diffusers_p50_s"] / fewest for row in onnx],
        "the lesson's loop": [row["lesson_loop_p50_s"] / fewest for row in onnx],
    }
    floors = np.array([row["floor_step_s"] for row in onnx])
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(onnx))
    for (name, seconds), marker in zip(contenders.items(), "os*D^v", strict=True):
        axes.plot(places, np.array(seconds) / floors, marker, label=name)
    axes.axhline(_FLOOR, color="black", lw=1)
    axes.set(
        yscale="log", ylabel="time of a step / floor of float32", title="distance to the floor"
    )
    labels = [
        f"{row['network']}\n{row['robots']} robot{'s' * (row['robots'] > 1)}"
        f"{', guided' * row['guided']}\nfloor {row['floor_step_s'] * 1e3:.2g} ms"
        for row in onnx
    ]
    axes.set_xticks(places, labels, fontsize=6, rotation=60, ha="right")
    axes.legend()
    figure.savefig(path, dpi=120)
