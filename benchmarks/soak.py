"""Everything at once, for as long as one likes: is a request lost without a word, a robot unsafe?

Robots drive beside a hostile client; some of them are behind a network that delays, drops, repeats,
reorders, cuts and resets, some die in mid-request. They cancel, and are told something else. The
server is stopped for a second, killed or ended, and started again, over and over. Each robot is
watched by auditors of its own (benchmarks/soak_robot.py).

A request is *lost* if it comes to no conclusion within its timeout, or to two; or if a robot whose
network is sound is told that the connection is lost while the server is up. A hostile message is
lost if the reply that it is owed does not come, or if one comes that is not owed. A robot is
*unsafe* if an action is commanded that is beyond its limits or belongs to no answer of this moment.
"""

from __future__ import annotations

import random
import select
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from benchmarks import results, soak_report
from benchmarks.faulty_proxy import Faults, FaultyProxy
from benchmarks.hostile import hostile_process
from benchmarks.reporting_process import ReportingProcess, reporting_process
from benchmarks.server_process import ServerProcess, running_server
from benchmarks.soak_robot import DRIVING
from models import checkpoint
from policy_server.backends.choice import BackendName

_FAULTS = (
    Faults(),
    Faults(delay_s=0.01),
    Faults(drop=0.05),
    Faults(duplicate=0.1),
    Faults(reorder=0.1),
    Faults(truncate=0.02),
    Faults(reset=0.02),
    Faults(black_hole=True),
)
_FAULTS_CHANGE_S = 2.0
_MORTAL_DRIVES_S, _MORTAL_LIVES_S = 2.0, 30.0
"""Of a robot that is killed: from its first answer, and at most."""
_ROBOTS = 10_000
"""More than one run has: each has a seed of its own."""
_WATCH_PERIOD_S = 0.1
_STOPPED_S = 1.0
_HOSTILE_SHARE = 0.7
"""Of the time between two restarts: the hostile client should have ended before."""
_ENDS_WITHIN_S = 20.0


@dataclass(frozen=True)
class SoakConfig:
    """What `python -m benchmarks soak` takes.

    Attributes:
        minutes: it ends with the first restart after so long.
        robots: with a sound network.
        robots_behind_faults: behind one that is not.
        hostile_hz: messages of the hostile client in a second.
        restart_s: the server is up for so long, and then started again.
        checkpoint: folder of the policy; the bundled one if not given.
        backend: what runs the network.
        seed: of everything that is drawn; a report's, so below 100.
        out: folder of soak.json and soak.png.
    """

    minutes: float = 30.0
    robots: int = 2
    robots_behind_faults: int = 1
    hostile_hz: float = 200.0
    restart_s: float = 45.0
    checkpoint: Path = checkpoint.PRETRAINED / "desk"
    backend: BackendName = "auto"
    seed: int = 13
    out: Path = Path("results/soak")

    def __post_init__(self) -> None:
        """Check ranges, naming the field."""
        for name in ("minutes", "hostile_hz"):
            if not getattr(self, name) > 0:
                msg = f"{name}: expected more than 0, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("robots", "robots_behind_faults"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.restart_s >= 10:
            msg = f"restart_s: expected at least 10, got {self.restart_s}"
            raise ValueError(msg)
        if not 0 <= self.seed < 100:
            msg = f"seed: expected 0..99 (larger ones are for choosing), got {self.seed}"
            raise ValueError(msg)


