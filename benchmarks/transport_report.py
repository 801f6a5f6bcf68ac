"""What `benchmarks transport` finds: its rows, its table, its targets and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.statistics import p99, quantile

STATE_EXTRA_S = 60e-6
"""So much longer than over bare sockets a state's median round trip may take."""
IMAGES_SHARE = 1 / 3
"""So much of openpi's median those with images may take."""
P99_RATIO = 1.25
"""So many times that over bare sockets any 99th percentile may be."""
_COLORS = {"policy_server": "tab:blue", "openpi": "tab:red", "bare_pyzmq": "tab:gray"}

Row = Mapping[str, Any]


def row_of(
    transport: str,
    observation: str,
    round_trip_s: Sequence[float],
    *,
    request_bytes: int,
    reply_bytes: int,
    client_cpu_s: float,
    server_cpu_s: float | None,
) -> dict[str, Any]:
    """One of the result.

    Args:
        transport: which.
        observation: which.
        round_trip_s: of each request, at least one.
        request_bytes: what a request weighs.
        reply_bytes: what a reply weighs.
        client_cpu_s: of all requests together.
        server_cpu_s: the same; None if it is not known.
    """
    requests = len(round_trip_s)
    return {
        "transport": transport,
        "observation": observation,
        "requests": requests,
        "request_bytes": request_bytes,
        "reply_bytes": reply_bytes,
        "round_trip_p50_s": quantile(round_trip_s, 0.5),
        "round_trip_p90_s": quantile(round_trip_s, 0.9),
        "round_trip_p99_s": p99(round_trip_s),
        "client_cpu_s": client_cpu_s / requests,
        "server_cpu_s": None if server_cpu_s is None else server_cpu_s / requests,
    }


def targets_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What of policy_server's was to be at most how much, beside who was measured in the same run.

    Returns:
        A row a target: observation, what (a column of the rows), beside (whom), got_s, at_most_s,
        met. Those are left out whose other side was not measured, or whose p99 is not known.
    """
    by_case = {(row["transport"], row["observation"]): row for row in rows}
    targets: list[dict[str, Any]] = []

    def add(observation: str, what: str, beside: str, ratio: float, extra_s: float = 0.0) -> None:
        ours, other = (by_case.get((one, observation)) for one in ("policy_server", beside))
        if ours is None or other is None or ours[what] is None or other[what] is None:
            return
        at_most_s = ratio * other[what] + extra_s
        targets.append(
            {
                "observation": observation,
                "what": what,
                "beside": beside,
                "got_s": ours[what],
                "at_most_s": at_most_s,
                "met": ours[what] <= at_most_s,
            }
        )

    add("state", "round_trip_p50_s", "bare_pyzmq", 1.0, STATE_EXTRA_S)
    add("images", "round_trip_p50_s", "openpi", IMAGES_SHARE)
    for observation in ("state", "images"):
        add(observation, "round_trip_p99_s", "bare_pyzmq", P99_RATIO)
    return targets


def told(target: Mapping[str, Any]) -> str:
    """A target in words."""
    rule = {
        ("round_trip_p50_s", "bare_pyzmq"): f"bare pyzmq + {STATE_EXTRA_S * 1e6:.0f} µs",
        ("round_trip_p50_s", "openpi"): "a third of openpi",
        ("round_trip_p99_s", "bare_pyzmq"): f"{P99_RATIO:g} × bare pyzmq",
    }[target["what"], target["beside"]]
    what = target["what"].removeprefix("round_trip_").removesuffix("_s")
    off_s = target["at_most_s"] - target["got_s"]
    return (
        f"{target['observation']}, {what}: {_ms(target['got_s'])} ms, at most "
        f"{_ms(target['at_most_s'])} ({rule}): "
        + (f"met, {_ms(off_s)} to spare" if target["met"] else f"missed by {_ms(-off_s)}")
    )


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.3f}"


def table_of(rows: Sequence[Row]) -> Table:
    """For people, in milliseconds."""
    table = Table(title="round trips without a network, and processor time of each (ms)")
    for name in ("observation", "transport"):
        table.add_column(name, no_wrap=True)
    numbers = ("requests", "bytes there", "back", "p50", "p90", "p99", "client", "server")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        seconds = [f"round_trip_{q}_s" for q in ("p50", "p90", "p99")]
        table.add_row(
            row["observation"],
            row["transport"],
            *(str(row[name]) for name in ("requests", "request_bytes", "reply_bytes")),
            *(_ms(row[name]) for name in (*seconds, "client_cpu_s", "server_cpu_s")),
        )
    return table


def plot(samples: Mapping[str, npt.NDArray[np.float32]], rows: Sequence[Row], path: Path) -> None:
    """Which share of round trips took longer than what: a panel an observation.

    Args:
        samples: seconds, by OBSERVATION.TRANSPORT.
        rows: of the result.
        path: of the picture.
    """
    observations = list(dict.fromkeys(row["observation"] for row in rows))
    figure = Figure(figsize=(6 * len(observations), 4.5), layout="constrained")
    panels = figure.subplots(1, len(observations), squeeze=False)[0]
    for panel, observation in zip(panels, observations, strict=True):
        for row in rows:
            if row["observation"] == observation:
                transport = row["transport"]
                ordered = np.sort(samples[f"{observation}.{transport}"])
                longer = 1 - np.arange(len(ordered)) / len(ordered)
                label = f"{transport}: p50 {_ms(row['round_trip_p50_s'])} ms"
                panel.plot(1e3 * ordered, longer, color=_COLORS[transport], label=label)
        for share in (0.5, 0.01):
            panel.axhline(share, color="black", linestyle=":", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel="round trip, ms")
        panel.set(ylabel="share that took longer", title=f"observation: {observation}")
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
