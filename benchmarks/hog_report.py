"""What `benchmarks.hog` finds: its rows, its table, its verdict and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.fleet import FleetRecord
from benchmarks.generator import OUTCOMES
from benchmarks.statistics import MIN_SAMPLES_FOR_P99, MIN_SAMPLES_FOR_P999, wilson_interval

Spans = Sequence[tuple[float, float]]

ALLOWED = 1e-3
"""By so much elastic steps may miss more than a server without a network."""
_COLORS = {"elastic": "tab:blue", "null": "tab:gray", "fixed": "tab:red"}
_SHOWN_VISITS = 3
_AROUND_S = (-2.0, 6.0)
_FOLDED_BIN_S = 0.25


def rows_of(
    record: FleetRecord, beside_hog: npt.NDArray[np.bool_], policies: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the result: each policy beside the hog, without it, and in all.

    Args:
        record: whose robots are the policies, in their order; one of these is "null".
        beside_hog: bool [requests].
        policies: names.
    """
    hogs = {"all": np.ones(len(beside_hog), bool), "on": beside_hog, "off": ~beside_hog}
    rows = []
    for hog, there in hogs.items():
        chosen = {policy: there & (record.robot == i) for i, policy in enumerate(policies)}
        if all(mask.any() for mask in chosen.values()):
            floor = _missed(record, chosen["null"])
            rows += [_row(policy, hog, record, mask, floor) for policy, mask in chosen.items()]
    return rows


def _missed(record: FleetRecord, mask: npt.NDArray[np.bool_]) -> tuple[int, int]:
    return int(np.count_nonzero(record.outcome[mask] != "on_time")), int(np.count_nonzero(mask))


def _row(
    policy: str,
    hog: str,
    record: FleetRecord,
    mask: npt.NDArray[np.bool_],
    floor: tuple[int, int],
) -> dict[str, Any]:
    missed, due = _missed(record, mask)
    rate = {name: np.count_nonzero(record.outcome[mask] == name) / due for name in OUTCOMES}
    # whoever has no answer waits longer than all who have one
    latency_s = np.sort(np.nan_to_num(record.latency_s[mask], nan=np.inf))
    steps = record.num_steps[mask & (record.num_steps > 0)]

    def latency(q: float) -> float | None:
        at = float(latency_s[min(int(q * due), due - 1)])
        return at if math.isfinite(at) else None

    answered_s = latency_s[np.isfinite(latency_s)]
    return {
        "policy": policy,
        "hog": hog,
        "due_requests": due,
        "miss_rate": missed / due,
        "miss_interval": wilson_interval(missed, due),
        "exceeds_null": missed / due - floor[0] / floor[1],
        "exceeds_null_interval": difference_interval((missed, due), floor),
        "late_rate": rate["late"],
        "refused_rate": rate["refused"],
        "lost_rate": rate["lost"],
        "num_steps_p50": float(np.median(steps)) if len(steps) else None,
        "num_steps_p5": float(np.quantile(steps, 0.05)) if len(steps) else None,
        "num_steps_mean": float(np.mean(steps)) if len(steps) else None,
        "num_steps_min": int(steps.min()) if len(steps) else None,
        "latency_p50_s": latency(0.5),
        "latency_p99_s": latency(0.99) if due >= MIN_SAMPLES_FOR_P99 else None,
        "latency_p999_s": latency(0.999) if due >= MIN_SAMPLES_FOR_P999 else None,
        "latency_max_s": float(answered_s[-1]) if len(answered_s) else None,
    }


