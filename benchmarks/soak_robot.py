"""One robot of a soak test, in a process of its own, that trusts nothing and writes all of it down.

    python -m benchmarks.soak_robot ROBOT ADDRESS SEED

A control loop drives a simulated robot, is told something else to do now and then, and cancels some
of its requests. Two auditors of its own watch: between loop and client, that every request comes to
exactly one conclusion within its timeout; between loop and robot, that every action belongs to an
answer and to this moment, or is the robot's safe action, and that it keeps to the limits. It writes
`driving` to stdout at its first answer, ends when stdin does, and writes a JSON object then.
"""

from __future__ import annotations

import json
import logging
import random
import re
import select
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from client import PolicyClient
from client.action_limits import ActionLimits
from client.control_loop import ControlLoop
from client.errors import (
    CancelledError,
    CannotServeError,
    ConnectionLostError,
    DeadlineError,
    PolicyError,
)
from client.outstanding import Chunk
from client.sims.real_time import RealTimeRobot, sample_pool
from client.sims.simulation import SimulatedRobot, load_robot
from client.specs import PolicySpec

DRIVING = "driving"
BUDGET_S = 0.08
TIMEOUT_S = 0.5
_SLACK_S = 0.3
"""Beyond its timeout a conclusion may come so much later: the loop looks for it once a tick."""
_CANCELLED = 0.02
_NEW_WORDS = 0.1
_EPISODES = 20
_CHUNKS_KEPT = 16
_TICKS_OFF = 2
"""An action may be so many ticks from where its observation puts it: ticks start late, too."""
_SAME = 1e-3
_CONNECTED_WITHIN_S = 60.0


