"""Latencies: arithmetic against slow and other implementations, the asking on a simulated clock."""

import csv
import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from benchmarks.latency import Asked, Question, ask_at_rate, measure, questions_for, write_samples
from benchmarks.server_process import running_server
from benchmarks.step_cost import (
    StepCost,
    fit_step_cost,
    largest_within,
    latency_quantile,
    samples_for,
)
from client import Chunk, ConnectionLostError, OverloadedError, ServerFaultError, Timing
from client.sims.desk.spec import DESK_SPEC
from tests.policies import TINY_SPEC, make_policy, save_checkpoint

# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 59))
def test_no_more_than_the_miss_rate_exceed_the_quantile_and_no_smaller_sample_has_that(samples, k):
    miss_rate = min(k, len(samples)) / len(samples)

    def exceed(bound):
        return sum(sample > bound for sample in samples) / len(samples)

    allowed = [bound for bound in samples if exceed(bound) <= miss_rate + 1e-12]
    if miss_rate < 1:
        assert latency_quantile(samples, miss_rate) == min(allowed)


def test_too_few_samples_say_nothing_about_a_quantile():
    samples = [0.001 * i for i in range(999)]
    assert latency_quantile(samples, 1e-3) is None
    assert latency_quantile([*samples, 5.0], 1e-3) == samples[-1]  # one of 1,000 may exceed it
    assert latency_quantile([], 0.5) is None
    assert samples_for(1e-3, beyond=2) == 2000
    assert samples_for(1e-3, beyond=10) == 10_000
    assert samples_for(0.5, beyond=2) == 100


@given(
    st.dictionaries(st.integers(1, 50), st.floats(1e-3, 1.0), min_size=1, max_size=6),
    st.floats(0, 1.1),
)
def test_largest_within_equals_a_search_through_every_count(latencies_s, budget_s):
    counts = sorted(latencies_s)
    slowest = np.maximum.accumulate([latencies_s[count] for count in counts])
    every = range(counts[0], counts[-1] + 1)
    fitting = [n for n in every if np.interp(n, counts, slowest) <= budget_s]
    found = largest_within(latencies_s, budget_s)
    if not fitting:
        assert found is None
    elif found != max(fitting):  # a budget that is met exactly is met but for rounding
        assert found is not None
        assert np.interp(max(found, *fitting), counts, slowest) == pytest.approx(budget_s)


def test_nothing_is_said_beyond_what_was_measured():
    assert largest_within({2: 0.01, 10: 0.02}, 1e9) == 10
    assert largest_within({2: 0.01, 10: 0.02}, 0.009) is None
    assert largest_within({2: 0.01, 10: 0.02}, 0.0151) == 6


@given(st.floats(0, 0.1), st.floats(1e-6, 0.1))
def test_a_line_is_found_again(fixed_s, step_s):
    exact = StepCost(fixed_s, step_s)
    found = fit_step_cost({n: exact.latency_s(n) for n in (1, 10, 300)})
    assert found.step_s == pytest.approx(step_s, rel=1e-6)
    assert found.latency_s(10) == pytest.approx(exact.latency_s(10), rel=1e-6)


@given(
    st.dictionaries(st.integers(1, 1000), st.floats(1e-3, 1.0), min_size=2, max_size=6),
)
def test_the_line_is_that_of_non_negative_least_squares(latencies_s):
    counts, values = np.array(sorted(latencies_s.items()), float).T
    columns = np.stack([1 / values, counts / values], axis=1)
    expected, _ = nnls(columns, np.ones(len(values)))
    found = fit_step_cost(latencies_s)
    assert found.fixed_s >= 0
    assert found.step_s >= 0
    error = np.linalg.norm(columns @ [found.fixed_s, found.step_s] - 1)
    assert error == pytest.approx(np.linalg.norm(columns @ expected - 1), abs=1e-6)


