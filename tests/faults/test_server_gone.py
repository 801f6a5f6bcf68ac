"""The server is killed, stopped, replaced: what the robot does, and how soon all is well again.

    pytest --log-cli-level=INFO tests/faults/test_server_gone.py

says the times; with POLICY_SERVER_LONG_TESTS=1 the server is killed more often.
"""

import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.server_process import running_server
from client import ConnectionLostError, PolicyClient
from tests.faults.driving import (
    INSTRUCTION,
    PERIOD_S,
    SPEC,
    TIMEOUT_S,
    Drive,
    check,
)
from tests.policies import make_policy, save_checkpoint

BACK_WITHIN_S = 1.0
KILLS = 6 if os.environ.get("POLICY_SERVER_LONG_TESTS") else 1
OBSERVATION = {"state": np.zeros((2, 3), np.float32)}
SLOW = {"num_steps": 1000, "budget_s": 10.0}
"""A request that is not over in 50 ms."""

log = logging.getLogger(__name__)


def assert_held(drive, since_s):
    """After a fault: what is due of the last chunk is executed, and in the next tick it holds.

    By ticks, since these may be late on a test machine.
    """
    answered = [r for r in drive.stats.requests if r.outcome in ("on_time", "late")]
    t_obs_s = max(r.due_s for r in answered if r.due_s < since_s)
    after = [c for c in drive.commands if c.at_s >= since_s]
    age = [round((c.tick_s - t_obs_s) / PERIOD_S) for c in after]
    executed = [c for c, ticks in zip(after, age, strict=True) if ticks < SPEC.horizon]
    held = after[len(executed)]
    log.info(
        "%d actions of the last chunk executed after the fault, held %.4f s after it was over",
        len(executed),
        held.at_s - (t_obs_s + SPEC.horizon * PERIOD_S),
    )
    assert not any(c.is_safe for c in executed)
    assert held.is_safe


def assert_back(drive, since_s):
    """The robot executes what the server answers again."""
    drive.wait(lambda: not drive.commands[-1].is_safe)
    back_s = drive.first(since_s, safe=False) - since_s
    log.info("driven again %.3f s after the server was there", back_s)
    assert back_s < BACK_WITHIN_S


@pytest.mark.realtime
def test_killed_and_restarted_with_another_model(folder, tmp_path, caplog):
    other = make_policy(spec=SPEC, seed=1)
    save_checkpoint(tmp_path, other, model_id="other")
    with ExitStack() as stack:
        server = stack.enter_context(running_server(folder, "--backend", "torch"))
        drive = stack.enter_context(Drive(server.address))
        for _ in range(KILLS):
            drive.wait_driven()
            server.process.kill()
            killed_s = time.monotonic()
            drive.wait(lambda: drive.commands[-1].is_safe)
            assert_held(drive, killed_s)
            restart = running_server(tmp_path, "--backend", "torch", bind=server.address)
            server = stack.enter_context(restart)
            assert_back(drive, since_s=time.monotonic())
    check(drive, make_policy(spec=SPEC), other)
    assert drive.stats.outcomes["lost"] > 0
    assert drive.stats.unmatched == 0
    assert {r.model_id for r in drive.stats.requests} == {"tiny", "other", None}
    assert "answers are of model other now, no more of tiny" in caplog.text


@pytest.mark.realtime
@pytest.mark.skipif(KILLS == 1, reason="client/test_policy_client.py has it without a process")
def test_restarted_with_a_model_of_another_robot_nothing_of_it_is_executed(
    folder, tmp_path, caplog
):
    torques = replace(SPEC, action_names=("torque_1", "torque_2"))
    save_checkpoint(tmp_path, make_policy(spec=torques), model_id="torques")
    with ExitStack() as stack:
        server = stack.enter_context(running_server(folder, "--backend", "torch"))
        drive = stack.enter_context(Drive(server.address))
        drive.wait_driven()
        server.process.kill()
        stack.enter_context(running_server(tmp_path, "--backend", "torch", bind=server.address))
        ready_s = time.monotonic()
        drive.wait(lambda: drive.stats.outcomes["fault"] >= 5)
        assert all(c.is_safe for c in drive.commands if c.at_s >= ready_s)
    check(drive)
    assert "requests are now fault: reply: expected actions of tiny's specification" in caplog.text


@pytest.mark.realtime
def test_stopped_for_a_second_and_gone_on(server):
    with Drive(server.address) as drive:
        drive.wait_driven()
        server.process.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        time.sleep(1.0)
        server.process.send_signal(signal.SIGCONT)
        assert_back(drive, since_s=time.monotonic())
        assert_held(drive, stopped_s)
        drive.wait_driven()
    check(drive)
    assert drive.stats.unmatched == 0


def test_killed_in_mid_request_whoever_waits_is_told_in_time(folder):
    with (
        running_server(folder, "--backend", "torch") as server,
        PolicyClient(server.address) as policy,
    ):
        policy.metadata(timeout_s=5.0)
        threading.Timer(0.05, server.process.kill).start()
        for ask in (
            lambda: policy.act(OBSERVATION, INSTRUCTION, **SLOW, timeout_s=TIMEOUT_S),
            lambda: policy.ping(timeout_s=TIMEOUT_S),
            lambda: policy.metadata(timeout_s=TIMEOUT_S),
        ):
            began_s = time.monotonic()
            with pytest.raises(ConnectionLostError):
                ask()
            assert TIMEOUT_S <= time.monotonic() - began_s < TIMEOUT_S + 0.2
        assert server.process.wait(1.0) == -signal.SIGKILL
