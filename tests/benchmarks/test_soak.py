"""The soak test's own watchmen: they must see what is wrong, and nothing where nothing is."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from benchmarks import soak_report
from benchmarks.hostile import hostile_process
from benchmarks.hostile_messages import HostileMessages
from benchmarks.reporting_process import reporting_process
from benchmarks.server_process import running_server
from benchmarks.soak_robot import AuditedPolicy, AuditedRobot
from client.action_limits import ActionLimits
from client.errors import ConnectionLostError, OverloadedError
from client.messages import Timing
from client.outstanding import Chunk
from client.wire import WireLimits
from tests.policies import TINY_SPEC, make_policy, save_checkpoint

LIMITS = WireLimits.of_requests(TINY_SPEC)


def test_equal_seeds_give_equal_messages_and_every_kind_comes_up():
    one, other = (HostileMessages(TINY_SPEC, LIMITS, 3) for _ in range(2))
    messages = [one.next() for _ in range(2000)]
    assert messages == [other.next() for _ in range(2000)]
    kinds = Counter(message.kind for message in messages)
    assert len(kinds) == 11
    assert all(len(frame) <= LIMITS.max_frame_bytes for m in messages for frame in m.frames)
    assert {m.owed for m in messages if m.kind == "not_asked"} == {True, False}
    assert all(m.owed and m.request_id is None for m in messages if m.kind in {"nested", "claims"})


def test_a_hostile_client_gets_what_it_is_owed(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    with running_server(tmp_path, "--backend", "torch") as server:
        with hostile_process(server.address, 3000, 1500.0, seed=5) as hostile:
            report = hostile.report()
        assert server.process.poll() is None
    assert (report["messages"], report["connections"]) == (3000, 15)
    assert report["replies"] > 2500
    assert (report["unanswered"], report["surplus"]) == (0, 0)


def test_a_robot_that_fails_is_an_error_that_says_so(capfd):
    broken = reporting_process("a robot", "benchmarks.soak_robot", "too few", ends_within_s=30.0)
    with broken as robot, pytest.raises(RuntimeError, match="a robot failed"):
        robot.report()
    assert "not enough values" in capfd.readouterr().err


def chunk(request_id, actions):
    return Chunk(
        request_id=request_id,
        actions=actions,
        num_steps=1,
        timesteps=(1,),
        nfe=1,
        rows_per_call=1.0,
        deadline_met=True,
        model_id="m",
        spec_id="s",
        guidance_scale=0.0,
        eta=0.0,
        seed=0,
        timing=Timing(0.0, 0.0, 0.0, 0.0),
        due_s=0.0,
        latency_s=0.01,
        round_trip_s=0.01,
        late=False,
    )


class Client:
    """Gives each request a number, and whatever results the test has put there."""

    def __init__(self):
        self.asked, self.results, self.cancelled = 0, [], []

    def submit(self, observation, instruction):
        self.asked += 1
        return self.asked

    def cancel(self, request_id):
        self.cancelled.append(request_id)

    def poll(self, timeout_s):
        results, self.results = self.results, []
        return results


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def policy(client):
    return AuditedPolicy(client, random.Random(0))


ACTIONS = np.linspace(0.1, 0.8, 16, dtype=np.float32).reshape(8, 2)


def test_every_request_is_followed_to_its_conclusion(client, policy):
    for _ in range(5):
        policy.submit({}, "x")
    client.results = [
        chunk(1, ACTIONS),
        OverloadedError("queue: 7 ms", request_id=2),
        ConnectionLostError("gone", request_id=3),
        chunk(1, ACTIONS),  # again
    ]
    policy.poll(0.0)
    sent_s, observed_s = policy._open[4]
    policy._open[4] = sent_s - 1.0, observed_s  # as if it had been asked a second earlier
    client.results = [chunk(4, ACTIONS)]
    policy.poll(0.0)
    policy.close()  # and nothing has come of 5
    assert policy.counts == {"sent": 5, "answered": 1, "refused": 1, "disconnected": 1, "lost": 3}
    assert policy.reasons == {"queue: N ms": 1}


class Robot:
    limits = ActionLimits((-1.0, -1.0), (1.0, 1.0), (np.inf, 0.5))

    def __init__(self):
        self.applied = []

    def safe_action(self):
        return np.full(2, 0.5, np.float32)

    def observe(self):
        return {}

    def apply(self, action):
        self.applied.append(action.tolist())


@pytest.mark.realtime
def test_only_what_is_due_now_or_safe_is_let_through(client, policy):
    robot = Robot()
    audited = AuditedRobot(robot, policy, TINY_SPEC)
    audited.observe()
    policy.submit({}, "x")
    client.results = [chunk(1, ACTIONS)]
    policy.poll(0.0)
    audited.apply(ACTIONS[0])
    audited.apply(audited.safe_action())
    assert (audited.unsafe, audited.moved, audited.safe) == ([], 1, 1)
    for unsafe in (np.zeros(2), ACTIONS[7], ACTIONS[0] + 1.0, np.full(2, np.nan)):
        audited.apply(unsafe.astype(np.float32))
    assert len(audited.unsafe) == 4
    observed_s, actions = policy.chunks[0]
    policy.chunks[0] = observed_s - 1.0, actions
    audited.apply(ACTIONS[0])  # of a second ago
    assert len(audited.unsafe) == 5
    assert robot.applied[2:] == [[0.5, 0.5]] * 5


@pytest.mark.realtime
def test_a_jump_is_unsafe_and_so_is_an_answer_of_the_episode_before(client, policy):
    audited = AuditedRobot(Robot(), policy, TINY_SPEC)
    jump = np.float32([[0.1, -0.2]] * 8)
    for request_id in (1, 2):
        policy.submit({}, "x")
        client.results = [chunk(request_id, jump)]
        policy.poll(0.0)
    audited.safe_action()  # at 0.5, 0.5
    audited.apply(jump[0])
    assert len(audited.unsafe) == 1
    assert "too large a change" in audited.unsafe[0]
    audited.begin_episode()
    audited.apply(jump[0])
    assert len(audited.unsafe) == 2
    assert "due by no answer" in audited.unsafe[1]


def test_a_lost_connection_is_excused_by_an_outage_only():
    conclusions = [(10.0, 10.5, "disconnected"), (20.0, 20.5, "disconnected"), (1, 2, "answered")]
    report = {
        "counts": {"sent": 4, "answered": 1, "disconnected": 2, "lost": 1},
        "conclusions": conclusions,
        "reasons": {},
        "rejected": {},
        "unsafe": ["this"],
        "ticks": {"safe": 1, "moved": 2},
        "dropped_replies": 5,
    }
    hostile = [{"messages": 7, "connections": 1, "replies": 6, "unanswered": 1, "surplus": 2}]
    reports = [{"network": name, **report} for name in ("sound", "faulty")]
    sound, faulty, others = soak_report.rows_of(reports, [(8.0, 9.0)], hostile)
    assert (sound["lost"], sound["unsafe"]) == (2 + (5 - 2 - 1), 1)  # an answer too many, twice
    assert faulty["lost"] == 1
    assert others["lost"] == 3
    json.dumps([sound, faulty, others])
    assert sound["longest_wait_s"] == 1
    assert not soak_report.failed([sound, faulty, others])


@pytest.mark.parametrize("changed", [{"fault": 1}, {"answered": 0}, {"ticks_moved": 0}])
def test_a_robot_that_is_not_really_served_fails_the_run(changed):
    sound = {"who": "robot 1, sound network", "fault": 0, "answered": 9, "ticks_moved": 9}
    assert soak_report.failed([sound]) == []
    assert soak_report.failed([{**sound, **changed}]) == ["robot 1, sound network"]