def test_a_line_needs_two_points():
    with pytest.raises(ValueError, match=r"at least two measured counts.*got 1"):
        fit_step_cost({5: 0.1})


@given(st.floats(0, 0.05), st.floats(1e-5, 0.01), st.floats(1e-4, 0.2))
def test_steps_within_is_the_largest_count_that_fits(fixed_s, step_s, budget_s):
    cost = StepCost(fixed_s, step_s)
    steps = cost.steps_within(budget_s, most=500)
    assert 0 <= steps <= 500
    assert steps == 0 or cost.latency_s(steps) <= budget_s * (1 + 1e-6)
    assert steps == 500 or cost.latency_s(steps + 1) > budget_s


def test_a_free_step_is_limited_by_t_alone():
    assert StepCost(0.01, 0.0).steps_within(0.02, most=1000) == 1000
    assert StepCost(0.03, 0.0).steps_within(0.02, most=1000) == 0


# ── asking at a rate, on a simulated clock ───────────────────────────────────────────────────────

PERIOD_S = 0.02
QUESTIONS = [Question({}, "do it")]


class SimulatedServer:
    """Serves in order, one at a time; all in simulated time, of which it is the clock."""

    def __init__(self, service_s, submit_s=0.0):
        self.now_s = 0.0
        self.free_s = 0.0
        self.asked = []
        self.on_the_way = []
        self.service_s = service_s
        self.submit_s = submit_s

    def submit(self, observation, instruction, *, budget_s, num_steps, due_s, **_):
        number = len(self.asked)
        self.asked.append((num_steps, due_s, self.now_s))
        service = self.service_s(number)
        sent_s = self.now_s
        if isinstance(service, Exception):
            heapq.heappush(self.on_the_way, (self.now_s, number, service))
        else:
            self.free_s = max(self.free_s, self.now_s) + service
            chunk = make_chunk(number, due_s, sent_s, self.free_s, budget_s)
            heapq.heappush(self.on_the_way, (self.free_s, number, chunk))
        self.now_s += self.submit_s
        return number

    def poll(self, timeout_s):
        until_s = self.now_s + max(timeout_s, 1e-4)
        if self.on_the_way and self.on_the_way[0][0] <= until_s:
            self.now_s = max(self.now_s, self.on_the_way[0][0])
            return [heapq.heappop(self.on_the_way)[2]]
        self.now_s = until_s
        return []


def make_chunk(number, due_s, sent_s, arrived_s, budget_s):
    return Chunk(
        request_id=number,
        actions=np.zeros((8, 2), np.float32),
        num_steps=3,
        timesteps=(3, 2, 1),
        nfe=3,
        rows_per_call=1.0,
        deadline_met=True,
        model_id="simulated",
        spec_id="s-1",
        guidance_scale=0.0,
        eta=0.0,
        seed=0,
        timing=Timing(0.0, 0.0, 0.0, 0.0),
        due_s=due_s,
        latency_s=arrived_s - due_s,
        round_trip_s=arrived_s - sent_s,
        late=arrived_s - due_s > budget_s,
    )


def ask(server, duration_s=1.0):
    return ask_at_rate(
        server,
        Asked(3, 0.0),
        QUESTIONS,
        period_s=PERIOD_S,
        duration_s=duration_s,
        seed=0,
        clock=lambda: server.now_s,
    )


def test_requests_are_due_once_a_period_and_all_are_answered():
    server = SimulatedServer(lambda _: 0.005)
    found = ask(server)
    assert found.due_requests == len(server.asked) == len(found.latencies_s) == 50
    assert [due_s for _, due_s, _ in server.asked] == pytest.approx(np.arange(50) * PERIOD_S)
    assert {steps for steps, _, _ in server.asked} == {3}
    assert (found.miss_rate, found.late, found.refused, found.lost) == (0, 0, 0, 0)
    assert found.latencies_s == pytest.approx([0.005] * 50, abs=2e-4)