@dataclass
class Events:
    """What was done to the robots' world, by `time.monotonic()`.

    Attributes:
        outages_s: (from, to) of each time that the server was not there or stood still.
        done: how often what was done.
        hostile: reports of the hostile clients.
    """

    outages_s: list[tuple[float, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    hostile: list[dict[str, Any]] = field(default_factory=list)


def robot_process(task: str, address: str, seed: int) -> AbstractContextManager[ReportingProcess]:
    """Begin to drive; it reports what its auditors have found."""
    return reporting_process(
        "a robot", "benchmarks.soak_robot", task, address, seed, ends_within_s=_ENDS_WITHIN_S
    )


def has_begun_to_drive(robot: ReportingProcess) -> bool:
    """Whether it has said so since it was asked last; does not wait."""
    readable = select.select([robot.stdout], (), (), 0)[0]
    return bool(readable) and robot.stdout.readline().strip() == DRIVING


class Mortals:
    """Robots that are killed in the middle of what they do, one after the other."""

    def __init__(self, task: str, address: str, seed: int, events: Events) -> None:
        self._task, self._address, self._seed, self._events = task, address, seed, events
        self._present = ExitStack()
        self._robot: ReportingProcess | None = None
        self._driving = False
        self._dies_s = 0.0

    def follow(self, now_s: float) -> None:
        """Kill one and begin the next, if it is time."""
        if self._robot is not None and not self._driving and has_begun_to_drive(self._robot):
            self._driving = True
            self._dies_s = now_s + _MORTAL_DRIVES_S
        if now_s >= self._dies_s:
            self.end()
            self._seed += 1
            process = robot_process(self._task, self._address, self._seed)
            self._robot = self._present.enter_context(process)
            self._dies_s = now_s + _MORTAL_LIVES_S

    def end(self) -> None:
        """Kill the last one; only those that drove count."""
        self._present.close()
        self._events.done["robots killed"] += self._driving
        self._robot, self._driving = None, False


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Soak:
    """One run; see the module's docstring."""

    def __init__(self, config: SoakConfig, bar: tqdm[None]) -> None:
        self._config = config
        self._bar = bar
        self._task = checkpoint.read_manifest(config.checkpoint).spec.task
        self._address = _free_address()
        self._rng = random.Random(config.seed)
        self.events = Events()
        self.began_s = time.monotonic()

    def run(self) -> list[dict[str, Any]]:
        """Until the time is over; a report for each robot that lived to the end."""
        config, names = self._config, ("sound", "faulty")
        robots: list[tuple[str, ReportingProcess]] = []
        seed = _ROBOTS * config.seed
        mortals = Mortals(self._task, self._address, seed + _ROBOTS // 2, self.events)
        with ExitStack() as stack:
            proxy = stack.enter_context(FaultyProxy(self._address, seed=config.seed))
            stack.callback(mortals.end)
            down_s: float | None = None
            until_s = self.began_s + 60 * config.minutes
            while time.monotonic() < until_s:
                with self._server() as server:
                    if down_s is not None:
                        self.events.outages_s.append((down_s, time.monotonic()))
                    if not robots:
                        addresses = [self._address] * config.robots
                        addresses += [proxy.address] * config.robots_behind_faults
                        for number, address in enumerate(addresses):
                            process = robot_process(self._task, address, seed + number)
                            name = names[address == proxy.address]
                            robots.append((name, stack.enter_context(process)))
                    down_s = self._between_restarts(server, proxy, mortals)
            proxy.faults = Faults()
            self.events.outages_s.append((down_s or 0.0, time.monotonic() + _ENDS_WITHIN_S))
            return [{"network": name, **robot.report()} for name, robot in robots]

    def _server(self) -> AbstractContextManager[ServerProcess]:
        self._bar.set_postfix_str("server starts", refresh=False)
        options = ("--backend", self._config.backend)
        return running_server(self._config.checkpoint, *options, bind=self._address)

    def _between_restarts(
        self, server: ServerProcess, proxy: FaultyProxy, mortals: Mortals
    ) -> float:
        """While the server is up; ends it, and returns since when it is not there."""
        config, events = self._config, self.events
        began_s = time.monotonic()
        ends_s = began_s + config.restart_s
        stops_s = began_s + config.restart_s * self._rng.uniform(0.2, 0.8)
        changes_s = began_s
        messages = round(config.hostile_hz * _HOSTILE_SHARE * config.restart_s)
        seed = self._rng.randrange(10**6)
        with hostile_process(server.address, messages, config.hostile_hz, seed) as hostile:
            while (now_s := time.monotonic()) < ends_s:
                if server.process.poll() is not None:
                    msg = f"the server ended with exit status {server.process.returncode}"
                    raise RuntimeError(msg)
                if now_s >= changes_s:
                    proxy.faults = self._rng.choice(_FAULTS)
                    changes_s = now_s + _FAULTS_CHANGE_S
                if now_s >= stops_s:
                    stops_s = ends_s
                    self._stand_still(server)
                mortals.follow(now_s)
                self._bar.set_postfix_str(f"{events.done['servers killed']} kills", refresh=False)
                self._bar.update(
                    max(0, min(round(now_s - self.began_s), self._bar.total) - self._bar.n)
                )
                time.sleep(_WATCH_PERIOD_S)
            events.hostile.append(hostile.report())
        for kind, count in proxy.counts.items():
            events.done[f"messages with {kind}"] = count
        down_s = time.monotonic()
        if self._rng.random() < 0.5:
            server.process.kill()
            events.done["servers killed"] += 1
        else:
            server.process.send_signal(signal.SIGTERM)
            events.done["servers ended"] += 1
        server.process.wait(_ENDS_WITHIN_S)
        return down_s

    def _stand_still(self, server: ServerProcess) -> None:
        stopped_s = time.monotonic()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(_STOPPED_S)
        server.process.send_signal(signal.SIGCONT)
        self.events.outages_s.append((stopped_s, time.monotonic()))
        self.events.done["servers stopped for a second"] += 1


def main(config: SoakConfig) -> None:
    """Soak, print the table, write results and the plot; fail if anything was lost or unsafe."""
    console: Console = results.console()
    total_s = round(60 * config.minutes)
    with tqdm(total=total_s, unit="s", desc="soaking", file=sys.stderr) as bar:
        soak = Soak(config, bar)
        reports = soak.run()
    rows = soak_report.rows_of(reports, soak.events.outages_s, soak.events.hostile)
    done = {"done": dict(soak.events.done), "duration_s": time.monotonic() - soak.began_s}
    results.write_results(config.out, "soak", {**vars(config), **done}, rows)
    soak_report.plot(reports, soak.events.outages_s, soak.began_s, config.out / "soak.png")
    console.print(soak_report.table_of(rows))
    console.print(", ".join(f"{what}: {count}" for what, count in soak.events.done.items()))
    console.print(f"wrote soak.json and soak.png to {config.out}")
    lost, unsafe = (sum(row[name] for row in rows) for name in ("lost", "unsafe"))
    if lost or unsafe:
        sys.exit(f"error: expected nothing lost and nothing unsafe, got {lost} and {unsafe}")
    if failed := soak_report.failed(rows):
        sys.exit(f"error: expected answers, motion and no fault, got none or one: {failed}")
