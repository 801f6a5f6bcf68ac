"""The load generator: on a simulated clock with real messages, and against a real server."""

import math
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import fleet as fleet_module
from benchmarks.fleet import Fleet, desk_questions, drive_fleet, due_times
from benchmarks.generator import LOST_AFTER_S, OUTCOMES, Asked, Generator, Job, Notes
from benchmarks.server_process import running_server
from client import ConnectionLostError, wire
from client.errors import DeadlineError, OverloadedError, ServerFaultError, SupersededError
from client.messages import ActionChunk, ErrorReply, Timing
from client.sims.desk.spec import DESK_SPEC, TASKS
from tests.policies import make_policy, save_checkpoint

START_S = 1000.0


class Clock:
    def __init__(self):
        self.now_s = START_S - 1.0

    def __call__(self):
        return self.now_s


class Line:
    """A server in simulated time; `answer(request, now_s)` → (delay_s, reply), None for silence."""

    def __init__(self, clock, answer, *, send_s=0.0):
        self.clock, self.answer, self.send_s = clock, answer, send_s
        self.requests, self.pending = [], []

    def send(self, frames):
        request = wire.decode([bytes(frame) for frame in frames])
        self.requests.append((self.clock.now_s - START_S, request))
        told = self.answer(request, self.clock.now_s - START_S)
        if told is not None:
            delay_s, reply = told
            frames = [bytes(frame) for frame in wire.encode(reply)]
            self.pending.append((self.clock.now_s + delay_s, frames))
            self.pending.sort(key=lambda one: one[0])
        self.clock.now_s += self.send_s
        return True

    def receive(self):
        if self.pending and self.pending[0][0] <= self.clock.now_s:
            return self.pending.pop(0)[1]
        return None

    def wait(self, timeout_s):
        assert timeout_s > 0
        until_s = self.clock.now_s + timeout_s
        self.clock.now_s = min([until_s, *(at_s for at_s, _ in self.pending)])


def chunk(request, *, num_steps=10, total_s=0.001):
    return ActionChunk(
        request_id=request.request_id,
        actions=np.zeros((4, 2), np.float32),
        num_steps=num_steps,
        timesteps=tuple(reversed(range(num_steps))),
        nfe=num_steps,
        rows_per_call=2.0,
        deadline_met=True,
        model_id="simulated",
        spec_id="s-1",
        guidance_scale=0.0,
        eta=0.0,
        seed=1,
        timing=Timing(queue_s=total_s / 4, encode_s=0.0, denoise_s=total_s / 2, total_s=total_s),
    )


def refusal(request, error):
    error.request_id = request.request_id
    return ErrorReply.from_error(error)


def make_job(due_s, *, robots=1, budget_s=0.08, num_steps=None):
    due_s = np.array(due_s)
    return Job(
        Asked("nowhere", "fleet", budget_s, num_steps, None),
        robot=np.arange(len(due_s)) % robots,
        due_s=due_s,
        question=np.arange(len(due_s)) % 2,
        instruction=np.array(["open it", "close it"]),
        observation={"state": np.arange(12, dtype=np.float32).reshape(2, 2, 3)},
    )


def work(job, answer, **options):
    clock = Clock()
    line = Line(clock, answer, **options)
    notes = Generator(job, line, clock=clock, cpu_clock=clock).run(START_S)
    return notes, line


def outcomes(notes):
    return [OUTCOMES[place] for place in notes.outcome]


def test_every_request_is_sent_when_it_is_due_and_says_what_the_job_says():
    job = make_job(np.arange(-10, 40) * 0.025, robots=5)
    notes, line = work(job, lambda request, now_s: (0.2, chunk(request)))  # all are late
    np.testing.assert_allclose([at_s for at_s, _ in line.requests], job.due_s, atol=1e-9)
    assert set(outcomes(notes)) == {"late"}
    np.testing.assert_allclose(notes.settled_s, 0.2, atol=1e-9)
    sessions = [request.session_id for _, request in line.requests]
    assert sessions == [f"fleet-{robot}" for robot in job.robot]
    for number, (_, request) in enumerate(line.requests):
        assert request.instruction == ("open it", "close it")[number % 2]
        state = job.observation["state"][number % 2]
        np.testing.assert_array_equal(request.observation["state"], state)
        assert (request.num_steps, request.guidance_scale, request.seed) == (None, None, None)
    ids = [request.request_id for _, request in line.requests]
    assert ids == sorted(set(ids))


