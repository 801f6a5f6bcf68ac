"""How near is a step to what the machine can do? Our steps and requests beside floor and baselines.

Every network has initial weights, which take the same time as trained ones. All that is compared
takes turns in one process, in random order: floor, steps, requests, the lesson's loop, and the loop
of `diffusers`. A request is one of the engine, from `submit` to its answer, with no socket; those
of the desk's bundled policy are also timed from a client of a server in a process of its own.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import results, speed_report
from benchmarks.floor import Bandwidth, MatrixRate, StepWork
from benchmarks.in_process import InProcess
from benchmarks.sampling_loops import SamplingLoops
from benchmarks.server_process import running_server
from client import PolicyClient
from client.sims.desk.spec import DESK_SPEC, TASKS
from models import checkpoint
from models.checkpoint import SamplingDefaults
from models.export import export_graphs
from models.instruction_encoder import INSTRUCTION_DIM
from models.networks.config import NetworkConfig
from models.networks.film_mlp import FilmMlpConfig
from models.networks.transformer import TransformerConfig
from models.networks.unet1d import Unet1dConfig
from models.policy import DiffusionConfig, DiffusionPolicy
from policy_server.backends.onnx_backend import OnnxBackend
from policy_server.backends.protocol import Backend, BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from policy_server.calibration import zero_observation

NetworkName = Literal["mlp", "unet", "unet_large", "transformer"]

NETWORKS: dict[NetworkName, NetworkConfig] = {
    "mlp": FilmMlpConfig.for_spec(DESK_SPEC, len(TASKS) - 1),
    "unet": Unet1dConfig.for_spec(DESK_SPEC, len(TASKS) - 1),
    "unet_large": replace(
        Unet1dConfig.for_spec(DESK_SPEC, len(TASKS) - 1), widths=(256, 512, 1024)
    ),
    "transformer": TransformerConfig.for_spec(DESK_SPEC, len(TASKS) - 1),
}
"""In the shapes of the desk; all but the large U-Net in their default sizes."""
BACKENDS = ("onnx", "onnx-int8", "torch")
REMOTE_BACKENDS = ("onnx", "onnx-int8")
_MANY_STEPS = 1000
_STEP_SAMPLES = 5
_SHORT_S = 0.1
_PATIENCE_S = 600.0
_INSTRUCTION = "open the drawer"


@dataclass(frozen=True)
class SpeedConfig:
    """What `python -m benchmarks speed` takes.

    Attributes:
        networks: which.
        robots: that ask at the same time, one request each.
        num_steps: of a request; the MLP also answers requests of 1000 steps.
        num_threads: of a network call; the floor and the baselines have as many.
        rounds: all cases take turns so often.
        cell_s: a case that has taken so long is cut short, and its row says so.
        seed: of the order of the turns.
        out: folder of speed.json, speed_samples.npz and speed.png.
    """

    networks: tuple[NetworkName, ...] = tuple(NETWORKS)
    robots: tuple[int, ...] = (1, 4, 16)
    num_steps: int = 10
    num_threads: int = 1
    rounds: int = 30
    cell_s: float = 20.0
    seed: int = 8
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("networks", "robots"):
            if not getattr(self, name):
                msg = f"{name}: expected at least one, got none"
                raise ValueError(msg)
        for name in ("num_steps", "num_threads", "rounds"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if self.num_steps >= _MANY_STEPS:
            msg = f"num_steps: expected less than {_MANY_STEPS}, got {self.num_steps}"
            raise ValueError(msg)
        if min(self.robots) < 1 or not self.cell_s > 0:
            msg = f"robots, cell_s: expected more than 0, got {self.robots}, {self.cell_s:g}"
            raise ValueError(msg)


@dataclass
class Cell:
    """What takes turns together, and how long each of it has taken.

    Attributes:
        network: of all of it.
        robots: that ask together.
        guided: w = 1, otherwise 0.
        num_steps: of a request.
        timed: by name, what measures itself in seconds; what ends in "step" is short.
        samples: by name, seconds.
        taken_s: by all turns so far.
        cut_short: a turn was left out since they had taken too long.
    """

    network: NetworkName
    robots: int
    guided: bool
    num_steps: int
    timed: dict[str, Callable[[], float]]
    samples: dict[str, list[float]] = field(default_factory=dict)
    taken_s: float = 0.0
    cut_short: bool = False

    @property
    def name(self) -> str:
        """As in the file of samples."""
        branches = "guided" if self.guided else "unguided"
        return f"{self.network}/{self.robots}/{branches}/{self.num_steps}"

    def turn(self, order: random.Random, cell_s: float) -> None:
        """One sample of each, in random order, if there is time left."""
        if self.taken_s > cell_s:
            self.cut_short = True
            return
        begun_s = time.perf_counter()
        for name in order.sample(sorted(self.timed), len(self.timed)):
            samples = self.samples.setdefault(name, [])
            repeats = _STEP_SAMPLES if name.endswith("step") else 1
            if not samples or samples[-1] < _SHORT_S:
                self.timed[name]()  # the caches are this network's then, as in a loop of steps
            samples += [self.timed[name]() for _ in range(repeats)]
        self.taken_s += time.perf_counter() - begun_s

    def p50(self, name: str) -> float | None:
        """Median seconds; None for what is not timed here."""
        return median(self.samples[name]) if name in self.timed else None


class _Server(InProcess):
    """Our own side: the engine over one backend, in process."""

    def __init__(self, policy: DiffusionPolicy, backend: Backend) -> None:
        super().__init__(policy, backend, SamplingDefaults())
        self._observation = zero_observation(policy.spec)

    def step(self, robots: int, w: float) -> float:
        """Seconds of one call."""
        buffers = self.backend.buffers
        rows = buffers.lay_out(np.full(robots, w, np.float32), np.arange(robots))
        return _seconds(partial(self.backend.step, robots, rows))

    def together(self, robots: int, w: float, num_steps: int) -> float:
        """Seconds from requests that arrive together to the last answer."""
        requests = self.requests(
            [self._observation] * robots,
            [np.zeros(INSTRUCTION_DIM, np.float32)] * robots,
            range(robots),
            num_steps=num_steps,
            guidance_scale=w,
            eta=0.0,
        )
        return _seconds(partial(self.answers, requests))


class _Remote:
    """A client of the desk's bundled policy, served in a process of its own."""

    def __init__(self, policy: PolicyClient) -> None:
        self._policy = policy
        self._observation = zero_observation(policy.metadata().spec)

    def request(self, w: float, num_steps: int) -> float:
        """Seconds from the call to the chunk."""
        act = partial(self._policy.act, budget_s=_PATIENCE_S, timeout_s=_PATIENCE_S)
        asked = partial(act, self._observation, _INSTRUCTION)
        return _seconds(partial(asked, num_steps=num_steps, guidance_scale=w))


