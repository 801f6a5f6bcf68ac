"""How should a policy be sampled, and how often? Chosen on validation seeds, for the manifest.

In stages, each with what the one before has chosen: w, then steps with every sampler and grid, then
the time it takes on this machine. The first two are about quality and decide what is written; the
last says whether it fits. A run that is interrupted leaves the checkpoint as it was.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from tqdm import tqdm
from tyro.conf import Positional

from benchmarks import latency, results
from benchmarks.choices import Cell, Choice, choose_guidance, choose_pair, recommend
from benchmarks.desk_policy import DeskPolicy
from benchmarks.episodes import make_specs
from benchmarks.latency import Asked
from benchmarks.server_process import running_server
from benchmarks.statistics import quantile
from benchmarks.step_cost import latency_quantile, samples_for
from benchmarks.tune_report import plot, tables_of
from client import PolicyClient
from client.sims.desk import phrasings as desk_phrasings
from client.sims.desk.spec import TASKS
from models import checkpoint
from models.checkpoint import SERVED_GRIDS, Manifest
from models.grids import GridName
from models.guidance import network_rows
from models.samplers import SamplerName
from models.sampling import Sampling

GUIDANCE_PHRASINGS = ("known", "validation")
"""Guidance is about words, so it is chosen on those that the policy knows and on others."""
LARGER = (4, 20)
"""Times max_useful_steps: counts whose latency is measured to say how much time is left over."""


@dataclass(frozen=True)
class TuneConfig:
    """What `python -m benchmarks tune` takes.

    Attributes:
        checkpoint: folder whose manifest is written; of the desk.
        budget_ms: time from when a request is due to when its answer must be there.
        miss_rate: largest share of answers that may come later.
        num_steps: step counts to try.
        sampler: update rules to try, the one to prefer first.
        grid: spacings of the timesteps to try, the one to prefer first.
        guidance_scale: w to try, the one to prefer first.
        episodes: per task, for every way of sampling the same.
        seed: of validation; 100 or more, which no report uses.
        phrasings: what the policy is told while steps are chosen.
        out: folder of tune.json, tune_samples.csv and tune.png.
    """

    checkpoint: Positional[Path]
    budget_ms: float = 80.0
    miss_rate: float = 1e-3
    num_steps: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 10, 15, 25)
    sampler: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m")
    grid: tuple[GridName, ...] = ("trailing", "linspace", "logsnr")
    guidance_scale: tuple[float, ...] = (0.0, 0.5, 1.0, 3.0)
    episodes: int = 50
    seed: int = 100
    phrasings: str = "known"
    out: Path = Path("results/tune")

    def __post_init__(self) -> None:
        """Check ranges, naming the field, and keep validation and reports apart."""
        for name in ("num_steps", "sampler", "grid", "guidance_scale"):
            if not getattr(self, name):
                msg = f"{name}: expected at least one, got none"
                raise ValueError(msg)
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                msg = f"{name}: expected each once, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.budget_ms > 0:
            msg = f"budget_ms: expected more than 0, got {self.budget_ms}"
            raise ValueError(msg)
        if not 0 < self.miss_rate < 1:
            msg = f"miss_rate: expected a share between 0 and 1, got {self.miss_rate}"
            raise ValueError(msg)
        if min(*self.num_steps, self.episodes) < 1:
            got = f"{self.num_steps} and {self.episodes}"
            msg = f"num_steps, episodes: expected at least 1, got {got}"
            raise ValueError(msg)
        unserved = [grid for grid in self.grid if grid not in SERVED_GRIDS]
        if unserved:
            expected = ", ".join(SERVED_GRIDS)
            msg = f"grid: expected some of {expected} (what a server can use), got {unserved[0]!r}"
            raise ValueError(msg)
        if self.seed < 100:
            msg = f"seed: expected 100 or more (smaller ones are for reports), got {self.seed}"
            raise ValueError(msg)


def read_desk_manifest(config: TuneConfig) -> Manifest:
    """The manifest to be tuned.

    Raises:
        CheckpointError: missing or unreadable.
        ValueError: it is not the desk's, or a step count is larger than T.
    """
    manifest = checkpoint.read_manifest(config.checkpoint)
    if manifest.spec.task != "desk":
        msg = (
            f"{config.checkpoint}: expected a policy of the desk, which is what this plays, got "
            f"task {manifest.spec.task!r}; measure success by steps with your own robot "
            "(act(num_steps=N)) and set min_steps, max_useful_steps, defaults and success_by_steps "
            "with models.checkpoint.write_manifest"
        )
        raise ValueError(msg)
    most = manifest.diffusion.num_timesteps
    if max(config.num_steps) > most:
        msg = f"num_steps: expected 1..{most} (T of this policy), got {max(config.num_steps)}"
        raise ValueError(msg)
    return manifest


class _Player:
    """Plays the validation episodes, with one progress bar over all stages."""

    def __init__(self, config: TuneConfig) -> None:
        self._config = config
        self._desk = DeskPolicy(config.checkpoint)
        cells = len(config.guidance_scale) * len(GUIDANCE_PHRASINGS)
        cells += len(config.num_steps) * len(config.sampler) * len(config.grid)
        total = cells * config.episodes * len(TASKS)
        self.bar = tqdm(total=total, desc="episodes", unit="episode", file=sys.stderr)

    def play(self, sampling: Sampling, phrasings: str, seed: int) -> Cell:
        """The same episodes for the same phrasings and seed, whatever the sampling."""
        specs = make_specs(self._config.episodes, seed, desk_phrasings.load(phrasings))
        outcomes = self._desk.play(specs, sampling, self.bar.update)
        return Cell(sampling, phrasings, seed, tuple(outcomes))


def measure_quality(config: TuneConfig, manifest: Manifest) -> tuple[list[Cell], list[Cell]]:
    """Stages 1 and 2: every w at a middling count, then every count, sampler and grid.

    Returns:
        The cells of either stage.
    """
    player = _Player(config)
    middle = sorted(config.num_steps)[len(config.num_steps) // 2]
    with player.bar as bar:
        guidance = []
        for w in config.guidance_scale:
            how = Sampling(middle, manifest.defaults.sampler, manifest.defaults.grid, 0.0, w)
            bar.set_postfix_str(f"w = {w:g}")
            for number, phrasings in enumerate(GUIDANCE_PHRASINGS):
                guidance.append(player.play(how, phrasings, config.seed + number))
        w = choose_guidance(guidance)
        steps = []
        for sampler, grid, count in product(config.sampler, config.grid, sorted(config.num_steps)):
            bar.set_postfix_str(f"{sampler}, {grid}, {count} steps")
            how = Sampling(count, sampler, grid, 0.0, w)
            steps.append(player.play(how, config.phrasings, config.seed))
    return guidance, steps


def tuned(manifest: Manifest, choice: Choice, steps: Sequence[Cell]) -> Manifest:
    """The manifest with what was chosen, and the measurement that it comes from."""
    mine = [
        cell
        for cell in steps
        if (cell.sampling.sampler, cell.sampling.grid) == (choice.sampler, choice.grid)
    ]
    return dataclasses.replace(
        manifest,
        min_steps=choice.min_steps,
        max_useful_steps=choice.max_useful_steps,
        defaults=checkpoint.SamplingDefaults(
            guidance_scale=mine[0].sampling.guidance_scale,
            eta=0.0,
            grid=choice.grid,
            sampler=choice.sampler,
        ),
        success_by_steps=tuple(cell.row() for cell in mine),
    )


def measure_latency(config: TuneConfig, candidate: Manifest) -> list[dict[str, Any]]:
    """Stage 3: how long answers take here as the candidate would have them, one row a count."""
    defaults, useful = candidate.defaults, candidate.max_useful_steps
    tried = [n for n in config.num_steps if candidate.min_steps <= n <= useful]
    larger = [min(factor * useful, candidate.diffusion.num_timesteps) for factor in LARGER]
    cases = [Asked(n, defaults.guidance_scale) for n in sorted({*tried, *larger})]
    samples = samples_for(config.miss_rate)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "candidate"  # the checkpoint itself is not touched yet
        shutil.copytree(config.checkpoint, folder)
        checkpoint.write_manifest(folder, candidate)
        with (
            running_server(folder) as server,
            tqdm(
                total=samples * (len(cases) + 1), desc="latency", unit="request", file=sys.stderr
            ) as bar,
        ):
            with PolicyClient(server.address) as policy:
                backend = policy.metadata(timeout_s=10.0).backend
            found = latency.measure(
                server.address,
                cases,
                latency.questions_for(candidate.spec, config.seed),
                budget_s=config.budget_ms / 1e3,
                samples=samples,
                seed=config.seed,
                progress=bar.update,
            )
    raw = [({"backend": backend, **vars(case)}, found.answers[case]) for case in cases]
    latency.write_samples(config.out / "tune_samples.csv", raw)
    return [
        {
            "sampler": defaults.sampler,
            "grid": defaults.grid,
            "eta": defaults.eta,
            "guidance_scale": defaults.guidance_scale,
            "num_steps": case.num_steps,
            "nfe": case.num_steps * network_rows(case.guidance_scale),
            "backend": backend,
            "budget_s": config.budget_ms / 1e3,
            "samples": len(found.answers[case]),
            "latency_p50_s": median(found.answers[case]),
            "latency_quantile_s": latency_quantile(found.answers[case], config.miss_rate)
            if len(found.answers[case]) >= samples
            else None,
            "latency_max_s": max(found.answers[case]),
            "ping_p50_s": quantile(found.pings, 0.5),
            "ping_quantile_s": latency_quantile(found.pings, config.miss_rate),
        }
        for case in cases
    ]


def run(config: TuneConfig, console: Console) -> list[dict[str, Any]]:
    """All stages; writes results after each, and the manifest at the very end."""
    manifest = read_desk_manifest(config)
    guidance, steps = measure_quality(config, manifest)
    candidate = tuned(manifest, choice := choose_pair(steps), steps)
    rows = [{"stage": "guidance", **cell.row()} for cell in guidance]
    rows += [{"stage": "steps", **cell.row()} for cell in steps]
    chosen: dict[str, Any] = {
        "stage": "chosen",
        **vars(candidate.defaults),
        "min_steps": candidate.min_steps,
        "max_useful_steps": candidate.max_useful_steps,
    }
    rows.append(chosen)
    results.write_results(config.out, "tune", vars(config), rows)
    times = measure_latency(config, candidate)
    rows += [{"stage": "latency", **row} for row in times]
    latencies_s = {
        row["num_steps"]: row["latency_quantile_s"]
        for row in times
        if row["latency_quantile_s"] is not None
    } or {choice.min_steps: times[0]["latency_p50_s"]}
    chosen["recommendation"] = recommend(
        choice, latencies_s, config.budget_ms / 1e3, config.miss_rate
    )
    results.write_results(config.out, "tune", vars(config), rows)
    plot(rows, config.budget_ms / 1e3, config.miss_rate, config.out / "tune.png")
    checkpoint.write_manifest(config.checkpoint, candidate)
    console.print(f"wrote {config.checkpoint / checkpoint.MANIFEST}")
    return rows


def main(config: TuneConfig) -> None:
    """Measure, print tables and recommendation, write results and the manifest."""
    console = results.console()
    rows = run(config, console)
    for table in tables_of(rows):
        console.print(table)
    (chosen,) = [row for row in rows if row["stage"] == "chosen"]
    console.print(chosen["recommendation"])
    console.print(f"wrote tune.json, tune_samples.csv and tune.png to {config.out}")
