"""How should a policy be sampled, and how often? Chosen on validation seeds, for the manifest.

In stages, each with what the one before has chosen: w, the noise levels at which it acts, then
steps with every sampler and grid, then the time it takes on this machine. All but the last are
about quality and decide what is written; the last says whether it fits. What is measured is on disk
after each row; the checkpoint stays as it was until all is done.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from tqdm import tqdm
from tyro.conf import Positional

from benchmarks import latency, results
from benchmarks.choices import Cell, Choice, choose_guidance, choose_interval, choose_pair
from benchmarks.episodes import make_specs
from benchmarks.latency import Asked
from benchmarks.policy_choice import PolicyChoice
from benchmarks.robot_policy import RobotPolicy
from benchmarks.scores import right_and_wrong
from benchmarks.server_process import running_server
from benchmarks.statistics import quantile
from benchmarks.step_cost import latency_quantile, samples_for
from benchmarks.sweep import Record
from benchmarks.tune_report import plot, recommend, tables_of
from client import PolicyClient
from client.sims.simulation import SimulatedRobot
from models import checkpoint
from models.checkpoint import SERVED_GRIDS, SERVED_SAMPLERS, Manifest, SamplingDefaults
from models.grids import GridName
from models.guidance import EVERYWHERE, Interval, check_interval, network_rows
from models.samplers import SamplerName
from models.sampling import Sampling

GUIDANCE_PHRASINGS = ("known", "validation")
"""Guidance is about words, so it is chosen on those that the policy knows and on others."""
LARGER = (4, 20)
"""Times max_useful_steps: counts whose latency is measured to say how much time is left over."""
BEYOND = 10
"""Latency samples that may exceed the quantile: with one or two, chance would decide what fits."""


@dataclass(frozen=True)
class TuneConfig(PolicyChoice):
    """What `python -m benchmarks tune` takes.

    Attributes:
        checkpoint: folder whose manifest is written; with --robot and without this, the bundled
            policy's.
        budget_ms: time from when a request is due to when its answer must be there.
        miss_rate: largest share of answers that may come later.
        num_steps: step counts to try.
        sampler: update rules to try, the one to prefer first; eta is set to 0.
        grid: spacings of the timesteps to try, the one to prefer first; dpmpp_2m is not tried with
            linspace, whose last steps are too long for it.
        guidance_scale: w to try, the one to prefer first; not −1, which ignores the words.
        guidance_interval: pairs of noise levels, 0 (clean) .. 1, between which to try that w acts,
            if a w is chosen that takes a second network row; elsewhere it is saved.
        episodes: per task, for every way of sampling the same.
        seed: of validation; 100 or more, which no report uses.
        phrasings: known, validation or a JSON file: what the policy is told while steps are chosen.
        out: folder of tune.json (tune.partial.json until it ends), tune_samples.csv and tune.png.
    """

    checkpoint: Positional[Path | None] = None
    budget_ms: float = 80.0
    miss_rate: float = 1e-3
    num_steps: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 10, 15, 25)
    sampler: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m")
    grid: tuple[GridName, ...] = ("trailing", "linspace", "logsnr")
    guidance_scale: tuple[float, ...] = (0.0, 0.5, 1.0, 3.0)
    guidance_interval: tuple[tuple[float, float], ...] = (EVERYWHERE, (0.0, 0.9), (0.0, 0.5))
    episodes: int = 50
    seed: int = 100
    phrasings: str = "known"
    out: Path = Path("results/tune")

    def __post_init__(self) -> None:
        """Check ranges, naming the field, and keep validation and reports apart."""
        if self.checkpoint is None and self.robot is None:
            raise ValueError("checkpoint: expected a folder, or --robot, got neither")
        super().__post_init__()
        for name in ("num_steps", "sampler", "grid", "guidance_scale", "guidance_interval"):
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
        self._check_sampling()
        if self.phrasings == "unseen":
            msg = "phrasings: expected known, validation or a JSON file, got 'unseen' (for reports)"
            raise ValueError(msg)
        if self.seed < 100:
            msg = f"seed: expected 100 or more (smaller ones are for reports), got {self.seed}"
            raise ValueError(msg)

    def _check_sampling(self) -> None:
        """Refuse what a manifest may not name."""
        for name, served in (("sampler", SERVED_SAMPLERS), ("grid", SERVED_GRIDS)):
            rest = [one for one in getattr(self, name) if one not in served]
            if rest:
                expected = ", ".join(served)
                msg = f"{name}: expected some of {expected} (what is served), got {rest[0]!r}"
                raise ValueError(msg)
        if not self.pairs:
            only = "dpmpp_2m with linspace only"
            msg = f"sampler, grid: expected a pair that can be served, got {only}"
            raise ValueError(msg)
        rest = [w for w in self.guidance_scale if w == -1 or not math.isfinite(w)]
        if rest:
            expected = "finite numbers but −1, which ignores the words"
            msg = f"guidance_scale: expected {expected}, got {rest[0]:g}"
            raise ValueError(msg)
        for interval in self.guidance_interval:
            check_interval("guidance_interval", interval)

    @property
    def pairs(self) -> list[tuple[SamplerName, GridName]]:
        """What is tried: every pair that a manifest may name."""
        return [pair for pair in product(self.sampler, self.grid) if _can_be_served(*pair)]


def _can_be_served(sampler: SamplerName, grid: GridName) -> bool:
    try:
        SamplingDefaults(sampler=sampler, grid=grid)
    except ValueError:
        return False
    return True


def read_manifest(config: TuneConfig) -> tuple[Manifest, SimulatedRobot]:
    """The manifest to be tuned, and whose it is.

    Raises:
        CheckpointError: missing or unreadable.
        ValueError: it is of a robot that is not simulated here, or a step count is larger than T.
    """
    manifest, robot = config.read(
        remedy="measure success by steps with your own robot (act(num_steps=N)) and set "
        "min_steps, max_useful_steps, defaults and success_by_steps with "
        "models.checkpoint.write_manifest"
    )
    most = manifest.diffusion.num_timesteps
    if max(config.num_steps) > most:
        msg = f"num_steps: expected 1..{most} (T of this policy), got {max(config.num_steps)}"
        raise ValueError(msg)
    return manifest, robot


def load_phrasings(
    config: TuneConfig, robot: SimulatedRobot
) -> dict[str, Mapping[str, Sequence[str]]]:
    """Every list that is needed, by name.

    Raises:
        ValueError: one cannot be read; the message names the field.
    """
    found: dict[str, Mapping[str, Sequence[str]]] = {}
    for name in (*GUIDANCE_PHRASINGS, config.phrasings):
        try:
            found[name] = robot.phrasings(name)
        except (OSError, ValueError) as error:
            msg = f"phrasings: expected known, validation or a JSON file, got {name!r}: {error}"
            raise ValueError(msg) from error
    return found


class _Player:
    """Plays the validation episodes, with one progress bar over all stages."""

    def __init__(self, config: TuneConfig, robot: SimulatedRobot, record: Record) -> None:
        self._episodes = config.episodes
        self._phrasings = load_phrasings(config, robot)
        self._record = record
        self._policy = RobotPolicy(config.folder)
        self.alpha_bar = self._policy.manifest.diffusion.alpha_bar
        cells = len(config.guidance_scale) * len(GUIDANCE_PHRASINGS)
        cells += len(config.num_steps) * len(config.pairs)
        self._episodes_a_cell = config.episodes * len(robot.tasks)
        total = cells * self._episodes_a_cell
        self.bar = tqdm(total=total, desc="episodes", unit="episode", file=sys.stderr)

    def expect(self, cells: int) -> None:
        """So many more calls of `play` will come than it seemed at first."""
        self.bar.total += cells * self._episodes_a_cell

    def play(self, stage: str, sampling: Sampling, phrasings: str, seed: int) -> Cell:
        """The same episodes for the same phrasings and seed, whatever the sampling."""
        how = (f"{sampling.sampler}, {sampling.grid}", f"w = {sampling.guidance_scale:g}")
        self.bar.set_postfix_str(f"{', '.join(how)}, {sampling.num_steps} steps")
        specs = make_specs(self._episodes, seed, self._phrasings[phrasings])
        endings = self._policy.play(specs, sampling, self.bar.update)
        outcomes = tuple(ending.outcome for ending in endings)
        right, wrong = right_and_wrong(specs, endings)
        cell = Cell(sampling, phrasings, seed, outcomes, tuple(right), tuple(wrong))
        self.write(stage, cell)
        return cell

    def write(self, stage: str, cell: Cell) -> None:
        """Its row."""
        self._record.add({"stage": stage, **cell.row(self.alpha_bar)})


def play_guidance(config: TuneConfig, player: _Player) -> list[Cell]:
    """Stage 1: every w, at a middling count, with the sampler and the grid that are preferred."""
    middle = sorted(config.num_steps)[len(config.num_steps) // 2]
    return [
        player.play(
            "guidance", Sampling(middle, *config.pairs[0], 0.0, w), phrasings, config.seed + number
        )
        for w in config.guidance_scale
        for number, phrasings in enumerate(GUIDANCE_PHRASINGS)
    ]


def play_intervals(config: TuneConfig, player: _Player, everywhere: Sequence[Cell]) -> list[Cell]:
    """Stage 2, where w takes a second row: every interval of noise levels, else as stage 1.

    Args:
        config: what to try.
        player: of stage 1.
        everywhere: the cells of stage 1 for the chosen w.
    """
    if network_rows(everywhere[0].sampling.guidance_scale) == 1:
        return []
    others = [interval for interval in config.guidance_interval if interval != EVERYWHERE]
    player.expect(len(others) * len(everywhere))
    for cell in everywhere:
        player.write("interval", cell)
    played = [
        player.play(
            "interval",
            dataclasses.replace(cell.sampling, guidance_interval=interval),
            cell.phrasings,
            cell.seed,
        )
        for interval in others
        for cell in everywhere
    ]
    return [*everywhere, *played]


def play_steps(
    config: TuneConfig, player: _Player, guidance_scale: float, interval: Interval
) -> list[Cell]:
    """Stage 3: every count, sampler and grid."""
    return [
        player.play(
            "steps",
            Sampling(count, sampler, grid, 0.0, guidance_scale, interval),
            config.phrasings,
            config.seed,
        )
        for (sampler, grid), count in product(config.pairs, sorted(config.num_steps))
    ]


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
        defaults=SamplingDefaults(
            guidance_scale=mine[0].sampling.guidance_scale,
            eta=0.0,
            grid=choice.grid,
            sampler=choice.sampler,
            guidance_interval=mine[0].sampling.guidance_interval,
        ),
        success_by_steps=tuple(cell.row(manifest.diffusion.alpha_bar) for cell in mine),
    )


def measure_latency(config: TuneConfig, candidate: Manifest) -> list[dict[str, Any]]:
    """Stage 4: how long answers take here as the candidate would have them, one row a count."""
    defaults, useful = candidate.defaults, candidate.max_useful_steps
    larger = [min(factor * useful, candidate.diffusion.num_timesteps) for factor in LARGER]
    counts = sorted({candidate.min_steps, useful, *larger})
    cases = [Asked(n, defaults.guidance_scale) for n in counts]
    samples = samples_for(config.miss_rate, BEYOND)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)  # the checkpoint itself is not touched yet
        for name in candidate.files:
            shutil.copy(config.folder / name, folder)
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

    def nfe(case: Asked) -> int:
        how = (defaults.sampler, defaults.grid, defaults.eta, case.guidance_scale)
        sampling = Sampling(case.num_steps, *how, defaults.guidance_interval)
        return sampling.nfe(candidate.diffusion.alpha_bar)

    raw = [({"backend": backend, **vars(case)}, found.answers[case]) for case in cases]
    latency.write_samples(config.out / "tune_samples.csv", raw)
    return [
        {
            "sampler": defaults.sampler,
            "grid": defaults.grid,
            "eta": defaults.eta,
            "guidance_scale": defaults.guidance_scale,
            "num_steps": case.num_steps,
            "guidance_interval": defaults.guidance_interval,
            "nfe": nfe(case),
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


def check_unchanged(folder: Path, manifest: Manifest) -> None:
    """Refuse to write what was measured with one network beside the weights of another.

    Raises:
        CheckpointError: a file of the checkpoint is not what the manifest said at the start.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file() or checkpoint.file_sha256(path) != expected:
            msg = (
                f"{path}: changed since tuning began (trained again meanwhile?); the manifest was "
                "left alone: run again"
            )
            raise checkpoint.CheckpointError(msg)


