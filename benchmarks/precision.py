"""What do int8 weights change? Time of a step, chunks, and task success, by backend.

Whole requests go through the engine in this process. All backends of a checkpoint get the same
starts, instructions and noise, so what one changes is told by the differences of the same episodes.
The chunks that are compared with are sampled in float64.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from benchmarks.episodes import (
    MAX_AT_ONCE,
    Conditions,
    Ending,
    EpisodeSpec,
    Sample,
    make_specs,
    play,
)
from benchmarks.in_process import InProcess
from benchmarks.robot_policy import RobotPolicy
from benchmarks.scores import right_and_wrong, success_fields
from benchmarks.statistics import bootstrap_interval
from models import checkpoint
from models.export import export_graphs
from models.policy import DiffusionPolicy
from models.sampling import Sampling, sample_chunks
from policy_server.backends.onnx_backend import OnnxBackend
from policy_server.backends.protocol import Backend, BackendSettings
from policy_server.backends.torch_backend import TorchBackend

Samples = dict[str, list[float]]
TOGETHER = 16
_COMPARED = 64
_MAX_CALL_S = 0.1
"""Nobody waits for anything here."""


@dataclass(frozen=True)
class PrecisionConfig:
    """What `python -m benchmarks precision` takes.

    Attributes:
        checkpoints: folders of policies whose robots are simulated here; the bundled ones if not
            given.
        episodes: per task, by each backend.
        num_steps: denoising steps of every answer; w and all else are the checkpoint's defaults.
        repeats: of each timed call.
        seed: of starts, phrasings and noise; a report's, so below 100.
        out: folder of precision.json and precision_samples.npz.
    """

    checkpoints: tuple[Path, ...] = (
        checkpoint.PRETRAINED / "desk",
        checkpoint.PRETRAINED / "pusht",
    )
    episodes: int = 50
    num_steps: int = 10
    repeats: int = 100
    seed: int = 9
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if not self.checkpoints:
            raise ValueError("checkpoints: expected at least one, got none")
        for name in ("episodes", "num_steps", "repeats"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0 <= self.seed < 100:
            msg = f"seed: expected 0..99 (larger ones are for choosing), got {self.seed}"
            raise ValueError(msg)


def make_backends(policy: DiffusionPolicy) -> list[Backend]:
    """All that there are, on one thread each."""
    settings = BackendSettings(num_threads=1, max_requests=MAX_AT_ONCE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_graphs(policy, folder, int8=True)
        return [
            TorchBackend(policy, settings),
            OnnxBackend(policy, settings, folder),
            OnnxBackend(policy, settings, folder, int8=True),
        ]


def step_seconds(
    backends: Sequence[Backend], w: float, repeats: int, seed: int
) -> dict[tuple[int, int], list[float]]:
    """Seconds of steps by (number of the backend, requests: 1 or `TOGETHER`); in turns."""
    cases = [(number, requests) for number in range(len(backends)) for requests in (1, TOGETHER)]
    seconds: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    order = random.Random(seed)
    for _ in range(repeats):
        for number, requests in order.sample(cases, len(cases)):
            backend = backends[number]
            rows = backend.buffers.lay_out(np.full(requests, w, np.float32), np.arange(requests))
            backend.step(requests, rows)  # the caches are this network's then
            begun_s = time.perf_counter()
            backend.step(requests, rows)
            seconds[number, requests].append(time.perf_counter() - begun_s)
    return seconds


def sampled_by(server: InProcess, policy: RobotPolicy, sampling: Sampling) -> Sample:
    """The server's answers as `benchmarks.episodes.play` wants them."""

    def sample(
        observation: Mapping[str, npt.NDArray[Any]],
        instructions: Sequence[str],
        seeds: Sequence[int],
        num_steps: int,
    ) -> npt.NDArray[np.float32]:
        requests = server.requests(
            [{name: a[row] for name, a in observation.items()} for row in range(len(seeds))],
            list(policy.embed(instructions)),
            seeds,
            num_steps=num_steps,
            guidance_scale=sampling.guidance_scale,
            eta=sampling.eta,
        )
        return np.stack([answer.actions for answer in server.answers(requests)])

    return sample


