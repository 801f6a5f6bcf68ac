"""What does the wire cost? Round trips without a network, beside openpi's transport and bare pyzmq.

Nobody computes anything: what is timed is what it takes to ask and to be answered. Every client and
every server is a process of its own, and one client at a time asks, in short blocks of one run, in
random order; its next request follows on the answer before. What each does for a request:

- policy_server: `PolicyClient.act` and the real server with the null engine. The client checks the
  observation, writes a header, copies arrays once, into the socket, and checks what comes back. The
  server decodes without a copy, checks header and arrays again, looks the instruction up in its
  cache, admits the request, has it answered with zeros, and checks and encodes the answer.
- openpi: `WebsocketClientPolicy.infer` and `WebsocketPolicyServer` with a policy that gives zeros.
  Both pack and unpack one msgpack message with the arrays in it; nothing is checked.
- bare_pyzmq: a REQ and a REP socket that carry as many bytes as ours do, in one frame each way.

The first two send the same arrays and the same instruction.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from tqdm import tqdm

from benchmarks import results, transport_report
from benchmarks.reporting_process import piped_process
from benchmarks.server_process import ServerProcess, running_command, running_server
from benchmarks.transport_client import WARM_UP
from client.sims.desk.spec import DESK_SPEC, STATE_NAMES
from client.specs import ArraySpec, PolicySpec
from models import checkpoint
from models.instruction_encoder import PACKAGE, weights_sha256
from models.networks.film_mlp import FilmMlpConfig
from models.policy import DiffusionConfig, DiffusionPolicy
from models.vision import VisionConfig

Transport = Literal["policy_server", "openpi", "bare_pyzmq"]
ObservationName = Literal["state", "images"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)

SPECS: dict[ObservationName, PolicySpec] = {
    "state": DESK_SPEC,
    "images": replace(
        DESK_SPEC,
        task="two_cameras",
        observation={
            "left": ArraySpec((1, 224, 224, 3), "uint8"),
            "right": ArraySpec((1, 224, 224, 3), "uint8"),
            "state": ArraySpec((1, len(STATE_NAMES)), "float32", STATE_NAMES),
        },
        obs_steps=1,
    ),
}
_PROCESSES = ("transport_client", "transport_server")
_SMALL_VISION = VisionConfig(crop=(8, 8), channels=(8,), key_points=4, features=4)


@dataclass(frozen=True)
class TransportConfig:
    """What `python -m benchmarks transport` takes.

    Attributes:
        transports: which; bare pyzmq carries as many bytes as policy_server, so that is always one.
        observations: state is the desk's, 2 steps of 13 numbers; images are 2 cameras of
            224 x 224 x 3 bytes and 13 numbers.
        requests: of each of them; below 1000 there is no p99.
        block: so many round trips of one, back to back, before it is another one's turn.
        openpi: environment with openpi's server and client, which `make openpi` makes.
        seed: of the order of the turns and of what is observed.
        out: folder of transport.json, transport_samples.npz and transport.png.
    """

    transports: tuple[Transport, ...] = TRANSPORTS
    observations: tuple[ObservationName, ...] = tuple(SPECS)
    requests: int = 10_000
    block: int = 100
    openpi: Path = Path(".venv-openpi")
    seed: int = 11
    out: Path = Path("results")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        if "policy_server" not in self.transports:
            msg = f"transports: expected policy_server among them, got {self.transports}"
            raise ValueError(msg)
        if not self.observations:
            raise ValueError("observations: expected at least one, got none")
        for name in ("requests", "block"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)

    @property
    def openpi_python(self) -> str:
        """Of openpi's environment.

        Raises:
            FileNotFoundError: there is none.
        """
        ready = self.openpi / "ready"
        if not ready.exists():
            msg = (
                f"openpi: expected its server and client in an environment of their own in "
                f"{self.openpi}, got no {ready}; `make openpi` makes it in .venv-openpi, and "
                "`--transports policy_server bare_pyzmq` does without"
            )
            raise FileNotFoundError(msg)
        return str(self.openpi / "bin" / "python")


class ClientProcess:
    """A process of benchmarks/transport_client.py.

    Attributes:
        described: its first line: request_bytes, reply_bytes and packages.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.described = self._line()

    def ask(self, requests: int) -> dict[str, Any]:
        """So many round trips: round_trip_s of each, and cpu_s of all."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{requests}\n")
        stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError("a client ended before it was done; see above")
        said: dict[str, Any] = json.loads(line)
        return said


@dataclass
class Case:
    """One transport with one kind of observation, and what has been measured of it.

    Attributes:
        transport: which.
        observation: which.
        server: its process.
        client: its process.
        round_trip_s: of each request, in the order they were made.
        client_cpu_s: of all requests together.
        server_cpu_s: the same; None if it cannot be known.
    """

    transport: Transport
    observation: ObservationName
    server: ServerProcess
    client: ClientProcess
    round_trip_s: list[float] = field(default_factory=list)
    client_cpu_s: float = 0.0
    server_cpu_s: float | None = 0.0

    def turn(self, requests: int) -> None:
        """Ask so often, and take note."""
        before_s = self.server.cpu_s
        answered = self.client.ask(requests)
        after_s = self.server.cpu_s
        self.round_trip_s += answered["round_trip_s"]
        self.client_cpu_s += answered["cpu_s"]
        if before_s is None or after_s is None or self.server_cpu_s is None:
            self.server_cpu_s = None
        else:  # which has answered those that warm up, too
            self.server_cpu_s += (after_s - before_s) * requests / (requests + WARM_UP)

    def row(self) -> dict[str, Any]:
        """Of the result."""
        described = self.client.described
        return transport_report.row_of(
            self.transport,
            self.observation,
            self.round_trip_s,
            request_bytes=described["request_bytes"],
            reply_bytes=described["reply_bytes"],
            client_cpu_s=self.client_cpu_s,
            server_cpu_s=self.server_cpu_s,
        )


def save_checkpoint(spec: PolicySpec, folder: Path) -> None:
    """A policy of this specification that is as small as it may be: nobody runs it."""
    cameras = any(array.dtype == "uint8" for array in spec.observation.values())
    vision = _SMALL_VISION if cameras else None
    network = FilmMlpConfig.for_spec(spec, instruction_dim=1, vision=vision)
    network = replace(network, width=8, num_blocks=1, condition_dim=8, instruction_features=8)
    policy = DiffusionPolicy(spec, network, DiffusionConfig(), vision).eval()
    manifest = checkpoint.Manifest(
        model_id=f"{spec.task}-untrained",
        spec=spec,
        network=network,
        diffusion=policy.diffusion,
        defaults=checkpoint.SamplingDefaults(),
        min_steps=1,
        max_useful_steps=1,
        instruction_encoder={"package": PACKAGE, "sha256": weights_sha256()},
        command="python -m benchmarks transport",
        vision=vision,
    )
    checkpoint.save(folder, manifest, policy)


@contextmanager
def running_case(
    transport: Transport, observation: ObservationName, given: Mapping[str, Any], openpi: str
) -> Iterator[Case]:
    """Start its server and its client.

    Args:
        transport: which.
        observation: which.
        given: to client and server: arrays and seed of the observation, chunk_shape, and for bare
            pyzmq request_bytes and reply_bytes.
        openpi: Python of openpi's environment; for the others it may be anything.
    """
    case, spec = json.dumps(given), SPECS[observation]
    with ExitStack() as stack:
        if transport == "openpi":
            # isolated, or the modules beside that file would be found in place of Python's own
            ask, answer = (
                [openpi, "-I", str(Path(__file__).resolve().with_name(f"{name}.py"))]
                for name in _PROCESSES
            )
        else:
            ask, answer = ([sys.executable, "-m", f"benchmarks.{name}"] for name in _PROCESSES)
        if transport == "policy_server":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            save_checkpoint(spec, folder)
            # nobody is preferred to anybody else, so this server is not either
            options = ("--engine", "null", "--backend", "torch", "--nice", "0")
            server = running_server(folder, *options, module="benchmarks.baseline_server")
        else:
            server = running_command([*answer, transport, case])
        served = stack.enter_context(server)
        # which has connected when it has said its first line
        asking = stack.enter_context(piped_process([*ask, transport, served.address, case]))
        yield Case(transport, observation, served, ClientProcess(asking))


@contextmanager
def _running_cases(config: TransportConfig) -> Iterator[list[Case]]:
    openpi = config.openpi_python if "openpi" in config.transports else ""
    with ExitStack() as stack:
        cases = []
        for observation in config.observations:
            spec = SPECS[observation]
            given: dict[str, Any] = {
                "seed": config.seed,
                "arrays": {n: (a.shape, a.dtype) for n, a in spec.observation.items()},
                "chunk_shape": (spec.horizon, spec.action_dim),
            }
            # policy_server first: what its messages weigh is what bare pyzmq has to carry
            for transport in sorted(set(config.transports), key=TRANSPORTS.index):
                running = running_case(transport, observation, given, openpi)
                case = stack.enter_context(running)
                cases.append(case)
                if transport == "policy_server":
                    given |= case.client.described
        yield cases


def measure(config: TransportConfig, console: Console) -> list[Case]:
    """Have all of them take turns.

    Raises:
        FileNotFoundError: openpi is to be measured and is not installed.
        RuntimeError: a server or a client failed.
    """
    rounds = -(-config.requests // config.block)
    order = random.Random(config.seed)
    console.print("starting servers and clients …")
    with _running_cases(config) as cases:
        for case in cases:
            case.client.ask(config.block)  # none of them is new when it counts
        for number in tqdm(range(rounds), desc="asking", unit="round", file=sys.stderr):
            for case in order.sample(cases, len(cases)):
                case.turn(min(config.block, config.requests - number * config.block))
    return cases


def main(config: TransportConfig) -> None:
    """Measure, print the table and the targets, write the results."""
    console = results.console()
    cases = measure(config, console)
    rows = [case.row() for case in cases]
    targets = transport_report.targets_of(rows)
    packages = [case.client.described["packages"] for case in cases if case.transport == "openpi"]
    found = {"openpi_packages": packages[0] if packages else None, "targets": targets}
    results.write_results(config.out, "transport", {**vars(config), **found}, rows)
    samples: dict[str, Any] = {
        f"{case.observation}.{case.transport}": np.array(case.round_trip_s, np.float32)
        for case in cases
    }
    with (
        results.written_whole(config.out / "transport_samples.npz") as partial,
        partial.open("wb") as file,
    ):
        np.savez_compressed(file, **samples)
    transport_report.plot(samples, rows, config.out / "transport.png")
    console.print(transport_report.table_of(rows))
    for target in targets:
        console.print(transport_report.told(target))
    console.print(f"wrote transport.json, transport_samples.npz and transport.png to {config.out}")
