"""What `benchmarks.soak` finds: its rows, its table and its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

COLUMNS = ("sent", "answered", "late", "refused", "cancelled", "disconnected", "fault")
RECONNECTED_WITHIN_S = 2.0
"""After an outage a client is back: it tries once a second, at least."""
_SHOWN = ("answered", "late", "refused", "disconnected")
_COLORS = {
    "answered": "tab:blue",
    "late": "tab:orange",
    "refused": "tab:purple",
    "disconnected": "tab:red",
}
_EXAMPLES = 5

Spans = Sequence[tuple[float, float]]


def excused(sent_s: float, settled_s: float, outages_s: Spans) -> bool:
    """Whether a request was open while the server was not there, or clients not back yet."""
    return any(
        sent_s <= end_s + RECONNECTED_WITHIN_S and settled_s >= begin_s
        for begin_s, end_s in outages_s
    )


def rows_of(
    reports: Sequence[dict[str, Any]], outages_s: Spans, hostile: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row a robot, and one for all hostile clients together.

    Args:
        reports: of `benchmarks.soak_robot`, with the network of each.
        outages_s: (from, to) of each time that the server was not there.
        hostile: reports of `benchmarks.hostile_sender`.
    """
    rows = []
    for number, report in enumerate(reports):
        counts = Counter(report["counts"])
        lost = counts["lost"]
        if report["network"] == "sound":
            lost += sum(
                kind == "disconnected" and not excused(sent_s, settled_s, outages_s)
                for sent_s, settled_s, kind in report["conclusions"]
            )
            # what nobody waited for any more may be answered all the same; anything else twice
            unawaited = counts["cancelled"] + counts["disconnected"] + counts["lost"]
            lost += max(0, report["dropped_replies"] - unawaited)
        longest_s = max((b - a for a, b, _ in report["conclusions"]), default=0.0)
        rows.append(
            {
                "who": f"robot {number + 1}, {report['network']} network",
                **{name: counts[name] for name in COLUMNS},
                "lost": lost,
                "unsafe": len(report["unsafe"]),
                "unsafe_examples": report["unsafe"][:_EXAMPLES],
                "unreadable_replies": counts["unreadable"],
                "longest_wait_s": longest_s,
                "refusals": report["reasons"],
                "rejected_chunks": report["rejected"],
                "ticks_moved": report["ticks"]["moved"],
                "ticks_safe": report["ticks"]["safe"],
            }
        )
    sums: Counter[str] = Counter()
    for one in hostile:
        sums.update({name: count for name, count in one.items() if isinstance(count, int)})
    rows.append(
        {
            "who": "hostile clients",
            "sent": sums["messages"],
            "connections": sums["connections"],
            "answered": sums["replies"],
            "lost": sums["unanswered"] + sums["surplus"],
            "unsafe": 0,
        }
    )
    return rows


def failed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Robots on a sound network that were not really served, although nothing was lost."""
    return [
        row["who"]
        for row in rows
        if "sound" in row["who"] and (row["fault"] or not row["answered"] or not row["ticks_moved"])
    ]


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """For people."""
    table = Table(title="what became of requests")
    table.add_column("who")
    for name in (*COLUMNS, "lost", "unsafe"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["who"], *(str(row.get(name, "")) for name in (*COLUMNS, "lost", "unsafe"))
        )
    return table


def plot(reports: Sequence[dict[str, Any]], outages_s: Spans, began_s: float, path: Path) -> None:
    """Requests a second by conclusion, a panel a robot; shaded where the server was not there."""
    figure = Figure(figsize=(13, 2.2 * len(reports) + 0.5), layout="constrained")
    panels = figure.subplots(len(reports), 1, sharex=True, squeeze=False)[:, 0]
    for number, (panel, report) in enumerate(zip(panels, reports, strict=True)):
        ends_s = max((settled_s for _, settled_s, _ in report["conclusions"]), default=began_s + 1)
        edges_s = np.arange(0.0, ends_s - began_s + 1.0)
        for kind in _SHOWN:
            at_s = [s - began_s for _, s, k in report["conclusions"] if k == kind]
            counts, _ = np.histogram(at_s, edges_s)
            panel.step(edges_s[:-1], counts, where="post", color=_COLORS[kind], label=kind, lw=0.8)
        for begin_s, end_s in outages_s:
            panel.axvspan(
                begin_s - began_s,
                min(end_s - began_s, edges_s[-1]),
                color="tab:gray",
                alpha=0.2,
                linewidth=0,
            )
        panel.set(ylabel="requests / s", title=f"robot {number + 1}, {report['network']} network")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7, ncols=len(_SHOWN))
    panels[-1].set(xlabel="time, s (shaded: no server)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