def test_what_a_stalled_server_owes_is_counted_from_when_it_was_due():
    """No coordinated omission: 50 requests fall due in half a second of silence, 43 late."""

    def answer(request, now_s):
        return (max(0.0, 1.5 - now_s) if now_s >= 1.0 else 0.0) + 0.002, chunk(request)

    due_s = np.arange(300) * 0.01 + 0.0001
    notes, _ = work(make_job(due_s, robots=10), answer)
    inside = (due_s >= 1.0) & (due_s < 1.5)
    assert inside.sum() == 50
    np.testing.assert_allclose(notes.settled_s[inside], 1.502 - due_s[inside], atol=1e-6)
    np.testing.assert_allclose(notes.settled_s[~inside], 0.002, atol=1e-6)
    late = np.array(outcomes(notes)) == "late"
    np.testing.assert_array_equal(late, inside & (1.502 - due_s > 0.08))
    assert late.sum() == 43


@pytest.mark.parametrize("num_steps", [None, 5])
def test_a_generator_that_is_behind_counts_that_too(num_steps):
    """Sending takes 30 ms and every 10 ms a request is due: each is 20 ms later than the last."""
    due_s = np.arange(20) * 0.01
    job = make_job(due_s, robots=20, num_steps=num_steps)
    notes, line = work(job, lambda request, now_s: (0.001, chunk(request)), send_s=0.03)
    on_time = [i for i, outcome in enumerate(outcomes(notes)) if outcome == "on_time"]
    assert on_time == [0, 1, 2]  # sent 0, 20, 40 ms late, answered 30 ms after that
    np.testing.assert_allclose(notes.send_delay_s[:4], [0.0, 0.02, 0.04, 0.06], atol=1e-6)
    if num_steps is None:  # as PolicyClient.submit: with nothing left it is not sent
        unsent = np.isnan(notes.send_delay_s)
        assert unsent.any()
        assert {outcomes(notes)[i] for i in np.flatnonzero(unsent)} == {"refused"}
        assert (notes.settled_s[unsent] >= 0.08).all()
        assert len(line.requests) + unsent.sum() == 20
    else:  # a fixed count is answered however late
        assert len(line.requests) == 20
        assert outcomes(notes)[4:] == ["late"] * 16
        assert all(request.budget_s == 1e-6 for _, request in line.requests[5:])


def test_the_budget_on_the_wire_leaves_room_for_the_way():
    """Answers take 11 ms and the server speaks of 3: from a robot's second on 8 are kept back."""
    job = make_job([0.0, 0.1, 0.2, 0.3], robots=2)
    _, line = work(job, lambda request, now_s: (0.011, chunk(request, total_s=0.003)))
    budgets = [request.budget_s for _, request in line.requests]
    # each of the two robots learns for itself
    assert budgets == pytest.approx([0.08, 0.08, 0.072, 0.072])


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.floats(0.0, 1.5),
            st.sampled_from([DeadlineError, OverloadedError, SupersededError]),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_every_request_has_exactly_the_outcome_it_deserves(fates):
    def answer(request, now_s):
        match fates[request.request_id]:
            case None:
                return None
            case float() as delay_s:
                return delay_s, chunk(request)
            case error:
                return 0.001, refusal(request, error("no"))

    notes, _ = work(make_job(np.arange(len(fates)) * 0.01, robots=3), answer)
    for fate, got, settled_s in zip(fates, outcomes(notes), notes.settled_s, strict=True):
        match fate:
            case None:
                assert got == "lost"
                assert math.isnan(settled_s)
            case float():
                edge = min(abs(fate - 0.08), abs(fate - 0.08 - LOST_AFTER_S))
                if edge > 1e-9:  # at the edge rounding of the clock decides
                    late = "late" if fate <= 0.08 + LOST_AFTER_S else "lost"
                    assert got == ("on_time" if fate <= 0.08 else late)
            case _:
                assert got == "refused"
                assert settled_s == pytest.approx(0.001)


def test_an_answer_is_noted_with_what_the_server_says_of_it():
    notes, _ = work(
        make_job([0.0, 0.1]),
        lambda r, now_s: (0.01, chunk(r, num_steps=7, total_s=0.008)) if now_s < 0.05 else None,
    )
    assert notes.num_steps.tolist() == [7, 0]
    assert notes.rows_per_call[0] == 2.0
    assert notes.queue_s[0] == pytest.approx(0.002)
    assert np.isnan([notes.rows_per_call[1], notes.queue_s[1]]).all()


