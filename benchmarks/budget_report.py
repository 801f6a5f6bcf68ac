"""What `benchmarks.budget` shows to people: its table and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.latency import Samples
from benchmarks.scores import quality_of
from benchmarks.step_cost import latency_quantile

_MARKERS = "osD^vP*X"  # one a rate


def last_attempts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of each rate, backend and w that says how it ended."""
    return list({(r["rate_hz"], r["backend"], r["guidance_scale"]): r for r in rows}.values())


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people, in milliseconds and percent."""

    def shown(number: float | None, scale: float, pattern: str) -> str:
        return "–" if number is None else pattern.format(number * scale)

    table = Table(
        title="denoising steps that fit a robot's period, and what they buy (times in ms)"
    )
    names = ("Hz", "backend", "w", "a step", "planned", "asked", "missed", "limit")
    judged = "score" if any("score" in row for row in rows) else "success"
    for name in (*names, "p50", "max", "ping", judged, "sw2"):
        table.add_column(
            name, justify="left" if name in {"backend", "limit"} else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(
            f"{row['rate_hz']:g}",
            row["backend"],
            f"{row['guidance_scale']:g}",
            f"{row['step_s'] * 1e3:.3f}",
            shown(row["predicted_steps"], 1, "{:d}"),
            shown(row["num_steps"], 1, "{:d}"),
            _missed(row),
            "too many" if row["fits"] is False else row["limited_by"],
            shown(row["latency_p50_s"], 1e3, "{:.1f}"),
            shown(row["latency_max_s"], 1e3, "{:.1f}"),
            shown(row["ping_p50_s"], 1e3, "{:.2f}"),
            shown(None if row["success_rate"] is None else quality_of(row)[1], 100, "{:.1f}%"),
            shown(row["sw2"], 1, "{:.4f}"),
        )
    return table


def _missed(row: dict[str, Any]) -> str:
    """Of how many requests, since of few requests the share is a guess."""
    if row["miss_rate"] is None:
        return "–"
    missed = row["late"] + row["refused"] + row["lost"]
    return f"{missed}/{row['due_requests']}"


def plot(rows: Sequence[dict[str, Any]], samples: Samples, miss_rate: float, path: Path) -> None:
    """Steps that fit by rate; what they were predicted from; the quality they buy."""
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    panels = figure.subplots(1, 4)
    ends = last_attempts(rows)
    rates_hz = sorted({row["rate_hz"] for row in rows})
    groups = list(dict.fromkeys((row["backend"], row["guidance_scale"]) for row in rows))
    colors = {group: f"C{number}" for number, group in enumerate(groups)}
    for (backend, w), color in colors.items():
        mine = [row for row in ends if (row["backend"], row["guidance_scale"]) == (backend, w)]
        width = 0.8 / len(groups)
        offset = (groups.index((backend, w)) - (len(groups) - 1) / 2) * width
        places = [rates_hz.index(row["rate_hz"]) + offset for row in mine]
        _draw_steps(panels[0], mine, places, width, color=color, label=f"{backend}, w = {w:g}")
        cost = {
            of["num_steps"]: latency_quantile(seconds, miss_rate)
            for of, seconds in samples
            if (of["backend"], of["guidance_scale"], of["rate_hz"]) == (backend, w, None)
        }
        _draw_cost(panels[1], cost, mine[0], color)
        for row in mine:
            if row["fits"]:
                marker = _MARKERS[rates_hz.index(row["rate_hz"]) % 8]
                _draw_quality(panels[2:], row, color, marker)
    panels[0].set(yscale="symlog", ylabel="denoising steps", title="fit the period")
    panels[0].set_ylim(top=20 * panels[0].get_ylim()[1])  # room for the legend
    panels[0].plot([], [], ":", color="black", label="predicted")
    due = {row["rate_hz"]: row["due_requests"] for row in rows if row["due_requests"]}
    names = [f"{rate:g} Hz\n{due.get(rate, 'no')} requests" for rate in rates_hz]
    panels[0].set_xticks(range(len(rates_hz)), names)
    panels[0].set_xlim(-0.5, len(rates_hz) - 0.5)  # where nothing fits there is no bar
    panels[0].legend(fontsize=7)
    for number, rate_hz in enumerate(rates_hz):
        panels[1].axhline(1e3 / rate_hz, color="black", linestyle="--", linewidth=0.8)
        panels[2].plot([], [], _MARKERS[number % 8], color="grey", label=f"{rate_hz:g} Hz")
    each = max(len(seconds) for of, seconds in samples if of["rate_hz"] is None)
    panels[1].set(
        yscale="log",
        ylabel=f"{1 - miss_rate:.10g} quantile of {each} requests, ms",
        title="latency, back to back (dashed: the periods)",
    )
    scored = any("score" in row for row in rows)
    panels[2].set(
        ylabel="mean score, %" if scored else "episodes, %",
        ylim=(-4, 104),
        title=f"{'score' if scored else 'task success'}, 95% interval",
    )
    panels[2].legend(fontsize=7, loc="lower left")
    panels[3].set(ylabel="sliced W2", title="the sampler's own error (exact score)")
    if any(row["sw2"] for row in ends):  # an axis without points cannot be logarithmic
        panels[3].set(yscale="log")
    most = max([of["num_steps"] for of, _ in samples])
    for panel in panels[1:]:
        panel.set(xscale="log", xlim=(0.8, 1.25 * most), xlabel="denoising steps")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _draw_steps(
    panel: Axes,
    rows: Sequence[dict[str, Any]],
    places: Sequence[float],
    width: float,
    *,
    color: str,
    label: str,
) -> None:
    """Bars: the steps that fit, where some were found; dotted, the prediction."""
    fit = [row["num_steps"] if row["fits"] else np.nan for row in rows]
    texts = [f"{row['num_steps']}" if row["fits"] else "" for row in rows]
    bars = panel.bar(places, fit, width, color=color, label=label)
    panel.bar_label(bars, texts, fontsize=7)
    for row, place in zip(rows, places, strict=True):
        if not row["fits"]:
            panel.text(place, 0.1, "none found", ha="center", va="bottom", rotation=90, fontsize=7)
    predicted = [row["predicted_steps"] or np.nan for row in rows]
    panel.bar(places, predicted, width, fill=False, edgecolor=color, linestyle=":")


def _draw_cost(
    panel: Axes, cost: Mapping[int, float | None], row: dict[str, Any], color: str
) -> None:
    """Latency by steps, in seconds, where it was measured at length, and the line."""
    values = [np.nan if seconds is None else 1e3 * seconds for seconds in cost.values()]
    panel.plot([*cost], values, "o", color=color)
    line = np.geomspace(min(cost), max(cost))
    panel.plot(line, 1e3 * (row["fixed_s"] + line * row["step_s"]), color=color, linewidth=1)


def _draw_quality(panels: Sequence[Axes], row: dict[str, Any], color: str, marker: str) -> None:
    """Score or success, with its interval, and the sampler's own error."""
    if row["success_rate"] is not None:
        _, rate, (low, high) = quality_of(row)
        around = [[100 * (rate - low)], [100 * (high - rate)]]
        panels[0].errorbar(row["num_steps"], 100 * rate, around, color=color, marker=marker)
    if row["sw2"] is not None:
        panels[1].plot(row["num_steps"], row["sw2"], marker, color=color)
