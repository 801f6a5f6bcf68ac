"""A robot asks at 10 Hz: how many denoising steps fit its period, and what quality is that?

The cost of a step is measured and the count that fits is predicted; then exactly that many are
asked for at that rate, fewer if too many of those answers are missed (back to back no answer waits
for the one before), and what is left is sampled for quality.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from tqdm import tqdm

from benchmarks import latency, results
from benchmarks.budget_report import last_attempts, plot, table_of
from benchmarks.episodes import make_specs
from benchmarks.latency import Asked, Latencies, Question, Samples
from benchmarks.points import exact_quality
from benchmarks.robot_policy import RobotPolicy
from benchmarks.scores import success_fields
from benchmarks.server_process import running_server
from benchmarks.statistics import quantile, wilson_interval
from benchmarks.step_cost import StepCost, fit_step_cost, latency_quantile, samples_for
from client import PolicyClient
from client.sims.simulation import robot_names
from models import checkpoint
from models.checkpoint import Manifest
from models.mixtures import QUADRANTS, Mixture
from models.sampling import Sampling

BackendName = Literal["onnx", "torch"]

FEWER = 0.8
"""Of the steps that missed too often, tried next."""
ATTEMPTS = 8
BEYOND = 2
"""Latency samples that may exceed the quantile a line is drawn through; what fits is verified."""


@dataclass(frozen=True)
class BudgetConfig:
    """What `python -m benchmarks budget` takes.

    Attributes:
        checkpoint: folder of the policy; the bundled one if not given.
        rates_hz: how often the robot asks; its budget is the whole period.
        backend: what runs the network.
        guidance_scale: w; one that is neither 0 nor −1 takes two network rows a step.
        num_steps: counts at which the cost of a step is measured.
        miss_rate: steps "fit" if no more than this share of requests is missed.
        duration_s: how long a count is put to the test at its rate, in wall-clock time.
        episodes: per task of the robot, for the success that the steps buy.
        mixture: JSON file of a 2-D target {"modes": [condition][mode][2], "std": …} for the
            sampler's own error with that many steps; the built-in quadrants if not given.
        seed: of the order, the observations, starts and phrasings; a report's, so below 100.
        out: folder of budget.json, budget_samples.csv and budget.png.
    """

    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    rates_hz: tuple[float, ...] = (10.0, 20.0, 50.0)
    backend: tuple[BackendName, ...] = ("onnx", "torch")
    guidance_scale: tuple[float, ...] = (0.0, 1.0)
    num_steps: tuple[int, ...] = (1, 30, 100, 300, 1000)
    miss_rate: float = 0.01
    duration_s: float = 10.0
    episodes: int = 10
    mixture: Path | None = None
    seed: int = 4
    out: Path = Path("results/budget")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("rates_hz", "backend", "guidance_scale"):
            if not getattr(self, name):
                msg = f"{name}: expected at least one, got none"
                raise ValueError(msg)
        for rate_hz in self.rates_hz:
            if not rate_hz > 0:
                msg = f"rates_hz: expected more than 0, got {rate_hz}"
                raise ValueError(msg)
        if len(set(self.num_steps)) < 2 or min(self.num_steps) < 1:
            msg = f"num_steps: expected two counts or more, from 1 up, got {self.num_steps}"
            raise ValueError(msg)
        if not 0 < self.miss_rate < 1:
            msg = f"miss_rate: expected a share between 0 and 1, got {self.miss_rate}"
            raise ValueError(msg)
        if not self.duration_s * min(self.rates_hz) >= 1:
            msg = f"duration_s: expected at least one period, got {self.duration_s}"
            raise ValueError(msg)
        if self.episodes < 1:
            msg = f"episodes: expected at least 1, got {self.episodes}"
            raise ValueError(msg)
        if not 0 <= self.seed < 100:
            msg = f"seed: expected 0..99 (larger ones are for choosing), got {self.seed}"
            raise ValueError(msg)


def step_cost(measured: Latencies, guidance_scale: float, miss_rate: float) -> StepCost:
    """The line through the (1 − miss_rate) latency quantiles of one w.

    If fewer than two counts were fast enough to be measured at length, the medians of the quick
    looks at the others, which are less, stand in.
    """
    quantiles: dict[int, float] = {}
    medians: dict[int, float] = {}
    for asked, samples in measured.answers.items():
        if asked.guidance_scale == guidance_scale:
            found = latency_quantile(samples, miss_rate)
            if found is None:
                medians[asked.num_steps] = median(samples)
            else:
                quantiles[asked.num_steps] = found
    return fit_step_cost(quantiles if len(quantiles) > 1 else medians | quantiles)


def predict(cost: StepCost, budget_s: float, most: int) -> dict[str, Any]:
    """How many steps should fit, and what limits them.

    Args:
        cost: predicted latency by steps.
        budget_s: for the whole answer.
        most: T.
    """
    steps = cost.steps_within(budget_s, most)
    limit = "budget" if steps < most else f"T = {most}"
    if steps == 0:
        limit = f"not even 1 step fits: it takes {cost.latency_s(1) * 1e3:.1f} ms"
    return {
        "step_s": cost.step_s,
        "fixed_s": cost.fixed_s,
        "predicted_steps": steps or None,
        "predicted_s": cost.latency_s(max(steps, 1)),
        "limited_by": limit,
    }


def sampling_of(row: Mapping[str, Any], num_steps: int, manifest: Manifest) -> Sampling:
    """How the answers of a row with so many steps are sampled."""
    how = {name: row[name] for name in ("sampler", "grid", "eta", "guidance_scale")}
    where = manifest.defaults.guidance_interval
    return Sampling(num_steps=num_steps, guidance_interval=where, **how)


def verify(
    address: str, asked: Asked, questions: Sequence[Question], rate_hz: float, config: BudgetConfig
) -> tuple[dict[str, Any], list[float]]:
    """Ask for exactly this count at exactly this rate: what happened, and the raw latencies."""
    with PolicyClient(address) as policy:
        policy.metadata(timeout_s=10.0)
        found = latency.ask_at_rate(
            policy,
            asked,
            questions,
            period_s=1 / rate_hz,
            duration_s=config.duration_s,
            seed=config.seed,
        )
    measured = {
        "num_steps": asked.num_steps,
        "fits": found.miss_rate <= config.miss_rate,
        "due_requests": found.due_requests,
        "late": found.late,
        "refused": found.refused,
        "lost": found.lost,
        "miss_rate": found.miss_rate,
        "miss_interval": wilson_interval(found.missed, found.due_requests),
        "latency_p50_s": quantile(found.latencies_s, 0.5),
        "latency_max_s": max(found.latencies_s, default=None),
        "time_s": quantile(found.answer_s, 0.5),
    }
    return measured, found.latencies_s


_NOT_ASKED = dict.fromkeys(
    (
        *("num_steps", "nfe", "fits", "due_requests", "late", "refused", "lost", "miss_rate"),
        *("miss_interval", "latency_p50_s", "latency_max_s", "time_s"),
    )
)
_NO_QUALITY = dict.fromkeys(("episodes", "success_rate", "success_interval", "sw2"))
_SCORE = {"score", "score_interval"}  # of robots that have one


class Quality:
    """What a way of sampling buys; each is measured once, however often it is asked for."""

    def __init__(self, config: BudgetConfig) -> None:
        self._mixture = QUADRANTS if config.mixture is None else Mixture.load(config.mixture)
        self._policy: RobotPolicy | None = None
        if checkpoint.read_manifest(config.checkpoint).spec.task in robot_names():
            self._policy = RobotPolicy(config.checkpoint)
            phrasings = self._policy.robot.phrasings("known")
            self._specs = make_specs(config.episodes, config.seed, phrasings)
        self._known: dict[Sampling, dict[str, Any]] = {}

    def of(self, sampling: Sampling) -> dict[str, Any]:
        """Success of a robot that is simulated here, and the sampler's own error on a mixture.

        The latter is without guidance, whatever w: guided samples are not meant to be the target's.
        """
        if sampling not in self._known:
            unguided = dataclasses.replace(sampling, guidance_scale=0.0)
            found = {**_NO_QUALITY, "sw2": exact_quality(self._mixture, unguided)["sw2"]}
            if self._policy is not None:
                played = success_fields(self._specs, self._policy.play(self._specs, sampling))
                kept = (_NO_QUALITY.keys() | _SCORE) & played.keys()
                found |= {name: played[name] for name in kept}
            self._known[sampling] = found
        return self._known[sampling]


def measure_backend(
    backend: BackendName, config: BudgetConfig, questions: Sequence[Question], samples: Samples
) -> list[dict[str, Any]]:
    """Every rate and w with one backend: the prediction, and one row for each attempt.

    Args:
        backend: what runs the network.
        config: of the benchmark.
        questions: what is asked.
        samples: raw samples are added here, with what they are of.
    """
    manifest = checkpoint.read_manifest(config.checkpoint)
    per_case = samples_for(config.miss_rate, BEYOND)
    cases = [Asked(n, w) for w in config.guidance_scale for n in sorted(set(config.num_steps))]

    def named(asked: Asked, rate_hz: float | None) -> dict[str, Any]:
        return {"backend": backend, "rate_hz": rate_hz, **vars(asked)}

    with running_server(config.checkpoint, "--backend", backend) as server:
        total = per_case * (len(cases) + 1)
        with tqdm(total=total, desc=f"{backend}: cost", unit="request", file=sys.stderr) as bar:
            measured = latency.measure(
                server.address,
                cases,
                questions,
                budget_s=1 / min(config.rates_hz),
                samples=per_case,
                seed=config.seed,
                progress=bar.update,
            )
        samples += [(named(asked, None), found) for asked, found in measured.answers.items()]
        latency.write_samples(config.out / "budget_samples.csv", samples)
        costs = {w: step_cost(measured, w, config.miss_rate) for w in config.guidance_scale}
        rows = []
        wanted = [(rate, w) for rate in config.rates_hz for w in config.guidance_scale]
        order = random.Random(config.seed).sample(wanted, len(wanted))
        for rate_hz, w in tqdm(order, desc=f"{backend}: at its rate", file=sys.stderr):
            plan = {
                "rate_hz": rate_hz,
                "budget_s": 1 / rate_hz,
                "backend": backend,
                "guidance_scale": w,
                "sampler": manifest.defaults.sampler,
                "grid": manifest.defaults.grid,
                "eta": manifest.defaults.eta,
                "target": manifest.spec.task,
                "network": manifest.network.kind,
                "ping_p50_s": quantile(measured.pings, 0.5),
                "ping_max_s": max(measured.pings),
                **predict(costs[w], 1 / rate_hz, manifest.diffusion.num_timesteps),
            }
            steps = plan["predicted_steps"]
            if steps is None:
                rows.append({**plan, **_NOT_ASKED, **_NO_QUALITY})
            for _ in range(ATTEMPTS if steps else 0):
                asked = Asked(steps, w)
                found, seconds = verify(server.address, asked, questions, rate_hz, config)
                samples.append((named(asked, rate_hz), seconds))
                found["nfe"] = sampling_of(plan, steps, manifest).nfe(manifest.diffusion.alpha_bar)
                limit = plan["limited_by"] if steps == plan["predicted_steps"] else "budget"
                rows.append({**plan, **found, **_NO_QUALITY, "limited_by": limit})
                if found["fits"] or steps == 1:
                    break
                steps = max(1, int(FEWER * steps))
    return sorted(rows, key=lambda row: wanted.index((row["rate_hz"], row["guidance_scale"])))


def run(config: BudgetConfig, console: Console) -> tuple[list[dict[str, Any]], Samples]:
    """Measure; what is done is written after each backend and at the end."""
    manifest = checkpoint.read_manifest(config.checkpoint)
    most = manifest.diffusion.num_timesteps
    if max(config.num_steps) > most:
        msg = f"num_steps: expected 1..{most} (T of this policy), got {max(config.num_steps)}"
        raise ValueError(msg)
    quality = Quality(config)  # refuses an unusable mixture before anything is measured
    questions = latency.questions_for(manifest.spec, config.seed)
    rows: list[dict[str, Any]] = []
    samples: Samples = []
    for backend in config.backend:
        console.print(f"starting a server with {backend} …")
        rows += measure_backend(backend, config, questions, samples)
        results.write_results(config.out, "budget", vars(config), rows)
        latency.write_samples(config.out / "budget_samples.csv", samples)
    for row in tqdm(last_attempts(rows), desc="quality", file=sys.stderr):
        if row["fits"]:
            row.update(quality.of(sampling_of(row, row["num_steps"], manifest)))
            results.write_results(config.out, "budget", vars(config), rows)
    return rows, samples


def main(config: BudgetConfig) -> None:
    """Measure, print the table, write results, raw samples and the plot."""
    console = results.console()
    rows, samples = run(config, console)
    plot(rows, samples, config.miss_rate, config.out / "budget.png")
    console.print(table_of(rows))
    console.print(f"wrote budget.json, budget_samples.csv and budget.png to {config.out}")