def test_a_fault_of_the_server_ends_the_run():
    fault = ServerFaultError("the model failed")
    with pytest.raises(RuntimeError, match=r"request 0: .*the model failed"):
        work(make_job([0.0]), lambda request, now_s: (0.001, refusal(request, fault)))


def test_only_what_counts_is_in_the_processor_time():
    due_s = [-0.5, -0.25, 0.0, 0.25, 0.5]
    notes, _ = work(make_job(due_s), lambda request, now_s: (0.001, chunk(request)))
    assert float(notes.cpu_s) == pytest.approx(0.5)  # the clock stands in for the processor's


def test_a_job_and_its_notes_survive_their_files(tmp_path):
    job = make_job([-0.5, 0.5], num_steps=3)
    job.save(tmp_path)
    again = Job.load(tmp_path)
    assert again.asked == job.asked
    for name in ("robot", "due_s", "question", "instruction"):
        np.testing.assert_array_equal(getattr(again, name), getattr(job, name))
    np.testing.assert_array_equal(again.observation["state"], job.observation["state"])
    notes, _ = work(job, lambda request, now_s: (0.001, chunk(request)))
    notes.save(tmp_path)
    for name, array in vars(Notes.load(tmp_path)).items():
        np.testing.assert_array_equal(array, getattr(notes, name))


def test_what_several_processes_noted_is_one_record_without_the_warm_up():
    def answer(request, now_s):
        if request.request_id == 2:
            return 0.003, refusal(request, OverloadedError("full"))
        return (0.2 if request.request_id == 3 else 0.01), chunk(request)

    jobs = [make_job([-0.5, 0.1, 0.5, 0.7]), make_job([-0.4, 0.0, 0.2, 0.6])]
    notes = [work(job, answer)[0] for job in jobs]
    record = fleet_module._merged(jobs, notes, 7.0)
    np.testing.assert_allclose(record.due_s, [0.0, 0.1, 0.2, 0.5, 0.6, 0.7])
    assert record.outcome.tolist() == [*["on_time"] * 2, *["refused"] * 2, *["late"] * 2]
    nan = math.nan
    np.testing.assert_allclose(record.latency_s, [0.01, 0.01, nan, nan, 0.2, 0.2], atol=1e-9)
    np.testing.assert_allclose(record.refusal_s, [nan, nan, 0.003, 0.003, nan, nan], atol=1e-9)
    assert record.num_steps.tolist() == [10, 10, 0, 0, 10, 10]
    assert record.started_at_s == 7.0
    assert record.cpu_s == pytest.approx((0.7 - 0.1) + (0.6 - 0.0))


def make_fleet(**fields):
    options = {
        "robots": 7,
        "rate_hz": 10.0,
        "budget_s": 0.08,
        "duration_s": 3.0,
        "num_steps": None,
        "guidance_scale": None,
    }
    return Fleet(**{**options, **fields})


def test_robots_are_due_at_their_own_phase_and_exactly_periodic():
    robot, due_s = due_times(make_fleet())
    assert (np.diff(due_s) >= 0).all()
    assert due_s.min() >= -1.0
    phases = set()
    for number in range(7):
        mine = due_s[robot == number]
        assert len(mine) == 40  # a second of warming up, three that count
        assert (mine >= 0).sum() == 30
        np.testing.assert_allclose(np.diff(mine), 0.1)
        phases.add(round(mine[0] % 0.1, 6))
    assert len(phases) == 7
    again = due_times(make_fleet())[1]
    np.testing.assert_array_equal(again, due_s)
    assert not np.array_equal(due_times(make_fleet(seed=7))[1], due_s)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"robots": 0}, "robots: expected at least 1, got 0"),
        ({"rate_hz": 0.0}, "rate_hz: expected more than 0"),
        ({"budget_s": -0.1}, "budget_s: expected more than 0"),
        ({"duration_s": math.nan}, "duration_s: expected more than 0"),
        ({"duration_s": 0.05}, "duration_s: expected at least one period of 0.1 s"),
    ],
)
def test_impossible_fleets_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        make_fleet(**fields)


