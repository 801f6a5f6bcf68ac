"""The engine in simulated time: steps given, refusals, order, faults; every request one outcome."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import (
    DeadlineError,
    OverloadedError,
    ServerFaultError,
    SupersededError,
)
from policy_server.requests import Answer, Refusal
from tests.policy_server.simulation import (
    ALPHA_BAR,
    World,
    acts,
    budget_for,
    expected_actions,
    expected_actions_2m,
    value_of,
)

LAST_STEP = (0.0, 1.0, 0.0, 0.0)
"""(a, b, c, d) of a step that ends at alpha_bar = 1."""


def check_trajectory(world, answer):
    """What was executed falls strictly from T − 1, ends in clean data, and is what is told."""
    calls = world.executed(answer.request)
    assert tuple(t for t, _ in calls) == answer.timesteps
    assert answer.timesteps[0] == 999
    assert all(a > b for a, b in itertools.pairwise(answer.timesteps))
    assert calls[-1][1] == pytest.approx(LAST_STEP, abs=1e-7)
    np.testing.assert_allclose(
        answer.actions, expected_actions(answer.request, answer.timesteps), atol=1e-5
    )


def test_with_time_to_spare_a_request_gets_all_useful_steps_and_no_more():
    world = World(max_useful_steps=10)
    (answer,) = world.run(world.request(budget_s=10.0))
    assert len(answer.timesteps) == 10
    assert answer.nfe == 10
    assert answer.deadline_met
    check_trajectory(world, answer)


@pytest.mark.parametrize(("w", "rows"), [(0.0, 1), (-1.0, 1), (1.5, 2)])
def test_little_time_gives_as_many_steps_as_fit(w, rows):
    world = World()
    # 0.5 ms encoding, then 1 ms a network row
    budget_s = budget_for(0.0005 + 0.0061 * rows)
    (answer,) = world.run(world.request(budget_s=budget_s, guidance_scale=w))
    assert len(answer.timesteps) == 6
    assert answer.nfe == 6 * rows
    assert answer.deadline_met
    check_trajectory(world, answer)


@pytest.mark.parametrize("interval", [(0.0, 0.9), (0.5, 1.0), (0.4, 0.8)])
def test_beyond_the_noise_levels_at_which_guidance_acts_one_row_is_enough(interval):
    world = World(guidance_interval=interval, max_call_s=0.05)
    asked = [
        world.request(10.0, f"robot {w} {n}", num_steps=n, guidance_scale=w)
        for w in (0.0, -1.0, 1.5)
        for n in (7, 10)
    ]
    for company in (asked[-1:], asked):  # several steps a call, and one in which rows differ
        again = [dataclasses.replace(r, key=(r.key[0], r.key[1] + 10)) for r in company]
        for answer in world.run(*again):
            request, steps = answer.request, answer.timesteps
            expected = expected_actions(request, steps, interval)
            np.testing.assert_allclose(answer.actions, expected, atol=1e-5)
            two = request.guidance_scale == 1.5
            guided = sum(acts(request, t, interval) for t in steps) if two else 0
            assert answer.nfe == len(steps) + guided
            assert not two or 0 < guided < len(steps)


def test_what_is_planned_again_in_mid_flight_is_guided_where_it_should_be():
    interval = (0.3, 0.97)
    world = World(min_steps=2, max_useful_steps=40, guidance_interval=interval)
    wish = {"budget_s": 0.2, "guidance_scale": 1.5}
    first = world.request(session="first", **wish)
    world.engine.submit(first)
    for _ in range(5):
        world.engine.advance()
    others = [world.request(session=f"other {n}", **wish) for n in range(5)]
    assert [refusal for request in others for refusal in world.engine.submit(request)] == []
    answers = world.finish()
    assert len(answers) == 6
    (again,) = [answer for answer in answers if answer.request is first]
    assert 5 < len(again.timesteps) < 40
    assert again.timesteps[-1] > 100  # the last of forty steps would have been from 24
    for answer in answers:
        expected = expected_actions(answer.request, answer.timesteps, interval)
        np.testing.assert_allclose(answer.actions, expected, atol=1e-5)
        guided = sum(acts(answer.request, t, interval) for t in answer.timesteps)
        assert answer.nfe == len(answer.timesteps) + guided


def test_what_cannot_have_min_steps_is_refused_at_once_with_the_soonest_time():
    world = World(min_steps=4)
    before = len(world.backend.calls)
    (refusal,) = world.engine.submit(world.request(budget_s=0.0039))
    assert isinstance(refusal.error, DeadlineError)
    assert "cannot meet deadline" in str(refusal.error)
    assert refusal.error.soonest_s == pytest.approx(0.0045, rel=0.05)
    assert len(world.backend.calls) == before
    assert not world.engine.busy
    # and the time that was named is enough
    (answer,) = world.run(world.request(budget_s=refusal.error.soonest_s * 1.01))
    assert answer.deadline_met
    assert len(answer.timesteps) == 4


def test_best_effort_is_answered_late_with_min_steps():
    world = World(min_steps=4)
    (answer,) = world.run(world.request(budget_s=0.001, best_effort=True))
    assert len(answer.timesteps) == 4
    assert not answer.deadline_met
    check_trajectory(world, answer)


def test_a_fixed_count_is_never_shortened_and_is_answered_late():
    world = World()
    (answer,) = world.run(world.request(budget_s=0.01, num_steps=50))
    assert len(answer.timesteps) == 50
    assert not answer.deadline_met
    check_trajectory(world, answer)


def test_when_calls_become_slow_in_mid_flight_the_rest_is_shortened():
    world = World(max_useful_steps=40, max_call_s=0.001)
    world.engine.submit(world.request(budget_s=budget_for(0.05)))
    for _ in range(6):  # encoding and five steps
        world.engine.advance()
    world.backend.call_s = 0.010
    (answer,) = world.finish()
    assert 5 < len(answer.timesteps) < 12
    check_trajectory(world, answer)


def test_when_calls_become_fast_in_mid_flight_steps_are_added():
    world = World(max_useful_steps=40, max_call_s=0.001)
    world.engine.submit(world.request(budget_s=budget_for(0.021)))
    world.engine.advance()
    planned = 1 + int(world.engine._rows.steps_left.max())
    world.backend.call_s = 0.0002
    (answer,) = world.finish()
    assert planned == 20
    assert len(answer.timesteps) > planned
    assert answer.deadline_met
    check_trajectory(world, answer)


def test_after_a_long_pause_fewer_steps_are_given_and_in_the_end_as_many_as_before():
    world = World(max_useful_steps=100)

    def steps_given():
        (answer,) = world.run(world.request(budget_s=budget_for(0.020)))
        return len(answer.timesteps)

    calm = [steps_given() for _ in range(5)]
    pauses = iter([1.0] * 5 + [8.0] + [1.0] * 10_000)
    world.backend.pace = lambda: next(pauses)
    steps_given()
    after = [steps_given() for _ in range(100)]
    assert max(after[:10]) <= calm[-1] - 3  # 10 ms instead of 6
    assert after[-1] == calm[-1]


def test_num_steps_of_all_timesteps_and_of_one():
    world = World()
    (all_steps,) = world.run(world.request(budget_s=10.0, num_steps=1000))
    assert all_steps.timesteps == tuple(range(999, -1, -1))
    (one,) = world.run(world.request(num_steps=1))
    assert one.timesteps == (999,)
    check_trajectory(world, one)


def test_earliest_deadline_first():
    world = World()
    requests = [
        world.request(budget_s=budget_s, session=session)
        for session, budget_s in (("late", 0.3), ("soon", 0.1), ("middle", 0.2))
    ]
    order = [outcome.request.key[0] for outcome in world.run(*requests)]
    assert order == ["soon", "middle", "late"]


def test_a_newer_request_supersedes_a_waiting_one_of_its_session_only():
    world = World()
    running, old, other, new = (world.request(session=session) for session in ("a", "a", "b", "a"))
    assert world.engine.submit(running) == []
    world.engine.advance()
    assert world.engine.submit(old) == []
    assert world.engine.submit(other) == []
    (refusal,) = world.engine.submit(new)
    assert refusal.request is old
    assert isinstance(refusal.error, SupersededError)
    answered = [outcome.request for outcome in world.finish()]
    assert sorted(r.key for r in answered) == sorted(r.key for r in (running, other, new))


def test_a_full_queue_refuses_the_newcomer():
    world = World(max_in_flight=2)
    for session in "ab":
        assert world.engine.submit(world.request(budget_s=10, session=session)) == []
    (refusal,) = world.engine.submit(world.request(budget_s=10, session="c"))
    assert isinstance(refusal.error, OverloadedError)
    assert len(world.finish()) == 2


def test_admission_counts_the_work_that_is_ahead():
    world = World(min_steps=10)
    world.engine.submit(world.request(budget_s=0.012, session="first"))
    (refusal,) = world.engine.submit(world.request(budget_s=0.015, session="second"))
    assert refusal.error.soonest_s == pytest.approx(0.021, rel=0.05)
    assert world.engine.submit(world.request(budget_s=0.022, session="third")) == []
    assert all(outcome.deadline_met for outcome in world.finish())


def test_whoever_is_in_service_leaves_the_others_what_they_were_promised():
    world = World(min_steps=2, max_useful_steps=40)
    patient = world.request(budget_s=1.0, session="patient")
    world.engine.submit(patient)
    for _ in range(4):  # encoding and three steps
        world.engine.advance()
    urgent = world.request(budget_s=0.006, session="urgent")
    assert world.engine.submit(urgent) == []
    answers = {outcome.request.key[0]: outcome for outcome in world.finish()}
    assert answers["urgent"].deadline_met
    assert len(answers["urgent"].timesteps) >= 2
    assert len(answers["patient"].timesteps) == 40
    check_trajectory(world, answers["urgent"])


def test_a_waiting_request_is_refused_when_its_time_runs_out_not_when_its_turn_comes():
    world = World(min_steps=4, max_call_s=0.002)  # two rows
    for session in "ab":
        world.engine.submit(world.request(budget_s=0.04, num_steps=10, session=session))
    waiting = world.request(budget_s=0.06, session="short")
    assert world.engine.submit(waiting) == []
    world.backend.call_s = 0.030
    outcomes = []
    while not outcomes:
        outcomes = world.engine.advance()
    assert outcomes[0].request is waiting
    assert isinstance(outcomes[0].error, DeadlineError)
    assert world.clock() <= waiting.deadline_s + 0.061  # one call
    assert world.executed(waiting) == []
    assert [len(answer.timesteps) for answer in world.finish()] == [10, 10]


def test_a_newcomer_that_is_refused_supersedes_nothing():
    world = World()
    good = world.request(budget_s=0.08)
    assert world.engine.submit(good) == []
    (refusal,) = world.engine.submit(world.request(budget_s=0.001))
    assert isinstance(refusal.error, DeadlineError)
    (answer,) = world.finish()
    assert answer.request is good


def test_an_older_request_does_not_supersede_a_newer_one():
    world = World()
    older, newer = world.request(), world.request()
    assert world.engine.submit(newer) == []
    (refusal,) = world.engine.submit(older)
    assert refusal.request is older
    assert isinstance(refusal.error, SupersededError)
    (answer,) = world.finish()
    assert answer.request is newer


def test_after_an_answer_there_is_nothing_to_give_up():
    world = World()
    world.run(world.request())
    assert world.engine.fail(ServerFaultError("late")) == []


def test_a_budget_of_aeons_is_only_a_large_one():
    world = World()
    (answer,) = world.run(world.request(budget_s=1e300))
    assert len(answer.timesteps) == 10


def test_a_waiting_request_whose_time_has_run_out_is_refused_not_begun():
    world = World()
    world.engine.submit(world.request(budget_s=0.02, session="a"))
    world.clock.now_s += 1.0  # a stall
    (refusal,) = world.finish()
    assert isinstance(refusal.error, DeadlineError)
    assert world.backend.calls == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_sample_is_a_fault_of_that_request_alone(bad):
    world = World()
    good, poisoned = (world.request(session=session) for session in "ab")
    world.backend.poison[value_of(poisoned)] = bad
    outcomes = {outcome.request.key[0]: outcome for outcome in world.run(good, poisoned)}
    assert isinstance(outcomes["b"], Refusal)
    assert isinstance(outcomes["b"].error, ServerFaultError)
    check_trajectory(world, outcomes["a"])
    (answer,) = world.run(world.request())  # in the slot of the poisoned one
    check_trajectory(world, answer)


@pytest.mark.parametrize("where", ["encode", "step"])
def test_after_an_exception_only_who_caused_it_is_given_up(where):
    world = World(max_in_flight=4)
    requests = [world.request(session=s, budget_s=1.0, num_steps=5) for s in "abcd"]
    for request in requests:
        assert world.engine.submit(request) == []
    value = value_of(requests[2])
    world.backend.poison[value if where == "step" else ("encode", value)] = RuntimeError("boom")
    outcomes, raised = [], 0
    while world.engine.busy:
        try:
            outcomes += world.engine.advance()
        except RuntimeError:
            raised += 1
            outcomes += world.engine.fail(ServerFaultError("the model failed"))
    assert raised == 2  # in company, and alone
    assert world.engine.fail(ServerFaultError("again")) == []
    outcomes = {outcome.request.key[0]: outcome for outcome in outcomes}
    assert isinstance(outcomes.pop("c").error, ServerFaultError)
    assert set(outcomes) == set("abd")
    for answer in outcomes.values():
        check_trajectory(world, answer)


def test_when_actions_cannot_be_made_of_what_is_done_only_that_is_given_up():
    world = World(max_in_flight=4)
    requests = [
        world.request(session=s, budget_s=1.0, num_steps=n)
        for s, n in zip("abc", (5, 5, 7), strict=True)
    ]
    for request in requests:
        assert world.engine.submit(request) == []
    world.backend.fault = lambda method: RuntimeError("boom") if method == "to_actions" else None
    outcomes = []
    while not outcomes:
        try:
            outcomes += world.engine.advance()
        except RuntimeError:
            world.backend.fault = lambda _method: None
            outcomes += world.engine.fail(ServerFaultError("the model failed"))
    assert {o.request.key[0] for o in outcomes} <= {"a", "b"}
    outcomes += world.finish()
    assert [o.request.key[0] for o in outcomes][-1] == "c"
    assert len(outcomes) == 3
    check_trajectory(world, outcomes[-1])


def test_refusals_that_were_due_are_not_lost_when_the_call_after_them_fails():
    world = World()
    healthy = world.request(budget_s=1.0, num_steps=5, session="a")
    hopeless = world.request(budget_s=0.02, session="b")
    assert world.engine.submit(healthy) == world.engine.submit(hopeless) == []
    world.clock.now_s += 0.5
    world.backend.poison[value_of(healthy)] = RuntimeError("boom")
    outcomes = []
    while world.engine.busy:
        try:
            outcomes += world.engine.advance()
        except RuntimeError:
            outcomes += world.engine.fail(ServerFaultError("the model failed"))
    errors = {o.request.key[0]: type(o.error) for o in outcomes}
    assert errors == {"a": ServerFaultError, "b": DeadlineError}


def test_newcomers_are_not_encoded_at_the_cost_of_one_who_is_in_a_hurry():
    """Three at once, 0.3 ms of encoding each: the urgent one is in time with what it was given."""
    world = World(fixed_s=0.0005, call_s=0.00005, encode_s=0.0003)
    world.run(world.request())
    urgent = world.request(budget_s=budget_for(0.00386), session="urgent")
    patient = [world.request(budget_s=0.03, session=s, guidance_scale=1.0) for s in "ab"]
    outcomes = {o.request.key[0]: o for o in world.run(urgent, *patient)}
    assert all(outcome.deadline_met for outcome in outcomes.values())
    assert len(outcomes["urgent"].timesteps) >= 4


def test_same_seed_and_steps_same_chunk_whatever_ran_in_between():
    world = World()
    requests = [world.request(seed=5, num_steps=7, eta=1.0, session=s, value=0.1) for s in "ab"]
    (one,) = world.run(requests[0])
    world.run(world.request(seed=9, eta=0.5))
    (two,) = world.run(requests[1])
    np.testing.assert_allclose(one.actions, two.actions, atol=1e-6)
    (other,) = world.run(world.request(seed=6, num_steps=7, eta=1.0, value=0.1))
    assert not np.allclose(one.actions, other.actions, atol=1e-2)


def multistep_world(**options):
    return World(sampler="dpmpp_2m", grid="logsnr", **options)


def check_2m(answer):
    assert all(a > b for a, b in itertools.pairwise(answer.timesteps))
    np.testing.assert_allclose(
        answer.actions,
        expected_actions_2m(answer.request, answer.timesteps),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "fields", [{"num_steps": n} for n in (1, 2, 7, 30)] + [{"num_steps": None}]
)
def test_a_2m_request_gets_the_actions_of_a_plain_loop(fields):
    world = multistep_world()
    (answer,) = world.run(world.request(budget_s=1.0, **fields))
    assert len(answer.timesteps) == (fields["num_steps"] or 10)
    check_2m(answer)


@pytest.mark.parametrize(
    ("before_s", "after_s", "fewest", "most", "stretched"),
    [
        (0.001, 0.002, 15, 30, False),
        (0.001, 0.008, 8, 12, True),  # over twice as long a step as the one before
        (0.002, 0.0007, 26, 40, False),
    ],
)
def test_a_2m_request_that_is_re_planned_goes_on_from_its_last_prediction(
    before_s, after_s, fewest, most, stretched
):
    world = multistep_world(max_useful_steps=40, call_s=before_s, max_call_s=min(before_s, after_s))
    world.engine.submit(world.request(budget_s=budget_for(0.05)))
    for _ in range(6):  # encoding and five steps
        world.engine.advance()
    world.backend.call_s = after_s
    (answer,) = world.finish()
    assert fewest <= len(answer.timesteps) <= most
    alpha_bar = ALPHA_BAR[list(answer.timesteps)]
    steps = dict(zip(answer.timesteps, np.diff(np.log(alpha_bar / (1 - alpha_bar))), strict=False))
    long = [t for before, t in itertools.pairwise(steps) if steps[t] > 2 * steps[before]]
    assert bool(long) == stretched
    check_2m(answer)


@pytest.mark.parametrize("poison", [{}, {9.0: np.nan}, {9.0: np.inf}])
def test_the_prediction_of_one_2m_request_does_not_leak_into_the_next(poison):
    """One slot, one x0_prev buffer: whoever was served before, an answer is the same."""
    world = multistep_world()
    alone = world.request(seed=3, value=0.2, num_steps=6)
    (expected,) = world.run(alone)
    world.backend.poison.update(poison)
    world.run(world.request(seed=4, value=9.0, num_steps=9))
    (answer,) = world.run(world.request(seed=3, value=0.2, num_steps=6))
    np.testing.assert_array_equal(answer.actions, expected.actions)
    check_2m(answer)


@given(
    st.floats(0.005, 0.1),  # budget
    st.lists(st.floats(0.0001, 0.02), min_size=1, max_size=40),  # what each call takes
)
def test_a_2m_request_gets_the_actions_of_its_executed_timesteps_whatever_calls_take(
    budget_s, calls_s
):
    world = multistep_world(max_useful_steps=30)
    request = world.request(budget_s=budget_s, best_effort=True)
    outcomes = world.engine.submit(request)
    for call_s in itertools.cycle(calls_s):
        if outcomes:
            break
        world.backend.call_s = call_s
        outcomes = world.engine.advance()
    check_2m(outcomes[0])


def test_timing_adds_up():
    world = World()
    (answer,) = world.run(world.request(num_steps=10))
    assert answer.queue_s == 0
    assert answer.encode_s == pytest.approx(0.0005)
    assert answer.denoise_s == pytest.approx(0.010)


@pytest.mark.parametrize("requests", [1, 3])
def test_when_all_take_part_several_steps_are_made_but_no_longer_than_a_call_may_take(requests):
    world = World(max_call_s=0.004, fixed_s=0.001, call_s=1e-5, encode_s=1e-4)
    for steps in (10, 12, 14)[:requests]:
        world.engine.submit(world.request(session=f"robot {steps}", num_steps=steps))
    durations, outcomes = [], []
    while world.engine.busy:
        begun_s = world.clock()
        outcomes += world.engine.advance()
        durations.append(world.clock() - begun_s)
    assert 0.003 < max(durations) < 0.0041
    assert [len(answer.timesteps) for answer in outcomes] == [10, 12, 14][:requests]
    assert len(world.backend.calls) == len(outcomes[-1].timesteps)  # all in every call
    assert len(durations) < len(world.backend.calls) / 2
    for answer in outcomes:
        check_trajectory(world, answer)


def test_when_somebody_waits_for_the_next_call_it_comes_after_one_step():
    world = World(max_call_s=0.004)  # a call of two rows
    for robot in range(3):
        world.engine.submit(world.request(session=f"robot {robot}", num_steps=4))
    for calls in range(1, 4):
        world.engine.advance()
        assert len(world.backend.calls) == calls


@pytest.mark.parametrize(("budget_s", "slow"), [(0.0078, 10), (0.0143, 20), (0.0803, 150)])
def test_a_machine_that_was_slow_for_a_while_is_found_to_be_fast_again(budget_s, slow):
    """Costs are learnt from those who are served: if all were refused, nothing would be learnt."""
    world = World(min_steps=5)

    def one_a_period():
        outcomes = world.run(world.request(budget_s=budget_s))
        world.clock.now_s += 0.02
        return all(isinstance(o, Answer) and o.deadline_met for o in outcomes)

    assert all(one_a_period() for _ in range(20))
    calm_s, world.backend.call_s = world.backend.call_s, world.backend.call_s * slow
    for _ in range(60):
        one_a_period()
    world.backend.call_s = calm_s
    assert all([one_a_period() for _ in range(20)][2:])


def test_idle_time_is_not_taken_for_the_price_of_a_call():
    world = World()
    for _ in range(300):
        world.run(world.request(num_steps=3, budget_s=1.0))
        world.engine.advance()  # as the reactor does whether there is work or not
        world.clock.now_s += 1.0
    assert world.cost.per_call_s < 0.001
    assert world.cost.stall_s < 0.001


def test_pauses_while_encoding_do_not_make_calls_small():
    """Three thousand short requests a second; every third encoding is stopped for 4 ms."""
    world = World(
        min_steps=1,
        max_useful_steps=1,
        max_in_flight=128,
        fixed_s=0.0001,
        call_s=0.00001,
        encode_s=0.00002,
    )
    encode, calls = world.backend.encode, itertools.count()

    def pausing(*args):
        encode(*args)
        world.clock.now_s += 0.004 * (next(calls) % 3 == 0)

    world.backend.encode = pausing
    begun_s, outcomes = world.clock(), []
    for number in range(3000):
        due_s = begun_s + number / 3000
        while world.engine.busy and world.clock() < due_s:
            outcomes += world.engine.advance()
        world.clock.now_s = max(world.clock.now_s, due_s)
        outcomes += world.engine.submit(world.request(0.08, str(number % 300)))
    outcomes += world.finish()
    in_time = [o for o in outcomes if isinstance(o, Answer) and o.deadline_met]
    assert len(in_time) > 0.95 * 3000
