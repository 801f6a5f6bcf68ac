"""client/control_loop.py in simulated time, and once against a real server that goes away.

The robot observes the number of the tick, and an honest answer says of each action which tick it is
for: so whatever the delays, the action that is executed at tick k must say k.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.action_limits import ActionLimits
from client.control_loop import ControlLoop
from client.errors import (
    ConnectionLostError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    PolicyError,
    ProtocolError,
    ServerFaultError,
    SupersededError,
)
from client.messages import Timing
from client.outstanding import Chunk
from client.policy_client import PolicyClient
from client.specs import ArraySpec, PolicySpec

if TYPE_CHECKING:
    from conftest import Answer, Server

PERIOD_S = 0.01
BUDGET_S = 0.08
TIMEOUT_S = 0.3
SAFE = -1.0
SPEC = PolicySpec(
    task="test",
    observation={"state": ArraySpec((3, 1), "float32", ("tick",))},
    action_names=("tick", "request"),
    action_minimum=(-1e6, -1e6),
    action_maximum=(1e6, 1e6),
    horizon=10,
    obs_steps=3,
    exec_steps=4,
    control_period_s=PERIOD_S,
)


class SimulatedClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.start_s = self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    @property
    def tick(self) -> int:
        return round((self.now_s - self.start_s) / PERIOD_S)


class SimulatedRobot:
    """Observes and records the tick; may be slow."""

    limits = ActionLimits(SPEC.action_minimum, SPEC.action_maximum, (np.inf, np.inf))

    def __init__(self, clock: SimulatedClock, stalls_s: Mapping[int, float] | None = None) -> None:
        self.clock = clock
        self.stalls_s = dict(stalls_s or {})
        self.applied: dict[int, list[float]] = {}

    def observe(self) -> dict[str, np.ndarray]:
        observation = {"state": np.array([self.reading()], np.float32)}
        self.clock.sleep(self.stalls_s.pop(self.clock.tick, 0.0))
        return observation

    def reading(self) -> float:
        return self.clock.tick

    def apply(self, action: np.ndarray) -> None:
        self.applied[self.clock.tick] = action.tolist()

    def safe_action(self) -> np.ndarray:
        return np.full(2, SAFE, np.float32)

    def executed(self) -> dict[int, list[float]]:
        return {tick: a for tick, a in self.applied.items() if a[0] != SAFE}


@dataclass
class Asked:
    request_id: int
    at_s: float
    due_s: float
    states: list[float]
    instruction: str


Reply = tuple[float, PolicyError | np.ndarray | None]
"""Delay, and an error, other actions, or None for honest ones."""


@dataclass
class SimulatedPolicy:
    """Answers each request after a delay that `reply` decides."""

    clock: SimulatedClock
    reply: Callable[[int], Reply]
    spec_id: str = SPEC.spec_id
    asked: list[Asked] = field(default_factory=list)
    on_their_way: list[tuple[float, Callable[[], Chunk | PolicyError]]] = field(
        default_factory=list
    )

    def submit(
        self,
        observation: Mapping[str, np.ndarray],
        instruction: str,
        *,
        budget_s: float,
        due_s: float,
        timeout_s: float,
        **options: Any,
    ) -> int:
        SPEC.validate_observation(observation)
        request_id = len(self.asked)
        delay_s, what = self.reply(request_id)
        states = observation["state"][:, 0].tolist()
        self.asked.append(Asked(request_id, self.clock(), due_s, states, instruction))
        sent_s = self.clock()

        def result() -> Chunk | PolicyError:
            """As of now, which is when it is read."""
            if delay_s > timeout_s:
                return ConnectionLostError("no answer", request_id=request_id)
            if isinstance(what, PolicyError):
                what.request_id = request_id
                return what
            honest = [[states[-1] + i, request_id] for i in range(SPEC.horizon)]
            latency_s = self.clock() - due_s
            return Chunk(
                request_id=request_id,
                actions=np.array(honest, np.float32) if what is None else what,
                num_steps=2,
                timesteps=(9, 4),
                nfe=4,
                rows_per_call=1.0,
                deadline_met=True,
                model_id="m",
                spec_id=self.spec_id,
                guidance_scale=0.0,
                eta=0.0,
                seed=0,
                timing=Timing(0.0, 0.0, 0.0, 0.0),
                due_s=due_s,
                latency_s=latency_s,
                round_trip_s=self.clock() - sent_s,
                late=latency_s > budget_s,
            )

        self.on_their_way.append((sent_s + min(delay_s, timeout_s), result))
        return request_id

    def poll(self, timeout_s: float) -> Sequence[Chunk | PolicyError]:
        now_s = self.clock()
        first_s = min((s for s, _ in self.on_their_way), default=np.inf)
        self.clock.now_s = max(now_s, min(now_s + timeout_s, first_s))
        here = [result() for s, result in self.on_their_way if s <= self.clock()]
        self.on_their_way = [(s, r) for s, r in self.on_their_way if s > self.clock()]
        return here


def simulate(
    reply: Callable[[int], Reply], stalls_s: Mapping[int, float] | None = None, **options: Any
) -> tuple[ControlLoop, SimulatedRobot, SimulatedPolicy]:
    clock = SimulatedClock()
    robot = SimulatedRobot(clock, stalls_s)
    policy = SimulatedPolicy(clock, reply)
    settings: dict[str, Any] = {"instruction": "go", "budget_s": BUDGET_S, "timeout_s": TIMEOUT_S}
    loop = ControlLoop(robot, policy, SPEC, clock=clock, sleep=clock.sleep, **settings | options)
    return loop, robot, policy


def steps(loop: ControlLoop, count: int) -> None:
    for _ in range(count):
        loop.step()


def test_actions_are_executed_by_time_and_replaced_as_soon_as_newer_ones_arrive() -> None:
    loop, robot, policy = simulate(lambda _: (0.025, None))
    steps(loop, 24)
    # request n is due at tick 4n and its answer is there half a tick before tick 4n + 3
    expected = {k: [k, (k - 3) // 4] for k in range(3, 24)}
    assert robot.executed() == expected
    assert sorted(robot.applied) == list(range(24))
    stats = loop.drain()
    assert (stats.control_ticks, stats.waiting, stats.starved) == (24, 3, 0)
    assert stats.outcomes == {"on_time": 6}
    assert stats.miss_rate == 0.0
    for n, record in enumerate(stats.requests):
        assert record.due_s == pytest.approx(1000.0 + 4 * n * PERIOD_S)
        assert record.latency_s == pytest.approx(0.025)  # not rounded up to a tick
        assert record.staleness_s == pytest.approx(0.03)
        assert (record.num_steps, record.nfe, record.request_id) == (2, 4, n)
    assert [a.states for a in policy.asked[:2]] == [[0, 0, 0], [2, 3, 4]]


def test_an_answer_just_before_a_tick_is_in_time_for_it() -> None:
    loop, robot, _ = simulate(lambda _: (0.0195, None))  # half a millisecond before
    steps(loop, 3)
    assert robot.executed() == {2: [2, 0]}


def test_once_there_was_an_answer_a_tick_without_action_is_starved() -> None:
    loop, _, _ = simulate(lambda i: (0.005, OverloadedError("x") if i else None), budget_s=0.5)
    steps(loop, 12)
    assert (loop.stats.waiting, loop.stats.starved) == (1, 2)


def test_a_late_answer_serves_the_actions_that_are_not_yet_due() -> None:
    loop, robot, _ = simulate(lambda _: (0.085, None))
    steps(loop, 20)
    assert robot.executed() == {9: [9, 0], 13: [13, 1], 17: [17, 2]}
    stats = loop.drain()
    assert stats.late == stats.due_requests == 5
    assert stats.miss_rate == 1.0
    assert (stats.waiting, stats.starved) == (8, 9)  # waiting only within the first budget


def test_an_answer_that_was_overtaken_is_discarded() -> None:
    loop, robot, _ = simulate(lambda i: ([0.01, 0.07, 0.01, 0.01][i], None))
    steps(loop, 16)
    assert {a[1] for a in robot.executed().values()} == {0, 2, 3}
    stats = loop.drain()
    assert stats.discarded == 1
    assert stats.outcomes["on_time"] == 4
    assert [r.staleness_s is None for r in sorted(stats.requests, key=lambda r: r.due_s)] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeadlineError("x"), "refused"),
        (OverloadedError("x"), "refused"),
        (SupersededError("x"), "refused"),
        (InvalidRequestError("x"), "refused"),
        (ServerFaultError("x"), "fault"),
        (ProtocolError("x"), "fault"),
        (PolicyError("x"), "fault"),
        (ConnectionLostError("x"), "lost"),
    ],
)
def test_an_error_is_counted_by_kind_and_the_loop_goes_on(error: PolicyError, outcome: str) -> None:
    loop, robot, _ = simulate(lambda i: (0.015, error if i in (1, 2, 3) else None))
    steps(loop, 24)
    # request 0 lasts until tick 9; request 4 is due at 16 and is there at 18
    expected = {k: [k, 0] for k in range(2, 10)} | {k: [k, 4] for k in range(18, 22)}
    assert robot.executed() == expected | {22: [22, 5], 23: [23, 5]}
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 3, outcome: 3}
    assert stats.starved == 8
    assert stats.miss_rate == 0.5
    assert stats.refused + stats.lost == 3
    assert {r.error for r in stats.requests} == {None, "x"}


def test_a_server_that_is_gone_and_comes_back() -> None:
    loop, robot, _ = simulate(lambda i: (99.0 if 2 <= i < 20 else 0.015, None))
    steps(loop, 90)
    expected = {k: [k, (k - 2) // 4] for k in range(2, 10)}
    expected |= {k: [k, 1] for k in range(10, 14)}  # what is still due of the last answer
    expected |= {k: [k, (k - 2) // 4] for k in range(82, 90)}
    assert robot.executed() == expected
    stats = loop.drain()
    assert stats.outcomes == {"lost": 18, "on_time": 5}


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        (np.zeros((9, 2), np.float32), "shape"),
        (np.zeros((10, 3), np.float32), "shape"),
        (np.where(np.arange(20).reshape(10, 2) == 19, 1.1e6, np.float32(0)), "limits"),
    ],
)
def test_a_chunk_that_is_not_safe_is_a_server_fault_and_the_one_before_goes_on(
    actions: np.ndarray, reason: str
) -> None:
    loop, robot, _ = simulate(lambda i: (0.005, actions if i in (1, 2) else None))
    steps(loop, 16)
    # request 0 lasts until tick 9; request 3 is due at tick 12
    expected = {k: [k, 0] for k in range(1, 10)} | {k: [k, 3] for k in range(13, 16)}
    assert robot.executed() == expected
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 2, "fault": 2}
    assert stats.rejected == {reason: 2}
    assert stats.starved == 3
    assert "actions" in str(stats.requests[1].error)


def test_answers_of_another_specification_are_not_commanded_whatever_the_client_thinks() -> None:
    """It may have asked for the metadata of what is served now; the loop is made for the other."""
    loop, robot, policy = simulate(lambda _: (0.005, None))
    steps(loop, 3)
    policy.spec_id = replace(SPEC, action_names=("dx", "dy")).spec_id
    steps(loop, 13)
    assert robot.executed() == {k: [k, 0] for k in range(1, 10)}
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 1, "fault": 3}
    assert "make a loop for that policy" in str(stats.requests[1].error)


def test_a_jump_never_reaches_the_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ActionLimits((-1e6, -1e6), (1e6, 1e6), (5.0, np.inf))
    monkeypatch.setattr(SimulatedRobot, "limits", limits)
    jump = np.full((10, 2), 500.0, np.float32)
    loop, robot, _ = simulate(lambda i: (0.005, jump if i == 1 else None))
    steps(loop, 12)
    assert robot.executed() == {k: [k, 0 if k < 9 else 2] for k in range(1, 12)}
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 3}  # what it answered was as it should be
    assert stats.rejected == {"change": 1}
    assert [r.staleness_s is None for r in stats.requests] == [False, True, False]


def test_the_first_action_is_compared_with_the_safe_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ActionLimits((-1e6, -1e6), (1e6, 1e6), (5.0, np.inf))
    monkeypatch.setattr(SimulatedRobot, "limits", limits)
    far = np.full((10, 2), 9.0, np.float32)  # the safe action is −1
    loop, robot, _ = simulate(lambda _: (0.0, far))
    steps(loop, 8)
    assert robot.executed() == {}
    assert loop.stats.rejected == {"change": 2}
    assert loop.stats.waiting + loop.stats.starved == 8


def test_a_robot_of_other_dimensions_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedRobot, "limits", ActionLimits((0.0,), (1.0,), (1.0,)))
    with pytest.raises(ValueError, match=r"robot\.limits: expected 2 dimensions.*got 1"):
        simulate(lambda _: (0.0, None))


def test_a_new_instruction_counts_from_the_next_request_on() -> None:
    loop, _, policy = simulate(lambda _: (0.005, None))
    steps(loop, 6)
    loop.instruction = "stop"
    steps(loop, 3)
    words = iter(["a", "b"])
    loop.instruction = lambda: next(words)
    steps(loop, 8)
    assert [a.instruction for a in policy.asked] == ["go", "go", "stop", "a", "b"]


def test_a_held_up_loop_keeps_to_the_schedule_and_counts_what_it_missed() -> None:
    loop, robot, policy = simulate(lambda _: (0.005, None), stalls_s={6: 0.127})
    steps(loop, 16)
    # tick 6 ends at 18.7: ticks 7 to 18 are too late and skipped, the request due at 16 is made at
    # tick 19, those due at 8 and 12 never are
    assert sorted(robot.applied) == [0, 1, 2, 3, 4, 5, 19, 20, 21, 22, 23, 24, 25, 26, 27]
    assert [round((a.due_s - 1000.0) / PERIOD_S) for a in policy.asked] == [0, 4, 16, 20, 24]
    assert [a.states[-1] for a in policy.asked] == [0, 4, 19, 20, 24]
    assert policy.asked[2].states == [6, 6, 19]  # the newest there was, not 17 and 18
    assert all(a[0] == k for k, a in robot.executed().items() if k != 19)
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 5, "lost": 2}
    assert (stats.overruns, stats.skipped, stats.control_ticks) == (1, 12, 16)


def test_a_new_episode_starts_from_nothing() -> None:
    loop, robot, policy = simulate(lambda _: (0.025, None))
    steps(loop, 6)  # request 1, due at tick 4, is under way
    loop.begin_episode()
    loop.step()
    assert policy.asked[2].states == [5, 5, 5]  # the first tick, at once, and no older observation
    steps(loop, 4)
    assert {a[1] for k, a in robot.executed().items() if k > 5} == {2}
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 4}
    assert (stats.waiting, stats.starved, stats.overruns) == (6, 0, 0)


def test_what_a_new_episode_supersedes_is_no_miss() -> None:
    loop, _, _ = simulate(lambda i: (0.025, SupersededError("newer") if i == 1 else None))
    steps(loop, 5)
    loop.begin_episode()
    steps(loop, 4)
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 2, "abandoned": 1}
    assert (stats.due_requests, stats.miss_rate) == (2, 0.0)


def test_a_sensor_that_fails_refuses_requests_but_does_not_stop_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, robot, _ = simulate(lambda _: (0.005, None))
    steps(loop, 5)
    monkeypatch.setattr(robot, "observe", lambda: {"state": np.array([np.nan], np.float32)})
    steps(loop, 10)
    stats = loop.drain()
    assert stats.outcomes == {"on_time": 2, "refused": 2}
    assert "finite" in str(stats.requests[-1].error)
    assert robot.applied[14][0] == SAFE
    monkeypatch.setattr(robot, "observe", lambda: {"state": np.zeros(2, np.float32)})
    with pytest.raises(InvalidRequestError, match=r"robot\.observe"):
        loop.step()


def test_run_leaves_the_robot_safe_and_every_request_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, robot, policy = simulate(lambda _: (0.045, None))
    stats = loop.run(duration_s=0.2)
    assert stats.control_ticks == 20
    assert stats.due_requests == len(policy.asked) == 5
    assert list(robot.applied.values())[-1] == [SAFE, SAFE]

    def fail() -> dict[str, np.ndarray]:
        raise OSError("the camera is gone")

    monkeypatch.setattr(robot, "observe", fail)
    robot.applied.clear()
    with pytest.raises(OSError, match="camera"):
        loop.run(duration_s=1.0)
    assert list(robot.applied.values()) == [[SAFE, SAFE]]


def test_a_client_that_never_answers_ends_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, robot, policy = simulate(lambda _: (0.1, None))
    steps(loop, 1)
    monkeypatch.setattr(policy, "poll", lambda timeout_s: robot.clock.sleep(timeout_s) or [])
    assert loop.drain().outcomes == {"lost": 1}


ERRORS = st.sampled_from(
    [DeadlineError, OverloadedError, ServerFaultError, SupersededError, ConnectionLostError]
)
REPLIES = st.tuples(st.floats(0.001, 0.5), st.none() | ERRORS)


@settings(max_examples=150, deadline=None)
@given(
    replies=st.lists(REPLIES, min_size=1, max_size=8),
    stalls=st.dictionaries(st.integers(0, 120), st.floats(0, 0.2), max_size=4),
    episodes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_whatever_happens(
    replies: list[tuple[float, type[PolicyError] | None]],
    stalls: dict[int, float],
    episodes: list[int],
) -> None:
    def reply(i: int) -> Reply:
        delay_s, error = replies[i % len(replies)]
        return delay_s, error("x") if error else None

    loop, robot, policy = simulate(reply, stalls)
    clock = robot.clock
    robot.reading = lambda: (clock() - clock.start_s) / PERIOD_S  # type: ignore[method-assign]
    due = 0
    executed = 0
    for ticks in episodes:
        loop.begin_episode()
        last = 0
        for _ in range(ticks):
            tick = loop.step()
            last = tick.index
            ((action, _),) = robot.applied.values()
            robot.applied.clear()
            if action != SAFE:  # it says when it is for: that must be now, give or take a tick
                executed += 1
                assert abs(action - robot.reading()) < 1.01
        due += last // SPEC.exec_steps + 1
    stats = loop.drain()
    assert sum(stats.outcomes.values()) == due == len(stats.requests)
    assert all(r.outcome is not None for r in stats.requests)
    assert len({id(r) for r in stats.requests}) == len(stats.requests)
    answered = [r for r in stats.requests if r.outcome in ("on_time", "late")]
    assert all((r.latency_s or 0) <= BUDGET_S for r in answered if r.outcome == "on_time")
    assert all((r.latency_s or 0) > BUDGET_S for r in answered if r.outcome == "late")
    assert stats.control_ticks == sum(episodes)
    assert executed == stats.control_ticks - stats.waiting - stats.starved
    assert not stats.rejected
    assert stats.unmatched == 0
    assert len({a.request_id for a in policy.asked}) == len(policy.asked)


# ── real time ────────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """A robot whose observation is how often it was observed."""

    limits = SimulatedRobot.limits

    def __init__(self) -> None:
        self.observed = itertools.count()
        self.applied: list[list[float]] = []

    def observe(self) -> dict[str, np.ndarray]:
        return {"state": np.array([next(self.observed)], np.float32)}

    def apply(self, action: np.ndarray) -> None:
        self.applied.append(action.tolist())

    def safe_action(self) -> np.ndarray:
        return np.full(2, SAFE, np.float32)


def step_until(loop: ControlLoop, condition: Callable[[], bool], at_most: int) -> None:
    for _ in range(at_most):
        loop.step()
        if condition():
            return
    pytest.fail("did not come about")


@pytest.mark.realtime
def test_the_server_dies_and_comes_back(
    serve: Callable[..., Server], answer: Answer, spec: PolicySpec
) -> None:
    server = serve(answer)
    robot = Recorder()
    with PolicyClient(server.address) as client:
        client.metadata(timeout_s=10.0)
        loop = ControlLoop(
            robot, client, spec, instruction="go", budget_s=BUDGET_S, timeout_s=TIMEOUT_S
        )
        stats = loop.stats
        step_until(loop, lambda: stats.outcomes["on_time"] >= 5, 200)
        server.stop()
        dead_from = len(robot.applied)
        step_until(loop, lambda: robot.applied[-1][0] == SAFE, 50)
        last_answered = robot.applied[-2]
        assert last_answered[0] != SAFE
        assert len(robot.applied) - dead_from <= spec.horizon + 5
        step_until(loop, lambda: stats.lost >= 2, 100)
        assert all(a[0] == SAFE for a in robot.applied[-2:])
        serve(answer, server.address)
        step_until(loop, lambda: robot.applied[-1][0] != SAFE, 500)
        on_time = stats.outcomes["on_time"]
        step_until(loop, lambda: stats.outcomes["on_time"] >= on_time + 3, 200)
        stats = loop.drain()
    assert sum(stats.outcomes.values()) == len(stats.requests)
    assert stats.unmatched == 0
