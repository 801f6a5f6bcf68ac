"""Numbers for Prometheus, read over HTTP from a real server, and from one that stands still."""

import re
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server_process import running_server
from client import DeadlineError, InvalidRequestError, PolicyClient
from policy_server.cost_model import CostModel
from policy_server.metrics import Metrics, MetricsServer
from tests.policies import make_policy, save_checkpoint


def read(port, path="metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return answer.read().decode()


def samples(text):
    return {
        (sample.name.removeprefix("policy_server_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_every_request_is_counted_by_what_became_of_it(tmp_path, port):
    save_checkpoint(tmp_path, make_policy(), min_steps=2, max_useful_steps=8)
    observation = {"state": np.zeros((2, 3), np.float32)}
    options = ("--backend", "torch", "--metrics-port", str(port))
    with running_server(tmp_path, *options) as server, PolicyClient(server.address) as policy:
        for _ in range(3):
            policy.act(observation, "x", budget_s=2.0, num_steps=5, timeout_s=5)
        policy.act(observation, "x", budget_s=0.0001, num_steps=100, timeout_s=5)
        with pytest.raises(DeadlineError):
            policy.act(observation, "x", budget_s=0.0004, timeout_s=5)
        with pytest.raises(InvalidRequestError):
            policy.act(observation, "x", budget_s=1.0, num_steps=5000, timeout_s=5)
        seen = samples(read(port))
        assert read(port, "healthz") == "ok\n"
    assert seen["requests_total", "on_time"] == 3
    assert seen["requests_total", "late"] == 1
    assert seen["requests_total", "deadline"] == 1
    assert seen["requests_total", "invalid_request"] == 1
    assert seen["num_steps_sum",] == 3 * 5 + 100
    assert seen["rows_per_call_count",] == 4
    for stage in ("queue", "encode", "denoise", "total"):
        assert seen["seconds_count", stage] == 4
    total, denoise = seen["seconds_sum", "total"], seen["seconds_sum", "denoise"]
    assert 0 < denoise < total < 5
    assert seen["model_info", "tiny"] == 1
    assert 0.1 < seen["slowdown",] < 100


def test_a_loop_that_stands_still_is_not_healthy():
    now_s = [10.0]
    metrics = Metrics("m", CostModel([1, 2], [0.001, 0.002]), lambda: now_s[0])
    with MetricsServer(metrics, 0) as server:
        metrics.turned()
        now_s[0] += 0.9
        assert read(server.port, "healthz") == "ok\n"
        now_s[0] += 0.2
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            read(server.port, "healthz")
        caught.value.close()
        assert samples(read(server.port))["slowdown",] == 1.0  # the numbers are there all the same
    with pytest.raises(OSError, match=r"refused|reset"):
        read(server.port)


def test_a_model_that_takes_over_is_what_is_told_from_then_on():
    metrics = Metrics("one", CostModel([1, 2], [0.001, 0.002]))
    other = CostModel([1, 2], [0.001, 0.002])
    for _ in range(64):
        other.observe_call(1, 0.004, 0.004)
    with MetricsServer(metrics, 0) as server:
        assert samples(read(server.port))["model_info", "one"] == 1
        metrics.replace_model("two", other)
        seen = samples(read(server.port))
    assert ("model_info", "one") not in seen
    assert seen["model_info", "two"] == 1
    assert seen["slowdown",] == other.slowdown > 1


def test_a_port_that_is_taken_is_named():
    metrics = Metrics("m", CostModel([1, 2], [0.001, 0.002]))
    with (
        MetricsServer(metrics, 0) as server,
        pytest.raises(OSError, match=re.escape(f"--metrics-port {server.port}")),
    ):
        MetricsServer(metrics, server.port)


def test_it_is_on_loopback_only():
    with MetricsServer(Metrics("m", CostModel([1, 2], [0.001, 0.002])), 0) as server:
        assert server._server.server_address[0] == "127.0.0.1"