def difference_interval(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """95% interval of a difference of proportions (Newcombe 1998, Stat. Med. 17:873, method 10).

    Args:
        one: (successes, trials).
        other: what is subtracted.
    """
    (low, high), (low_other, high_other) = wilson_interval(*one), wilson_interval(*other)
    share, share_other = one[0] / one[1], other[0] / other[1]
    below = math.hypot(share - low, high_other - share_other)
    above = math.hypot(high - share, share_other - low_other)
    return share - share_other - below, share - share_other + above


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people, in milliseconds and percent."""

    def ms(seconds: float | None) -> str:
        return "–" if seconds is None else f"{seconds * 1e3:.1f}"

    table = Table(title="misses beside a neighbour that takes all cores (latencies in ms)")
    table.add_column("policy, hog", no_wrap=True)
    names = ("requests", "missed", "– null", "late/refused/lost", "steps")
    for name in (*names, "p50", "p99", "p99.9", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        steps, fewest = row["num_steps_p50"], row["num_steps_min"]
        table.add_row(
            f"{row['policy']}, {row['hog']}",
            str(row["due_requests"]),
            f"{row['miss_rate']:.2%}",
            f"{100 * row['exceeds_null']:+.2f}",
            "/".join(f"{100 * row[f'{name}_rate']:.2f}" for name in OUTCOMES[1:]),
            "–" if steps is None or row["policy"] == "null" else f"{steps:g} ≥{fewest}",
            *(ms(row[f"latency_{name}_s"]) for name in ("p50", "p99", "p999", "max")),
        )
    return table


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Whether elastic steps miss hardly more than no network at all, in words."""
    row = next(r for r in rows if (r["policy"], r["hog"]) == ("elastic", "all"))
    low, high = row["exceeds_null_interval"]
    kept = "within" if row["exceeds_null"] <= ALLOWED else "beyond"
    return (
        f"elastic misses {100 * row['exceeds_null']:+.2f} points more than null "
        f"(95%: {100 * low:+.2f} to {100 * high:+.2f}): {kept} the {100 * ALLOWED:g} allowed"
    )


def plot(
    record: FleetRecord,
    visits_s: Spans,
    rows: Sequence[dict[str, Any]],
    budget_s: float,
    path: Path,
) -> None:
    """Steps and latency while the hog comes and goes, on average around its visits, and misses.

    Args:
        record: whose robots are the policies of `rows`, in their order.
        visits_s: (from, to) of each visit of the hog.
        rows: of the result.
        budget_s: a line in the plot of latencies.
        path: of the picture.
    """
    figure = Figure(figsize=(14, 7), layout="constrained")
    (steps, around), (latency, misses) = figure.subplots(
        2, 2, gridspec_kw={"width_ratios": (3, 1.6)}
    )
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    until_s = _shown_until(record, visits_s)
    for panel in (steps, latency):
        shade(panel, [(a, b) for a, b in visits_s if a < until_s], until_s)
    for number, policy in enumerate(policies):
        mine = (record.robot == number) & (record.due_s < until_s)
        answered = mine & (record.num_steps > 0)
        style = {"color": _COLORS[policy], "s": 4, "label": policy}
        if policy != "null":  # which has no steps
            steps.scatter(record.due_s[answered], record.num_steps[answered], **style)
        latency.scatter(record.due_s[answered], 1e3 * record.latency_s[answered], **style)
    latency.axhline(1e3 * budget_s, color="black", linestyle="--", linewidth=0.8)
    steps.set(ylabel="denoising steps", title="steps (shaded: the hog is there)", ylim=(0, None))
    latency.set(
        yscale="log",
        xlabel="time, s",
        ylabel="latency from when due, ms",
        title=f"latency (dashed: budget {1e3 * budget_s:g} ms)",
    )
    for panel in (steps, latency):
        panel.legend(fontsize=7, loc="lower left", markerscale=3)
        panel.set_xlim(0, until_s)
    _draw_around(around, record, visits_s, policies.index("elastic"))
    _draw_misses(misses, rows, policies)
    for panel in (steps, latency, around, misses):
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def shade(panel: Axes, visits_s: Spans, until_s: float) -> None:
    """Mark when the hog is there."""
    for begin_s, end_s in visits_s:
        panel.axvspan(begin_s, min(end_s, until_s), color="tab:orange", alpha=0.12, linewidth=0)


def _shown_until(record: FleetRecord, visits_s: Spans) -> float:
    """A few visits and what comes after the last of them; all requests would be a blot."""
    end_s = float(record.due_s[-1])
    if len(visits_s) <= _SHOWN_VISITS:
        return end_s
    return min(end_s, visits_s[_SHOWN_VISITS][0])


def _draw_around(panel: Axes, record: FleetRecord, visits_s: Spans, robot: int) -> None:
    """Elastic steps by the time since the hog came, or went, all visits together."""
    mine = (record.robot == robot) & (record.num_steps > 0)
    due_s, steps = record.due_s[mine], record.num_steps[mine]
    edges_s = np.arange(_AROUND_S[0], _AROUND_S[1] + _FOLDED_BIN_S, _FOLDED_BIN_S)
    for name, instants, color in (
        ("it came", [a for a, _ in visits_s], "tab:orange"),
        ("it went", [b for _, b in visits_s if math.isfinite(b)], "tab:green"),
    ):
        if not instants:
            continue
        since_s = (due_s[:, None] - np.array(instants)[None, :]).ravel()
        every = np.repeat(steps, len(instants))
        bins = [every[(since_s >= a) & (since_s < a + _FOLDED_BIN_S)] for a in edges_s[:-1]]
        middles_s = edges_s[:-1] + _FOLDED_BIN_S / 2
        known = [i for i, one in enumerate(bins) if len(one)]
        panel.plot(middles_s[known], [np.median(bins[i]) for i in known], color=color, label=name)
        panel.fill_between(
            middles_s[known],
            [np.quantile(bins[i], 0.25) for i in known],
            [np.quantile(bins[i], 0.75) for i in known],
            color=color,
            alpha=0.15,
        )
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(
        xlabel="time since the hog came or went, s",
        ylabel="denoising steps",
        title="elastic, all visits (median, middle half)",
        ylim=(0, None),
    )
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7)


def _draw_misses(panel: Axes, rows: Sequence[dict[str, Any]], policies: Sequence[str]) -> None:
    """Miss rates with their intervals."""
    hogs = list(dict.fromkeys(row["hog"] for row in rows))
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        mine = [row for row in rows if row["policy"] == policy]
        at = [hogs.index(row["hog"]) + (number - (len(policies) - 1) / 2) * width for row in mine]
        rates = [100 * row["miss_rate"] for row in mine]
        panel.bar(at, rates, 0.9 * width, color=_COLORS[policy], label=policy)
        for x, row in zip(at, mine, strict=True):
            panel.plot([x, x], [100 * end for end in row["miss_interval"]], color="black", lw=1)
    panel.set_yscale("symlog", linthresh=0.1)
    panel.set_ylim(0, 400)
    panel.set_xticks(range(len(hogs)), [f"hog: {hog}" for hog in hogs])
    panel.set(ylabel="missed requests, %", title="late, refused or lost (95%)")
    panel.legend(fontsize=7, loc="upper center", ncols=len(policies))
