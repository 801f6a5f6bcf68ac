"""Which network? What each checkpoint costs on this machine, and what it achieves by steps.

Costs are measured here, in process: no socket and no scheduler, for those cost the same with every
network. What it achieves is what `python -m benchmarks tune` has written into its manifest; of a
checkpoint that is only compared, few ways of sampling are enough:

    python -m benchmarks tune runs/mlp --sampler ddim --grid trailing --guidance-scale 0
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.table import Table
from tqdm import tqdm

from benchmarks import results
from client.sims.simulation import robot_names
from models import checkpoint
from models.checkpoint import Manifest
from models.describe import NetworkCost, camera_costs
from models.instruction_encoder import INSTRUCTION_DIM
from policy_server.backends.choice import BackendName, make_backend
from policy_server.backends.protocol import Backend
from policy_server.calibration import zero_observation

_SHOWN_STEPS = (1, 2, 5, 10)
BACKENDS: tuple[BackendName, ...] = ("onnx", "torch")


@dataclass(frozen=True)
class NetworksConfig:
    """What `python -m benchmarks networks` takes.

    Attributes:
        checkpoints: folders of policies, also of several for one robot; the bundled ones of the
            simulated robots if none is given.
        num_steps: of the request that is timed.
        requests: that share a call in the second of the two columns.
        num_threads: of a network call.
        repeats: of every case, all cases taking turns.
        seed: of the order of the turns.
        out: folder of networks.json, networks.png and networks.md, the table for a page.
    """

    checkpoints: tuple[Path, ...] = ()
    num_steps: int = 10
    requests: int = 8
    num_threads: int = 1
    repeats: int = 50
    seed: int = 8
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field; fill in the bundled policies."""
        for name in ("num_steps", "requests", "num_threads", "repeats"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.checkpoints:
            folders = [checkpoint.PRETRAINED / robot for robot in robot_names()]
            found = tuple(f for f in folders if (f / checkpoint.MANIFEST).is_file())
            object.__setattr__(self, "checkpoints", found)


@dataclass(frozen=True)
class _Case:
    """What is timed: `rows` network rows of so many requests in one call."""

    folder: Path
    backend: Backend
    requests: int
    guidance_scale: float

    def call(self) -> float:
        """Seconds of one denoising step."""
        w = np.full(self.requests, self.guidance_scale, np.float32)
        network_rows = self.backend.buffers.lay_out(w, np.arange(self.requests))
        begun_s = time.perf_counter()
        self.backend.step(self.requests, network_rows)
        return time.perf_counter() - begun_s

    def request(self, observation: Mapping[str, Any], num_steps: int) -> tuple[float, float]:
        """Seconds from an observation to its encoding, and to actions, alone."""
        instruction = np.zeros(INSTRUCTION_DIM, np.float32)
        w = np.full(1, self.guidance_scale, np.float32)
        begun_s = time.perf_counter()
        self.backend.encode([0], [observation], [instruction])
        encoded_s = time.perf_counter()
        network_rows = self.backend.buffers.lay_out(w, np.arange(1))
        for _ in range(num_steps):
            self.backend.step(1, network_rows)
        self.backend.to_actions(self.backend.buffers.x_prev[:1])
        return encoded_s - begun_s, time.perf_counter() - begun_s


def measure(config: NetworksConfig) -> list[dict[str, Any]]:
    """One row for each checkpoint, backend, and w of 0 and 1."""
    manifests: dict[Path, Manifest] = {}
    cases: list[_Case] = []
    for folder in tqdm(config.checkpoints, desc="loading"):
        manifests[folder], policy = checkpoint.load(folder)
        for name in BACKENDS:
            backend = make_backend(
                name,
                policy,
                folder,
                num_threads=config.num_threads,
                max_requests=config.requests,
            )
            cases += [
                _Case(folder, backend, n, w) for n in (1, config.requests) for w in (0.0, 1.0)
            ]
    seconds: dict[_Case, list[float]] = {case: [] for case in cases}
    requests: dict[_Case, list[tuple[float, float]]] = {
        case: [] for case in cases if case.requests == 1
    }
    order = random.Random(config.seed)
    for _ in tqdm(range(config.repeats), desc="timing", unit="round"):
        for case in order.sample(cases, len(cases)):
            case.call()  # the caches are this network's then, as in a loop of steps
            seconds[case].append(case.call())
            if case in requests:
                observation = zero_observation(manifests[case.folder].spec)
                requests[case].append(case.request(observation, config.num_steps))
    return [
        _row(case, manifests[case.folder], config, seconds, requests[case]) for case in requests
    ]


def _row(
    case: _Case,
    manifest: Manifest,
    config: NetworksConfig,
    seconds: Mapping[_Case, Sequence[float]],
    request_s: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    together = _Case(case.folder, case.backend, config.requests, case.guidance_scale)
    defaults = manifest.defaults
    encode_p50_s, request_p50_s = (median(each) for each in zip(*request_s, strict=True))
    cameras = camera_costs(manifest.spec, manifest.vision).values()
    return {
        "checkpoint": case.folder,
        "model_id": manifest.model_id,
        "task": manifest.spec.task,
        "network": manifest.network.kind,
        **asdict(NetworkCost.of(manifest.network)),
        "camera_parameters": sum(parameters for parameters, _ in cameras),
        "camera_operations": manifest.spec.obs_steps * sum(count for _, count in cameras),
        "backend": case.backend.name,
        "threads": config.num_threads,
        "guided": case.guidance_scale != 0,
        "step_p50_s": median(seconds[case]),
        "requests_together": config.requests,
        "step_together_p50_s": median(seconds[together]) / config.requests,
        "num_steps": config.num_steps,
        "encode_p50_s": encode_p50_s,
        "request_p50_s": request_p50_s,
        "min_steps": manifest.min_steps,
        "max_useful_steps": manifest.max_useful_steps,
        "by_steps": [
            row
            for row in manifest.success_by_steps
            if (row["sampler"], row["grid"], row["guidance_scale"])
            == (defaults.sampler, defaults.grid, defaults.guidance_scale)
        ],
    }


def achieved(by_step: Mapping[str, Any]) -> float:
    """What counts on this task: the mean score where there is one, or the share of successes."""
    return float(by_step.get("score", by_step["success_rate"]))


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people: milliseconds, millions."""
    first = rows[0]
    table = Table(title="what a guided request costs here (times in ms), and what it achieves")
    for name in ("task, network", "backend"):
        table.add_column(name, no_wrap=True)
    together = f"of {first['requests_together']}"
    request = f"{first['num_steps']} steps"
    for name in ("params M", "MFLOP/row", "encode", "step", together, request, "steps: achieved"):
        table.add_column(name, justify="right", no_wrap=name.startswith("steps"))
    for row in rows:
        if row["guided"]:
            table.add_row(
                f"{row['task']}, {row['network']}",
                row["backend"],
                f"{(row['parameters'] + row['camera_parameters']) / 1e6:.1f}",
                f"{row['step_operations'] / 1e6:.1f}",
                *_milliseconds(row),
                " ".join(f"{count}: {found}" for count, found in _by_steps(row).items()) or "–",
            )
    return table


def _milliseconds(row: Mapping[str, Any]) -> list[str]:
    """Encoding, a step alone, its share of a call of many, a request."""
    seconds = [row[f"{name}_p50_s"] for name in ("encode", "step", "step_together")]
    return [f"{each * 1e3:.2f}" for each in seconds] + [f"{row['request_p50_s'] * 1e3:.1f}"]


def _by_steps(row: Mapping[str, Any]) -> dict[int, str]:
    """What some step counts achieve, where it is known."""
    found = {by["num_steps"]: f"{achieved(by):.2f}" for by in row["by_steps"]}
    return {count: found[count] for count in _SHOWN_STEPS if count in found}


def markdown_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as pages have it: a line a checkpoint, backends beside each other."""
    first = rows[0]
    times = ("encode", "step", f"of {first['requests_together']}", f"{first['num_steps']} steps")
    header = ["task", "network", "parameters", "MFLOP a row", "MFLOP of cameras"]
    header += [f"{name}: {time} (ms)" for name in BACKENDS for time in times]
    header += [f"{count} steps" if count > 1 else "1 step" for count in _SHOWN_STEPS]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    guided = {(row["checkpoint"], row["backend"]): row for row in rows if row["guided"]}
    for folder in dict.fromkeys(row["checkpoint"] for row in rows):
        row, *_ = by_backend = [guided[folder, name] for name in BACKENDS]
        parameters = row["parameters"] + row["camera_parameters"]
        cameras, by_steps = row["camera_operations"], _by_steps(row)
        lines.append(
            [
                row["task"],
                row["network"],
                f"{parameters / 1e6:.1f} M",
                f"{row['step_operations'] / 1e6:.1f}",
                f"{cameras / 1e6:.1f}" if cameras else "–",
                *(shown for each in by_backend for shown in _milliseconds(each)),
                *(by_steps.get(count, "–") for count in _SHOWN_STEPS),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What a step takes, and what so many milliseconds of steps achieve."""
    guided = [row for row in rows if row["guided"]]
    wide = 1.0 + 0.9 * len(guided)
    figure = Figure(figsize=(wide + 6.0, 4.2), layout="constrained")
    cost, gain = figure.subplots(1, 2, width_ratios=(wide, 6.0))
    names = [f"{row['task']}\n{row['network']}\n{row['backend']}" for row in guided]
    places = np.arange(len(guided))
    cost.bar(places - 0.2, [row["step_p50_s"] * 1e3 for row in guided], 0.4, label="alone")
    shared = [row["step_together_p50_s"] * 1e3 for row in guided]
    label = f"share of a call with {guided[0]['requests_together']}"
    cost.bar(places + 0.2, shared, 0.4, label=label)
    cost.set(yscale="log", ylabel="ms a guided step", title="cost")
    cost.set_xticks(places, names, fontsize=7)
    cost.legend()
    tuned = [r for r in rows if r["backend"] == "onnx" and not r["guided"] and r["by_steps"]]
    for row in tuned:
        _draw_gain(gain, row)
    gain.set(
        xscale="log", xlabel="ms of denoising (onnx)", ylabel="score or success", ylim=(0, 1.05)
    )
    gain.xaxis.set_major_formatter("{x:g}")
    gain.xaxis.set_minor_formatter(NullFormatter())
    gain.set_title("what it achieves, by steps")
    if tuned:
        gain.legend()
    figure.savefig(path, dpi=120)


def _draw_gain(axes: Axes, row: Mapping[str, Any]) -> None:
    """Denoising time by the rows that the default w takes."""
    of_step = [(by["nfe"] * row["step_p50_s"] * 1e3, achieved(by)) for by in row["by_steps"]]
    (line,) = axes.plot(*zip(*of_step, strict=True), "o-", label=f"{row['task']}, {row['network']}")
    for (at_ms, value), by in zip(of_step, row["by_steps"], strict=True):
        axes.annotate(str(by["num_steps"]), (at_ms, value), fontsize=7, color=line.get_color())


def main(config: NetworksConfig) -> None:
    """Measure, print, write."""
    rows = measure(config)
    path = results.write_results(config.out, "networks", asdict(config), rows)
    plot(rows, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(markdown_of(rows), "utf-8")
    console = results.console()
    console.print(table_of(rows))
    console.print(f"wrote networks.json, networks.png and networks.md to {config.out}")