class AuditedPolicy:
    """A `PolicyClient` for the loop; see the module's docstring.

    Attributes:
        observed_s: when the robot began its newest observation, which is what is asked about.
        chunks: (when its observation was begun, actions) of the newest answers.
        reasons: of refusals, numbers left out.
        counts: conclusions by kind; "lost" has none, or more than one, or one that is overdue.
        conclusions: (sent_s, settled_s, kind) of each.
    """

    def __init__(self, policy: PolicyClient, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._open: dict[int, tuple[float, float]] = {}  # sent, observed
        self._episode_s = 0.0
        self.observed_s = 0.0
        self.chunks: deque[tuple[float, npt.NDArray[np.float32]]] = deque(maxlen=_CHUNKS_KEPT)
        self.reasons: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.conclusions: list[tuple[float, float, str]] = []

    def submit(
        self,
        observation: Mapping[str, npt.NDArray[Any]],
        instruction: str,
        **options: Any,  # noqa: ANN401 - those of the client, whatever they are
    ) -> int:
        """See `client.control_loop.Policy`."""
        sent_s = time.monotonic()
        try:
            request_id = self._policy.submit(observation, instruction, **options)
        except DeadlineError:
            self.counts["sent"] += 1
            self.reasons["not sent: the budget is spent already"] += 1
            self._conclude(sent_s, "refused")
            raise
        self.counts["sent"] += 1
        self._open[request_id] = (sent_s, self.observed_s)
        if self._rng.random() < _CANCELLED:
            self._policy.cancel(request_id)
        return request_id

    def poll(self, timeout_s: float) -> list[Chunk | PolicyError]:
        """See `client.control_loop.Policy`."""
        results = self._policy.poll(timeout_s)
        for result in results:
            if result.request_id is None:
                self.counts["unreadable"] += 1
                continue
            if result.request_id not in self._open:
                self.counts["lost"] += 1
                continue
            sent_s, observed_s = self._open.pop(result.request_id)
            self._conclude(sent_s, _kind_of(result))
            if isinstance(result, Chunk):
                if self.counts["answered"] + self.counts["late"] == 1:
                    sys.stdout.write(f"{DRIVING}\n")
                    sys.stdout.flush()
                if sent_s >= self._episode_s:
                    self.chunks.append((observed_s, result.actions))
            elif isinstance(result, CannotServeError):
                self.reasons[re.sub(r"[\d.]+", "N", str(result))] += 1
        return results

    def _conclude(self, sent_s: float, kind: str) -> None:
        now_s = time.monotonic()
        if now_s - sent_s > TIMEOUT_S + _SLACK_S:
            kind = "lost"
        self.counts[kind] += 1
        self.conclusions.append((sent_s, now_s, kind))

    def begin_episode(self) -> None:
        """Nothing that was asked for before counts from here on."""
        self._episode_s = time.monotonic()
        self.chunks.clear()

    def close(self) -> None:
        """What is open now has no conclusion."""
        for sent_s, _ in self._open.values():
            self.counts["lost"] += 1
            self.conclusions.append((sent_s, time.monotonic(), "lost"))
        self._open.clear()


def _kind_of(result: Chunk | PolicyError) -> str:
    match result:
        case Chunk():
            return "late" if result.late else "answered"
        case CancelledError():
            return "cancelled"
        case CannotServeError():
            return "refused"
        case ConnectionLostError():
            return "disconnected"
        case _:
            return "fault"


class AuditedRobot:
    """A `client.robot.Robot`; see the module's docstring.

    Attributes:
        unsafe: what was commanded that should not have been, in words.
        safe: ticks in which the safe action was commanded.
        moved: ticks in which an action of an answer was.
    """

    def __init__(self, robot: RealTimeRobot, policy: AuditedPolicy, spec: PolicySpec) -> None:
        self._robot = robot
        self._policy = policy
        self._spec = spec
        self._safe_action: npt.NDArray[Any] | None = None
        self._last: npt.NDArray[Any] | None = None
        self.unsafe: list[str] = []
        self.safe = self.moved = 0

    @property
    def limits(self) -> ActionLimits:
        """See `client.robot.Robot`."""
        return self._robot.limits

    def observe(self) -> dict[str, npt.NDArray[Any]]:
        """See `client.robot.Robot`."""
        self._policy.observed_s = time.monotonic()
        return self._robot.observe()

    def safe_action(self) -> npt.NDArray[Any]:
        """See `client.robot.Robot`."""
        self._safe_action = np.array(self._robot.safe_action())
        if self._last is None:
            self._last = self._safe_action
        return self._safe_action

    def begin_episode(self) -> None:
        """The robot is somewhere else; its first safe action is what the first command follows."""
        self._last = None
        self._policy.begin_episode()

    def apply(self, action: npt.NDArray[Any]) -> None:
        """Check, then command it; the safe action in place of an unsafe one."""
        now_s = time.monotonic()  # the checks take time, in which it may be stopped
        if self._safe_action is not None and np.array_equal(action, self._safe_action):
            self.safe += 1
        else:
            self.moved += 1
            wrong = self._wrong(action, now_s)
            if wrong is not None:
                self.unsafe.append(wrong)
                action = np.array(self._robot.safe_action())
        self._safe_action = None
        self._last = action
        self._robot.apply(action)

    def _wrong(self, action: npt.NDArray[Any], now_s: float) -> str | None:
        """What is wrong with an action that is not the safe one."""
        limits = self.limits  # compared here and not by its own methods, which the loop uses
        low, high, most = (
            np.array(limit, np.float32)
            for limit in (limits.minimum, limits.maximum, limits.max_change)
        )
        within = (low <= action) & (action <= high)
        if not within.all():
            return f"action: {action.tolist()} is beyond the limits"
        change = np.zeros(1) if self._last is None else np.abs(action - self._last)
        if not (change <= most + _SAME).all():
            return f"action: {action.tolist()} is too large a change: {change.tolist()}"
        off = []
        for observed_s, actions in self._policy.chunks:
            tick = int((now_s - observed_s) / self._spec.control_period_s)
            rows = np.flatnonzero((np.abs(actions - action) <= _SAME).all(axis=1))
            off += [int(row) - tick for row in rows]
        if any(abs(ticks) <= _TICKS_OFF for ticks in off):
            return None
        return f"action: {action.tolist()} is due by no answer (ticks off: {off})"


def run(robot: SimulatedRobot, address: str, seed: int) -> dict[str, object]:
    """Drive until stdin ends; what the auditors have found."""
    rng = random.Random(seed)
    words = robot.phrasings("known")
    pool = sample_pool(robot, [rng.choice(robot.tasks) for _ in range(_EPISODES)], seed)
    with PolicyClient(address) as client:
        spec = client.metadata(timeout_s=_CONNECTED_WITHIN_S).spec
        policy = AuditedPolicy(client, rng)
        real_time = RealTimeRobot(robot, pool)
        audited = AuditedRobot(real_time, policy, spec)
        loop = ControlLoop(
            audited,
            policy,
            spec,
            instruction=rng.choice(words[real_time.task]),
            budget_s=BUDGET_S,
            timeout_s=TIMEOUT_S,
        )
        while not select.select([sys.stdin], (), (), 0)[0]:
            tick = loop.step()
            if real_time.outcome is not None:
                real_time.begin_next()
                loop.begin_episode()
                audited.begin_episode()
                loop.instruction = rng.choice(words[real_time.task])
            elif tick.index % 100 == 0 and rng.random() < _NEW_WORDS:
                loop.instruction = f"{rng.choice(words[real_time.task])} number {rng.random():.6f}"
        loop.drain()
        policy.close()
    return {
        "counts": dict(policy.counts),
        "conclusions": policy.conclusions,
        "reasons": dict(policy.reasons),
        "rejected": dict(loop.stats.rejected),
        "unsafe": audited.unsafe,
        "ticks": {"safe": audited.safe, "moved": audited.moved},
        "dropped_replies": client.dropped_replies,
    }


def main() -> None:
    """Entry point."""
    task, address, seed = sys.argv[1:]
    logging.getLogger("client").setLevel(logging.ERROR)  # its reasons are in the report
    report = run(load_robot(task), address, int(seed))
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