def test_robots_are_divided_among_processes_and_go_through_the_questions_in_order():
    questions = desk_questions(50, seed=3)
    fleet = make_fleet()
    jobs = fleet_module._jobs("nowhere", fleet, questions, 3)
    assert sorted({int(r) for job in jobs for r in job.robot}) == list(range(7))
    assert sum(len(set(job.robot.tolist())) for job in jobs) == 7
    assert sum(len(job.due_s) for job in jobs) == 7 * 40
    for job in jobs:
        for robot in set(job.robot.tolist()):
            steps = np.diff(job.question[job.robot == robot]) % 50
            assert (steps == 1).all()
    assert len(fleet_module._jobs("nowhere", make_fleet(robots=2), questions, 5)) == 2


def test_questions_are_what_experts_see_on_their_way():
    questions = desk_questions(40, seed=3)
    for question in questions:
        DESK_SPEC.validate_observation(question.observation)
    assert 2 <= len({question.instruction for question in questions}) <= 2 * len(TASKS)
    states = np.array([question.observation["state"][-1] for question in questions])
    assert len(np.unique(states.round(6), axis=0)) == 40
    # within an episode the hand is on its way, and a history is two different moments of it
    moved = [not np.array_equal(*question.observation["state"]) for question in questions]
    assert 30 <= sum(moved) < 40  # at its start an episode repeats its first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, make_policy())
    return folder


@pytest.fixture(scope="module")
def null_server(folder):
    options = ("--backend", "torch", "--engine", "null")
    with running_server(folder, *options, module="benchmarks.baseline_server") as server:
        yield server


@pytest.mark.realtime
@pytest.mark.parametrize("processes", [1, 2])
def test_a_fleet_against_a_real_server_that_answers_at_once(null_server, processes):
    fleet = make_fleet(robots=10, rate_hz=20.0, duration_s=1.5, budget_s=0.5)
    seen = []
    begun_s = time.monotonic()
    record = drive_fleet(null_server.address, fleet, processes=processes, watch=seen.append)
    assert len(record.due_s) == 10 * 20 * 1.5
    assert (np.diff(record.due_s) >= 0).all()
    assert record.due_s[0] >= 0
    assert begun_s + 1.0 < record.started_at_s < time.monotonic()
    np.testing.assert_array_equal(np.bincount(record.robot), 30)
    answered = ~np.isnan(record.latency_s)
    # a machine that does something else for a while may spoil some
    assert answered.mean() > 0.9
    assert (record.outcome[answered & (record.latency_s <= 0.5)] == "on_time").all()
    assert set(record.num_steps[answered]) == {1}
    assert (record.latency_s[answered] > record.send_delay_s[answered]).all()
    assert (record.queue_s[answered] < record.latency_s[answered]).all()
    assert (record.rows_per_call[answered] == 1.0).all()
    assert 0 < record.cpu_s < 1.5 * processes
    assert min(seen) < 0 < max(seen)


@pytest.mark.realtime
def test_a_server_that_stops_for_a_while_misses_all_that_falls_due_meanwhile(null_server):
    stopped_s = []

    def stop_and_go(run_s):
        if run_s > 0.5 and not stopped_s:
            os.kill(null_server.process.pid, signal.SIGSTOP)
            stopped_s.append(time.monotonic())
        if run_s > 1.1 and len(stopped_s) == 1:
            stopped_s.append(time.monotonic())
            os.kill(null_server.process.pid, signal.SIGCONT)

    try:
        fleet = make_fleet(robots=10, rate_hz=20.0, duration_s=2.0, budget_s=0.1)
        record = drive_fleet(null_server.address, fleet, watch=stop_and_go)
    finally:
        os.kill(null_server.process.pid, signal.SIGCONT)
    stop_s, go_s = (at_s - record.started_at_s for at_s in stopped_s)
    inside = (record.due_s > stop_s) & (record.due_s < go_s)
    assert inside.sum() > 60
    waited_s = go_s - record.due_s[inside]
    settled_s = np.fmax(record.latency_s[inside], record.refusal_s[inside])
    lost = record.outcome[inside] == "lost"
    assert (settled_s[~lost] >= waited_s[~lost] - 1e-3).all()
    assert not (record.outcome[inside][waited_s > 0.1] == "on_time").any()


@pytest.mark.realtime
def test_without_a_server_there_is_no_run(monkeypatch):
    monkeypatch.setattr(fleet_module, "_CONNECTED_WITHIN_S", 0.3)
    with pytest.raises(ConnectionLostError):
        drive_fleet("tcp://127.0.0.1:1", make_fleet())