def test_a_slow_answer_makes_those_after_it_late_too():
    """Back to back only one of these would be late: here the next ones wait for it."""
    server = SimulatedServer(lambda number: 0.07 if number == 10 else 0.015)
    found = ask(server)
    latencies = dict(enumerate(found.latencies_s))
    assert latencies[10] == pytest.approx(0.07, abs=1e-3)
    assert latencies[11] == pytest.approx(0.065, abs=1e-3)
    assert found.late == 11  # each wins back 5 ms of the 70
    assert found.miss_rate == pytest.approx(11 / 50)


def test_refused_and_lost_requests_are_missed():
    errors = {
        3: OverloadedError("full"),
        5: ConnectionLostError("gone"),
        6: OverloadedError("full"),
    }
    server = SimulatedServer(lambda number: errors.get(number, 0.001))
    found = ask(server)
    assert (found.late, found.refused, found.lost) == (0, 2, 1)
    assert found.miss_rate == pytest.approx(3 / 50)
    assert len(found.latencies_s) == 47


def test_what_could_not_even_be_asked_in_time_is_lost():
    server = SimulatedServer(lambda _: 0.001, submit_s=0.05)  # the client itself is too slow
    found = ask(server)
    assert found.due_requests == 50
    assert len(server.asked) + found.lost == 50
    assert found.lost > 20


def test_a_fault_is_not_a_measurement():
    server = SimulatedServer(lambda number: ServerFaultError("broken") if number == 2 else 0.001)
    with pytest.raises(ServerFaultError, match="broken"):
        ask(server)


# ── what is asked, and a real server ─────────────────────────────────────────────────────────────


def test_the_desk_is_asked_about_real_starts():
    questions = questions_for(DESK_SPEC, seed=4)
    states = [question.observation["state"] for question in questions]
    for question in questions:
        DESK_SPEC.validate_observation(question.observation)
    assert len({state.tobytes() for state in states}) == len(questions)
    assert len({question.instruction for question in questions}) == 6


def test_another_robot_is_asked_about_zeros():
    (question,) = questions_for(TINY_SPEC, seed=4)
    TINY_SPEC.validate_observation(question.observation)
    assert not question.observation["state"].any()


@pytest.mark.realtime
def test_a_case_far_over_the_budget_gets_a_quick_look_only(tmp_path):
    save_checkpoint(tmp_path, make_policy())
    cases = [Asked(1, 0.0), Asked(5, 1.0), Asked(1000, 0.0)]
    told = []
    with running_server(tmp_path, "--backend", "torch") as server:
        found = measure(
            server.address,
            cases,
            questions_for(TINY_SPEC, seed=4),
            budget_s=0.02,  # 1,000 calls take longer on any machine of today
            samples=30,
            seed=0,
            progress=told.append,
        )
    assert [len(found.answers[case]) for case in cases] == [30, 30, 5]
    assert len(found.pings) == 30
    assert sum(told) == 30 * (len(cases) + 1)
    assert 0 < min(found.answers[cases[0]]) < min(found.answers[cases[2]])


def test_samples_are_written_one_a_line(tmp_path):
    samples = [
        ({"backend": "onnx", "num_steps": 1}, [0.001, 0.25]),
        ({"backend": "torch", "num_steps": 2}, [1.0]),
    ]
    write_samples(tmp_path / "new" / "samples.csv", samples)
    with (tmp_path / "new" / "samples.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["backend", "num_steps", "latency_s"],
        ["onnx", "1", "0.001000"],
        ["onnx", "1", "0.250000"],
        ["torch", "2", "1.000000"],
    ]


def test_samples_of_unlike_things_are_refused(tmp_path):
    with pytest.raises(ValueError, match="fields not in fieldnames: 'other'"):
        write_samples(tmp_path / "samples.csv", [({"a": 1}, [0.1]), ({"other": 2}, [0.2])])