def run(config: TuneConfig, console: Console) -> list[dict[str, Any]]:
    """All stages; each row is written when it is known, and the manifest at the very end."""
    manifest, robot = read_manifest(config)
    record = Record(config.out, "tune", vars(config))
    player = _Player(config, robot, record)
    scales = config.guidance_scale
    with player.bar:
        guided = play_guidance(config, player)
        by_w = {w: [c for c in guided if c.sampling.guidance_scale == w] for w in (*scales, 0.0)}
        w = choose_guidance(guided)
        tried = play_intervals(config, player, by_w[w])
        interval = choose_interval(tried, by_w[0.0], player.alpha_bar) if tried else EVERYWHERE
        steps = play_steps(config, player, w, interval)
    choice = choose_pair(steps)
    candidate = tuned(manifest, choice, steps)
    few_and_many = {"min_steps": choice.min_steps, "max_useful_steps": choice.max_useful_steps}
    record.add({"stage": "chosen", **vars(candidate.defaults), **few_and_many})
    for row in measure_latency(config, candidate):
        record.add({"stage": "latency", **row})
    recommendation = recommend(record.rows, config.miss_rate)
    record.add({"stage": "recommendation", "recommendation": recommendation})
    check_unchanged(config.folder, manifest)
    record.finish()
    checkpoint.write_manifest(config.folder, candidate)
    console.print(f"wrote {config.folder / checkpoint.MANIFEST}")
    return record.rows


def main(config: TuneConfig) -> None:
    """Measure, print tables and recommendation, write results and the manifest."""
    console = results.console()
    rows = run(config, console)
    plot(rows, config.budget_ms / 1e3, config.miss_rate, config.out / "tune.png")
    for table in tables_of(rows):
        console.print(table)
    console.print(rows[-1]["recommendation"])
    console.print(f"wrote tune.json, tune_samples.csv and tune.png to {config.out}")
