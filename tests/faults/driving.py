"""A robot that is driven in real time on a thread, and what may and what may not have reached it.

The policy is untrained, but its answers are known: the same observation, steps and seed give the
same chunk, so every action that the robot got can be looked up. One that is not of the tick that it
was executed at, by any of the requests that could have been answered then, is *wrong*.
"""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np

from client import ActionLimits, ControlLoop, LoopStats, PolicyClient
from models.instruction_encoder import InstructionEncoder
from models.sampling import Sampling, sample_chunks
from tests.policies import TINY_SPEC, make_policy

SPEC = replace(TINY_SPEC, horizon=8, exec_steps=4, control_period_s=0.02)
PERIOD_S = SPEC.control_period_s
INSTRUCTION = "open the drawer"
STEPS, SEED = 4, 3
TIMEOUT_S = 0.5
SAFE = np.array([0.125, -0.125], np.float32)
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Command:
    """One action as it came to the robot."""

    tick: int
    tick_s: float
    at_s: float
    action: np.ndarray
    seen: int

    @property
    def is_safe(self):
        return np.array_equal(self.action, SAFE)


class Robot:
    """Sees how often it has looked, and forgets no command."""

    limits = ActionLimits(SPEC.action_minimum, SPEC.action_maximum, (2.0, 2.0))

    def __init__(self):
        self.seen = 0
        self.commanded = None

    def observe(self):
        self.seen += 1
        return {"state": np.full(3, self.seen / 10, np.float32)}

    def apply(self, action):
        self.commanded = np.array(action), time.monotonic()

    def safe_action(self):
        return SAFE


class Drive:
    """Drives a robot until the end of the context; a failure in there is one of the test."""

    def __init__(self, address, **options):
        self.robot = Robot()
        self.commands: list[Command] = []
        self.stats = LoopStats()
        self._client_options = options
        self._address = address
        self._stop = threading.Event()
        self._failure = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self):
        try:
            with PolicyClient(self._address, **self._client_options) as policy:
                policy.metadata(timeout_s=10.0)
                loop = ControlLoop(
                    self.robot,
                    policy,
                    SPEC,
                    instruction=INSTRUCTION,
                    budget_s=0.08,
                    num_steps=STEPS,
                    seed=SEED,
                    timeout_s=TIMEOUT_S,
                )
                self.stats = loop.stats
                while not self._stop.is_set():
                    tick = loop.step()
                    action, at_s = self.robot.commanded
                    self.commands.append(
                        Command(tick.index, tick.time_s, at_s, action, self.robot.seen)
                    )
                loop.drain()
        except Exception as failure:  # noqa: BLE001 - raised at the end of the context
            self._failure = failure

    def wait(self, condition, within_s=10.0):
        """Until a condition holds; fails if it does not come about."""
        until_s = time.monotonic() + within_s
        while not condition():
            assert self._failure is None, self._failure
            assert time.monotonic() < until_s, "did not come about"
            time.sleep(0.002)

    def wait_driven(self, actions=8, within_s=10.0):
        """Until so many actions of the policy have been executed from now on."""
        before = len(self.commands)
        self.wait(
            lambda: sum(not c.is_safe for c in self.commands[before:]) >= actions, within_s=within_s
        )

    def first(self, since_s, *, safe):
        """When the robot first got a safe action, or one of the policy, since an instant."""
        return next(c.at_s for c in self.commands if c.at_s >= since_s and c.is_safe == safe)

    @property
    def longest_gap_s(self):
        """Between two commands."""
        return float(np.diff([c.at_s for c in self.commands]).max())

    def wrong(self, *policies):
        """Commands that are neither the safe action nor any policy's for this tick."""
        asked = self._asked()
        policies = policies or (make_policy(spec=SPEC),)
        chunks = np.concatenate([_chunks(policy, asked) for policy in policies])
        asked_at = np.array([c.tick for c in asked] * len(policies))
        wrong = []
        for c in self.commands:
            age = c.tick - asked_at
            held_up = int(np.ceil((c.at_s - c.tick_s) / PERIOD_S)) - 1
            could = [
                chunks[i, min(age[i] + late, SPEC.horizon - 1)]
                for i in np.flatnonzero((age >= 0) & (age < SPEC.horizon))
                for late in range(held_up + 1)
            ]
            known = any(np.abs(action - c.action).max() < TOLERANCE for action in could)
            if not (c.is_safe or known):
                wrong.append(c)
        return wrong

    def _asked(self):
        """Commands at whose tick there was a request, as the loop is documented to ask."""
        asked, due = [], 0
        for c in self.commands:
            if c.tick >= due:
                asked.append(c)
                due = (c.tick // SPEC.exec_steps + 1) * SPEC.exec_steps
        return asked


def _chunks(policy, asked):
    """What a policy answers to requests: [requests, horizon, action_dim]."""
    seen = np.array([[max(c.seen - 1, 1), c.seen] for c in asked], np.float32) / 10
    observation = {"state": np.repeat(seen[:, :, None], 3, axis=2)}
    words = np.repeat(InstructionEncoder().encode([INSTRUCTION]), len(seen), axis=0)
    return sample_chunks(policy, observation, words, Sampling(STEPS), [SEED] * len(seen))


def check(drive, *policies):
    """What must hold whatever happened: no wrong action, no hang, no request without outcome."""
    assert drive.wrong(*policies) == []
    assert drive.longest_gap_s < TIMEOUT_S
    assert sum(drive.stats.outcomes.values()) == len(drive.stats.requests)
    due = drive.commands[-1].tick // SPEC.exec_steps + 1
    assert len(drive.stats.requests) == due
