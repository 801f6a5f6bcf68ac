"""What `benchmarks.tune` tells people: its tables, its plot and what it recommends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.statistics import wilson_interval
from benchmarks.step_cost import largest_within

Rows = Sequence[dict[str, Any]]


def _stage(rows: Rows, name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["stage"] == name]


def _judged_by(rows: Rows) -> str:
    return "score" if "score" in rows[0] else "success"


def _merit(row: dict[str, Any]) -> float:
    """What the row is judged by, in percent."""
    merit: float = 100 * row["score" if "score" in row else "success_rate"]
    return merit


def _interval(row: dict[str, Any]) -> tuple[float, float]:
    """The 95% interval of `_merit`."""
    if "score" in row:
        low, high = row["score_interval"]
    else:
        low, high = wilson_interval(round(row["success_rate"] * row["episodes"]), row["episodes"])
    return 100 * low, 100 * high


def recommend(rows: Rows, miss_rate: float) -> str:
    """What all this means on this machine, in plain English.

    A count that is clearly too slow has no quantile; its median, which is less, stands in.

    Args:
        rows: of the stages `steps`, `chosen` and `latency`, the last from min_steps up.
        miss_rate: largest share of answers that may be late.
    """
    (chosen,) = _stage(rows, "chosen")
    fewest, most = chosen["min_steps"], chosen["max_useful_steps"]
    times = {row["num_steps"]: row for row in _stage(rows, "latency")}
    latencies_s = {
        count: row["latency_p50_s"]
        if row["latency_quantile_s"] is None
        else row["latency_quantile_s"]
        for count, row in times.items()
    }
    tried_rows = _stage(rows, "steps")
    tried = {row["num_steps"] for row in tried_rows}
    rising = ""
    if most == max(tried) > min(tried):  # the next smaller one is worse by more than chance
        rising = (
            f" {_judged_by(tried_rows).capitalize()} was still rising at {most}, the largest count "
            "tried; run again with larger --num-steps."
        )
    budget_s = times[fewest]["budget_s"]
    budget = f"{budget_s * 1e3:g} ms with a miss rate of at most {miss_rate:g} on this machine"
    fits = largest_within(latencies_s, budget_s)
    if fits is None:
        return (
            f"Not even min_steps = {fewest} fits {budget_s * 1e3:g} ms: it takes "
            f"{latencies_s[fewest] * 1e3:.1f} ms or more. This machine cannot serve this policy in "
            "time: allow more, or use a faster machine or a smaller network. What is written says "
            f"how good how many steps are, not how fast, so it is written all the same.{rising}"
        )
    if fits < most:
        return (
            f"Only {fits} of the {most} useful steps fit {budget}. The planner gives what fits, "
            f"and refuses a request that does not leave time for {fewest}.{rising}"
        )
    more = (
        f"At least {fits} would fit (more were not measured)."
        if fits == max(latencies_s)
        else f"Up to {fits} would fit."
    )
    return (
        f"max_useful_steps = {most} fits {budget}: the {1 - miss_rate:.10g} quantile of latency, "
        f"of {times[most]['samples']} requests, is {latencies_s[most] * 1e3:.1f} ms. {more}{rising}"
    )


def tables_of(rows: Rows) -> list[Table]:
    """One a stage: w, steps by sampler and grid, latency; with marks at what was chosen."""
    (chosen,) = _stage(rows, "chosen")
    tried = _stage(rows, "interval")
    return [
        _guidance_table(_stage(rows, "guidance"), chosen, "guidance_scale", "w"),
        *([_guidance_table(tried, chosen, "guidance_interval", "noise levels")] if tried else []),
        _steps_table(_stage(rows, "steps"), chosen),
        _latency_table(_stage(rows, "latency"), chosen),
    ]


def _guidance_table(rows: Rows, chosen: dict[str, Any], field: str, heading: str) -> Table:
    steps = rows[0]["num_steps"]
    by = field.replace("_", " ")
    title = f"{_judged_by(rows)} by {by}, {steps} steps, the same episodes for all"
    table = Table(title=title)
    lists = list(dict.fromkeys(row["phrasings"] for row in rows))
    for name in (heading, *(f"{one} phrasings" for one in lists), "episodes each", ""):
        table.add_column(name, justify="right")
    tried = [row[field] for row in rows]
    for value in [one for i, one in enumerate(tried) if one not in tried[:i]]:
        mine = {row["phrasings"]: row for row in rows if row[field] == value}
        shown = f"{value:g}" if field == "guidance_scale" else f"{value[0]:g} .. {value[1]:g}"
        table.add_row(
            shown,
            *(f"{_merit(mine[one]):.1f}%" for one in lists),
            str(mine[lists[0]]["episodes"]),
            "chosen" if value == chosen[field] else "",
        )
    return table


def _steps_table(rows: Rows, chosen: dict[str, Any]) -> Table:
    how = f"w = {chosen['guidance_scale']:g}, {rows[0]['episodes']} episodes, the same for all"
    table = Table(title=f"{_judged_by(rows)} in % by denoising steps, {how}")
    for name in ("sampler", "grid"):
        table.add_column(name, no_wrap=True)
    counts = sorted({row["num_steps"] for row in rows})
    for count in counts:
        table.add_column(str(count), justify="right")
    table.add_column("", no_wrap=True)
    for sampler, grid in dict.fromkeys((row["sampler"], row["grid"]) for row in rows):
        rates = {
            row["num_steps"]: _merit(row)
            for row in rows
            if (row["sampler"], row["grid"]) == (sampler, grid)
        }
        mine = (sampler, grid) == (chosen["sampler"], chosen["grid"])
        table.add_row(
            sampler,
            grid,
            *(f"{rates[count]:.1f}" for count in counts),
            "chosen" if mine else "",
        )
    return table


def _latency_table(rows: Rows, chosen: dict[str, Any]) -> Table:
    how = f"{rows[0]['backend']}, {rows[0]['sampler']}, {rows[0]['grid']}"
    table = Table(title=f"latency on this machine, back to back ({how})")
    for name in ("steps", "requests", "p50 ms", "quantile ms", "slowest ms", ""):
        table.add_column(name, justify="right")

    def ms(seconds: float | None) -> str:
        return "–" if seconds is None else f"{seconds * 1e3:.1f}"

    for row in rows:
        marks = [
            name for name in ("min_steps", "max_useful_steps") if chosen[name] == row["num_steps"]
        ]
        table.add_row(
            str(row["num_steps"]),
            str(row["samples"]),
            ms(row["latency_p50_s"]),
            ms(row["latency_quantile_s"]),
            ms(row["latency_max_s"]),
            ", ".join(marks),
        )
    floor = rows[0]
    table.add_row("ping", "", ms(floor["ping_p50_s"]), ms(floor["ping_quantile_s"]), "", "")
    return table


def plot(rows: Rows, budget_s: float, miss_rate: float, path: Path) -> None:
    """Score or success by w, by steps for every sampler and grid; latency against the budget."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    (chosen,) = _stage(rows, "chosen")
    guidance = _stage(rows, "guidance")
    for phrasings in dict.fromkeys(row["phrasings"] for row in guidance):
        mine = [row for row in guidance if row["phrasings"] == phrasings]
        _draw_success(panels[0], mine, "guidance_scale", f"{phrasings} phrasings", "o-")
        _draw_interval(panels[0], mine, "guidance_scale")
    panels[0].axvline(chosen["guidance_scale"], color="black", linestyle=":", label="chosen")
    panels[0].set(xlabel="w", title=f"guidance scale, {guidance[0]['num_steps']} steps")
    steps = _stage(rows, "steps")
    for sampler, grid in dict.fromkeys((row["sampler"], row["grid"]) for row in steps):
        mine = [row for row in steps if (row["sampler"], row["grid"]) == (sampler, grid)]
        is_chosen = (sampler, grid) == (chosen["sampler"], chosen["grid"])
        label = f"{sampler}, {grid}" + (" (chosen)" if is_chosen else "")
        _draw_success(panels[1], mine, "num_steps", label, "o-" if is_chosen else ".--")
        if is_chosen:  # six intervals on top of each other say nothing
            _draw_interval(panels[1], mine, "num_steps")
    for name, style in (("min_steps", ":"), ("max_useful_steps", "--")):
        panels[1].axvline(chosen[name], color="black", linestyle=style, label=name)
    panels[1].set(xscale="log", xlabel="denoising steps", title="sampler and grid")
    times = _stage(rows, "latency")
    for name, label in (("p50", "median"), ("quantile", f"{1 - miss_rate:.10g} quantile")):
        values = [row[f"latency_{name}_s"] for row in times]
        panels[2].plot(
            [row["num_steps"] for row in times],
            [np.nan if value is None else 1e3 * value for value in values],
            "o-",
            label=label,
        )
    panels[2].axhline(1e3 * budget_s, color="black", linestyle="--", label="budget")
    panels[2].axhline(1e3 * times[0]["ping_p50_s"], color="grey", linestyle=":", label="ping")
    panels[2].set(
        xscale="log", yscale="log", xlabel="denoising steps", ylabel="ms", title="latency here"
    )
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def _draw_success(panel: Axes, rows: Rows, over: str, label: str, style: str) -> None:
    """A line of score or success over one field."""
    panel.plot([row[over] for row in rows], [_merit(row) for row in rows], style, label=label)
    panel.set(ylabel="mean score, %" if _judged_by(rows) == "score" else "episodes, %")


def _draw_interval(panel: Axes, rows: Rows, over: str) -> None:
    """The 95% interval of the line drawn last."""
    low, high = zip(*(_interval(row) for row in rows), strict=True)
    color = panel.get_lines()[-1].get_color()
    panel.fill_between([row[over] for row in rows], low, high, color=color, alpha=0.12)