def _seconds(measured: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    measured()
    return time.perf_counter() - begun_s


def _cells(config: SpeedConfig, remotes: Mapping[str, _Remote]) -> Iterator[Cell]:
    """Everything that is timed, network by network."""
    settings = BackendSettings(config.num_threads, max(config.robots))
    for name in tqdm(config.networks, desc="loading"):
        network = NETWORKS[name]
        torch.manual_seed(config.seed)
        policy = DiffusionPolicy(DESK_SPEC, network, DiffusionConfig()).eval()
        with tempfile.TemporaryDirectory() as graphs:
            folder = Path(graphs)
            export_graphs(policy, folder, int8=True)
            servers = [
                _Server(policy, OnnxBackend(policy, settings, folder)),
                _Server(policy, OnnxBackend(policy, settings, folder, int8=True)),
                _Server(policy, TorchBackend(policy, settings)),
            ]
        alpha_bar = torch.from_numpy(policy.diffusion.alpha_bar).float()
        counts = (config.num_steps, *((_MANY_STEPS,) if name == "mlp" else ()))
        for robots, guided, num_steps in product(config.robots, (False, True), counts):
            loops = SamplingLoops(policy.network, network, alpha_bar, robots)
            w = float(guided)
            timed: dict[str, Callable[[], float]] = {
                "lesson": partial(_seconds, partial(loops.lesson, num_steps, guided=guided)),
                "diffusers": partial(_seconds, partial(loops.diffusers, num_steps, guided=guided)),
            }
            for server in servers:
                kind = server.backend.name
                timed[f"{kind} step"] = partial(server.step, robots, w)
                timed[f"{kind} request"] = partial(server.together, robots, w, num_steps)
            if name == "mlp" and robots == 1:
                for kind, remote in remotes.items():
                    timed[f"{kind} socket request"] = partial(remote.request, w, num_steps)
            yield Cell(name, robots, guided, num_steps, timed)


def measure(config: SpeedConfig) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """One row for each cell and backend, and all samples by name, in seconds."""
    torch.set_num_threads(config.num_threads)
    work = {name: StepWork.of(NETWORKS[name]) for name in config.networks}
    rate = MatrixRate(config.num_threads)
    bandwidth = {name: Bandwidth(work[name].weight_bytes) for name in config.networks}
    with ExitStack() as stack:
        remotes = {}
        if "mlp" in config.networks and 1 in config.robots:
            for backend in REMOTE_BACKENDS:
                options = ("--backend", backend, "--num-threads", str(config.num_threads))
                server = running_server(checkpoint.PRETRAINED / "desk", *options)
                address = stack.enter_context(server).address
                remotes[backend] = _Remote(stack.enter_context(PolicyClient(address)))
        cells = list(_cells(config, remotes))
        order = random.Random(config.seed)
        for _ in tqdm(range(config.rounds), desc="timing", unit="round"):
            rate.measure()
            for reading in bandwidth.values():
                reading.measure()
            for cell in order.sample(cells, len(cells)):
                cell.turn(order, config.cell_s)
    rows = []
    for cell in cells:
        network = work[cell.network]
        floor_s = network.floor_s(
            cell.robots * (1 + cell.guided),
            rate.operations_per_s,
            bandwidth[cell.network].bytes_per_s,
        )
        rows += [
            {
                **_row(config, cell, backend, floor_s),
                "step_operations_a_row": network.operations,
                "weight_bytes": network.weight_bytes,
                "operations_per_s": rate.operations_per_s,
                "bytes_per_s": bandwidth[cell.network].bytes_per_s,
            }
            for backend in BACKENDS
        ]
    samples = {f"{cell.name}/{name}": s for cell in cells for name, s in cell.samples.items()}
    return rows, samples


def _row(config: SpeedConfig, cell: Cell, backend: str, floor_s: float) -> dict[str, Any]:
    return {
        "network": cell.network,
        "backend": backend,
        "device": "cpu",
        "threads": config.num_threads,
        "robots": cell.robots,
        "guided": cell.guided,
        "num_steps": cell.num_steps,
        "step_p50_s": cell.p50(f"{backend} step"),
        "request_p50_s": cell.p50(f"{backend} request"),
        "socket_request_p50_s": cell.p50(f"{backend} socket request"),
        "floor_step_s": floor_s,
        "lesson_loop_p50_s": cell.p50("lesson"),
        "diffusers_p50_s": cell.p50("diffusers"),
        "samples": len(cell.samples["lesson"]),
        "cut_short": cell.cut_short,
    }


def main(config: SpeedConfig) -> None:
    """Measure, print, write."""
    rows, samples = measure(config)
    path = results.write_results(config.out, "speed", asdict(config), rows)
    arrays: dict[str, Any] = {name: np.array(seconds) for name, seconds in samples.items()}
    np.savez_compressed(config.out / "speed_samples.npz", **arrays)
    speed_report.plot(rows, path.with_suffix(".png"))
    console = results.console()
    console.print(speed_report.table_of(rows))
    console.print(f"wrote speed.json, speed_samples.npz and speed.png to {config.out}")