def float64_chunks(
    policy: DiffusionPolicy,
    observation: Mapping[str, npt.NDArray[Any]],
    instruction: npt.NDArray[np.float32],
    sampling: Sampling,
    seeds: Sequence[int],
) -> npt.NDArray[np.float32]:
    """As `sample_chunks`, each step in float64."""
    exact = deepcopy(policy).guided_step().double()

    def step(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        x_prev, x0 = exact(*(t.double() if t.is_floating_point() else t for t in inputs))
        return x_prev, x0

    return sample_chunks(policy, observation, instruction, sampling, seeds, step=step)


def chunk_errors(
    policy: RobotPolicy, samples: Sequence[Sample], specs: Sequence[EpisodeSpec], sampling: Sampling
) -> list[dict[str, float]]:
    """How far chunks are from those of float64, in units of half the trained range of actions."""
    some = specs[:: max(1, len(specs) // _COMPARED)][:_COMPARED]
    observation = policy.observations(some)
    instructions, seeds = [spec.instruction for spec in some], range(len(some))
    exact = float64_chunks(policy.policy, observation, policy.embed(instructions), sampling, seeds)
    scale = policy.policy.action_normalizer.scale.numpy()
    found = []
    for sample in samples:
        error = (sample(observation, instructions, seeds, sampling.num_steps) - exact) / scale
        rms, largest = np.sqrt(np.mean(error**2)), np.abs(error).max()
        found.append({"chunk_error_rms": float(rms), "chunk_error_max": float(largest)})
    return found


def episode_scores(specs: Sequence[EpisodeSpec], endings: Sequence[Ending]) -> list[float]:
    """Of each episode: how well it was done, or 1 for a success of a robot without scores."""
    right, _ = right_and_wrong(specs, endings)
    return right or [float(ending.outcome == "asked") for ending in endings]


def measure(folder: Path, config: PrecisionConfig) -> tuple[list[dict[str, Any]], Samples]:
    """One row for each backend, and what is behind it by model_id/backend/what."""
    policy = RobotPolicy(folder)
    sampling = policy.sampling(config.num_steps)
    backends = make_backends(policy.policy)
    seconds = step_seconds(backends, sampling.guidance_scale, config.repeats, config.seed)
    servers = [
        InProcess(policy.policy, backend, policy.manifest.defaults, _MAX_CALL_S)
        for backend in backends
    ]
    samples = [sampled_by(server, policy, sampling) for server in servers]
    specs = make_specs(config.episodes, config.seed, policy.robot.phrasings("known"))
    policy.embed([spec.instruction for spec in specs])
    errors = chunk_errors(policy, samples, specs, sampling)
    always = Conditions(0.0, config.num_steps)
    model_id, total = policy.manifest.model_id, len(backends) * len(specs)
    rows: list[dict[str, Any]] = []
    raw: Samples = {}
    with tqdm(total=total, desc=model_id, unit="episode", file=sys.stderr) as bar:
        for number, (backend, sample) in enumerate(zip(backends, samples, strict=True)):
            endings = play(policy.robot, specs, sample, lambda _: always, bar.update)
            scores = raw[f"{model_id}/{backend.name}/score"] = episode_scores(specs, endings)
            exact = raw[f"{model_id}/{backends[0].name}/score"]
            change = [mine - other for mine, other in zip(scores, exact, strict=True)]
            for requests in (1, TOGETHER):
                raw[f"{model_id}/{backend.name}/step of {requests}"] = seconds[number, requests]
            rows.append(
                {
                    "checkpoint": folder,
                    "model_id": model_id,
                    "backend": backend.name,
                    "guidance_scale": sampling.guidance_scale,
                    "step_p50_s": median(seconds[number, 1]),
                    "step_together_p50_s": median(seconds[number, TOGETHER]) / TOGETHER,
                    **errors[number],
                    **success_fields(specs, endings),
                    "change": mean(change),
                    "change_interval": bootstrap_interval(change),
                }
            )
    return rows, raw


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people."""
    table = Table(
        title="int8 weights beside float32",
        caption=(
            f"steps in ms, alone and a request of {TOGETHER} together; errors of chunks in halves "
            "of the actions' range; change: of success, or of the score where there is one, in "
            "the same episodes, with its 95% interval"
        ),
    )
    for name in ("policy", "backend", "step", f"of {TOGETHER}", "rms error", "largest"):
        table.add_column(name, justify="right" if table.columns[1:] else "left", no_wrap=True)
    for name in ("success", "score", "change"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["change_interval"]
        table.add_row(
            row["model_id"],
            row["backend"],
            f"{row['step_p50_s'] * 1e3:.3f}",
            f"{row['step_together_p50_s'] * 1e3:.3f}",
            f"{row['chunk_error_rms']:.2g}",
            f"{row['chunk_error_max']:.2g}",
            f"{row['success_rate']:.1%}",
            f"{row['score']:.3f}" if "score" in row else "",
            f"{row['change']:+.4f} ({low:+.4f} to {high:+.4f})" if any((low, high)) else "none",
        )
    return table


def main(config: PrecisionConfig) -> None:
    """Measure, print the table, write the results."""
    rows: list[dict[str, Any]] = []
    samples: Samples = {}
    for folder in config.checkpoints:
        found, raw = measure(folder, config)
        rows += found
        samples |= raw
    path = results.write_results(config.out, "precision", vars(config), rows)
    arrays: dict[str, Any] = {name: np.array(values) for name, values in samples.items()}
    np.savez_compressed(config.out / "precision_samples.npz", **arrays)
    console = results.console()
    console.print(table_of(rows))
    console.print(f"wrote {path.name} and precision_samples.npz to {config.out}")
