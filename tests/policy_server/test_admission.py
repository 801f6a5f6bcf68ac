"""Who is let in, what is promised by that, and how overload is shared, in simulated time."""

from collections import Counter
from itertools import chain, groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import DeadlineError, OverloadedError
from policy_server.requests import Answer
from tests.policy_server.simulation import NullBackend, World

PERIOD_S = 0.1
MAX_CALL_S = 0.003
SHARED = {"fixed_s": 0.001, "call_s": 0.0001, "encode_s": 0.00002}
"""A machine on which company pays: 19 rows in one call of 3 ms, 1.2 ms for one guided request."""
FAST = {"fixed_s": 0.0003, "call_s": 0.00005, "encode_s": 0.00002}
"""The same with 54 rows."""
LONELY = {"fixed_s": 0.0, "call_s": 0.0005, "encode_s": 0.00002}
"""Rows cost the same in any company; one guided request a call."""
ODD = {"fixed_s": 0.001, "call_s": 0.0006, "encode_s": 0.00002}
"""Three rows a call: room for one guided request, and half a one."""
ENCODING = {**SHARED, "encode_s": 0.0005}
"""Encoding takes longer than the steps."""


def machine(durations, **options):
    """A world that computes nothing and has made some calls already."""
    options = {"max_in_flight": 128, "max_call_s": MAX_CALL_S, **options}
    world = World(backend=NullBackend, **options, **durations)
    world.run(world.request(num_steps=5, session="warm-up", guidance_scale=1.0))
    return world


def capacity(durations, steps, rows=2):
    """Requests a second that all of the time is enough for, in calls of `MAX_CALL_S`."""
    fixed_s, row_s = durations["fixed_s"], durations["call_s"]
    together = max(1, int(min((MAX_CALL_S - fixed_s) / row_s, 10 * fixed_s / row_s) / rows))
    step_s = fixed_s / together + rows * row_s
    return 1 / (steps * step_s + durations["encode_s"])


def robots(world, count, seconds, *, begin_s=0.0, name="robot", seed=0, **wish):
    """Requests of periodic robots, each with a phase of its own that it keeps."""
    wish = {"budget_s": PERIOD_S, "guidance_scale": 1.0, "value": 0.0, **wish}
    start_s = world.clock() + begin_s
    phases_s = np.random.default_rng(seed).uniform(0, PERIOD_S, count)
    return [
        (start_s + phase_s + number * PERIOD_S, {"session": f"{name} {robot}", **wish})
        for robot, phase_s in enumerate(phases_s)
        for number in range(round(seconds / PERIOD_S))
    ]


def by_time(*arrivals):
    return sorted(chain(*arrivals), key=lambda arrival: arrival[0])


def of(outcomes, name):
    return [o for o in outcomes if o.request.key[0].startswith(name)]


def answers(outcomes):
    return [o for o in outcomes if isinstance(o, Answer)]


def in_time(outcomes):
    return [o for o in answers(outcomes) if o.deadline_met]


def mean_steps(outcomes):
    return np.mean([len(o.timesteps) for o in answers(outcomes)])


# ── overload ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("durations", "wish"),
    [
        (SHARED, {}),
        (SHARED, {"budget_s": 0.02}),
        (FAST, {"budget_s": 0.03}),
        (SHARED, {"num_steps": 5}),
        (ODD, {}),
        (ENCODING, {}),
        (LONELY, {}),
        (LONELY, {"num_steps": 5}),
        (ODD, {"guidance_scale": 0.0}),
    ],
    ids=[
        "elastic",
        "tight",
        "tight-fast",
        "fixed",
        "odd",
        "encoding",
        "lonely",
        "lonely-fixed",
        "odd-unguided",
    ],
)
def test_at_three_times_the_load_nobody_starves_and_nothing_is_wasted(durations, wish):
    world, seconds = machine(durations), 6
    rows = 1 if "guidance_scale" in wish else 2
    carried = capacity(durations, wish.get("num_steps", 2), rows)
    count = round(3 * carried * PERIOD_S)
    outcomes = world.serve(by_time(robots(world, count, seconds, **wish)))
    good = Counter(o.request.key[0] for o in in_time(outcomes))
    served = [good[f"robot {robot}"] for robot in range(count)]
    assert sum(served) >= 0.9 * carried * seconds
    assert len(in_time(outcomes)) >= 0.99 * len(answers(outcomes))  # what is let in is in time
    assert min(served) >= 0.5 * np.mean(served)


@pytest.mark.parametrize("durations", [SHARED, LONELY], ids=["shared", "lonely"])
@pytest.mark.parametrize(
    "wish", [{"num_steps": 20}, {"best_effort": True}, {"num_steps": 20, "best_effort": True}]
)
def test_late_requests_come_to_an_end_under_load_and_make_nobody_else_late(durations, wish):
    world, seconds = machine(durations), 2
    count = round(0.8 * capacity(durations, 10) * PERIOD_S)
    late = [
        (world.clock() + 0.5 + 0.1 * n, {"session": f"late {n}", "budget_s": 0.001, **wish})
        for n in range(5)
    ]
    outcomes = world.serve(by_time(robots(world, count, seconds, num_steps=10), late))
    for answer in of(outcomes, "late"):
        assert isinstance(answer, Answer)
        assert len(answer.timesteps) == wish.get("num_steps", 2)
        # none of its steps waits for more than some 40 calls
        assert answer.denoise_s + answer.queue_s <= len(answer.timesteps) * 40 * MAX_CALL_S
    regular = of(outcomes, "robot")
    assert len(in_time(regular)) >= 0.995 * len(regular)


@pytest.mark.parametrize("durations", [SHARED, LONELY], ids=["shared", "lonely"])
@pytest.mark.parametrize("late_ones", [16, 100])
def test_however_many_are_late_the_others_are_served_as_if_they_were_not_there(
    durations, late_ones
):
    world, seconds = machine(durations), 2.0
    late = [
        (world.clock() + 0.2, {"session": f"late {n}", "num_steps": 500, "budget_s": 0.01})
        for n in range(late_ones)
    ]
    arrivals = by_time(robots(world, 5, seconds, begin_s=0.3, budget_s=0.03), late)
    outcomes = world.serve(arrivals, until_s=world.clock() + 0.3 + seconds)
    regular = of(outcomes, "robot")
    assert len(in_time(regular)) == len(regular) > 90
    assert max(answer.queue_s for answer in regular) <= 2 * MAX_CALL_S


@pytest.mark.parametrize("budget_s", [PERIOD_S, 20.0])
def test_one_session_that_asks_for_everything_keeps_nobody_else_out(budget_s):
    world, seconds = machine(SHARED), 3.0
    start_s = world.clock()
    greedy = [
        (start_s + 0.005 * n, {"session": "greedy", "num_steps": 1000, "budget_s": budget_s})
        for n in range(600)
    ]
    arrivals = by_time(robots(world, 10, seconds - 0.3, begin_s=0.3), greedy)
    outcomes = world.serve(arrivals, until_s=start_s + seconds)
    regular = of(outcomes, "robot")
    assert len(in_time(regular)) == len(regular) > 250


# ── back to normal ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("jitter", "stall_share"), [(0.0, 0.0), (0.3, 0.0), (0.1, 0.01)])
@pytest.mark.parametrize(
    "durations", [SHARED, FAST, LONELY, ENCODING], ids=["shared", "fast", "lonely", "encoding"]
)
def test_after_overload_service_is_normal_within_one_request_period(durations, jitter, stall_share):
    world, overload_s = machine(durations), 1.0
    rng = np.random.default_rng(1)
    world.backend.pace = lambda: (
        rng.lognormal(0, jitter) * (10 if rng.random() < stall_share else 1)
    )
    crowd = robots(world, round(3 * capacity(durations, 2) * PERIOD_S), overload_s, budget_s=0.08)
    light = robots(world, 2, 3.0, name="light", seed=1, budget_s=0.08)
    over_s = world.clock() + overload_s
    outcomes = world.serve(by_time(crowd, light))
    crowded = of(outcomes, "robot")
    assert len(in_time(crowded)) < 0.5 * len(crowded)
    after = [o for o in of(outcomes, "light") if o.request.deadline_s > over_s + PERIOD_S]
    assert len(after) > 35
    for outcome in after:
        assert isinstance(outcome, Answer)
        assert outcome.deadline_met
        assert len(outcome.timesteps) == 10


@pytest.mark.parametrize("factor", [5, 50])
@pytest.mark.parametrize(
    "durations", [SHARED, FAST, LONELY, ENCODING], ids=["shared", "fast", "lonely", "encoding"]
)
def test_when_a_neighbour_leaves_that_made_calls_slow_service_recovers(durations, factor):
    """Five times slower there are fewer steps at most; fifty times, not even those fit any more."""
    world = machine(durations)
    start_s, over_s = world.clock(), world.clock() + 2
    answered_s, normal_s = (PERIOD_S, PERIOD_S) if factor == 5 else (0.5, 3.0)
    world.backend.pace = lambda: factor if start_s + 1 < world.clock() < over_s else 1.0
    outcomes = world.serve(by_time(robots(world, 3, 6.0, budget_s=0.08)))
    before = [o for o in outcomes if o.request.deadline_s < start_s + 1]
    answered = [o for o in outcomes if o.request.arrived_s > over_s + answered_s]
    assert len(in_time(before + answered)) == len(before + answered)
    normal = [o for o in answered if o.request.arrived_s > over_s + normal_s]
    assert all(len(answer.timesteps) == 10 for answer in before + normal)


# ── at ordinary load ─────────────────────────────────────────────────────────────────────────────


def poisson(world, rate, seconds, **wish):
    rng = np.random.default_rng(2)
    wish = {"guidance_scale": 1.0, "value": 0.0, "budget_s": PERIOD_S, **wish}
    times_s = world.clock() + np.cumsum(rng.exponential(1 / rate, round(rate * seconds)))
    return [(t, {"session": f"robot {n}", **wish}) for n, t in enumerate(times_s.tolist())]


@pytest.mark.parametrize("wish", [{}, {"num_steps": 5}], ids=["elastic", "fixed"])
@pytest.mark.parametrize("load", [0.3, 0.9])
def test_the_first_row_of_a_newcomer_runs_within_the_longest_call_and_one_more(wish, load):
    world = machine(SHARED)
    rate = load * capacity(SHARED, wish.get("num_steps", 2))
    late = [(world.clock() + 0.5, {"session": "late", "num_steps": 1000, "budget_s": 0.01})]
    outcomes = world.serve(by_time(poisson(world, rate, 2.0, **wish), late))
    waits_s = [o.queue_s for o in of(answers(outcomes), "robot")]
    assert max(waits_s) <= 2 * MAX_CALL_S


@pytest.mark.parametrize("durations", [SHARED, LONELY], ids=["shared", "lonely"])
def test_the_more_robots_the_fewer_steps_and_nobody_gets_nothing(durations):
    steps = []
    for load in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        world = machine(durations)
        count = round(load * capacity(durations, 2) * PERIOD_S)
        outcomes = world.serve(by_time(robots(world, count, 2.0)))
        assert len(in_time(outcomes)) == len(outcomes)
        steps.append(mean_steps(outcomes))
        # as many steps as the time is enough for, less what jitter of arrivals costs
        assert steps[-1] >= min(10, 0.7 * 2 / load)
    assert steps[0] == 10
    assert all(fewer <= more + 0.1 for more, fewer in pairwise(steps))
    assert steps[-1] < 2.5


@pytest.mark.parametrize("durations", [SHARED, FAST], ids=["shared", "fast"])
@pytest.mark.parametrize("load", [0.3, 0.4])
def test_steps_are_shared_evenly(durations, load):
    world = machine(durations)
    count = round(load * capacity(durations, 2) * PERIOD_S)
    outcomes = answers(world.serve(by_time(robots(world, count, 3.0))))
    low, high = np.quantile([len(answer.timesteps) for answer in outcomes], [0.05, 0.95])
    assert high <= 1.7 * low
    outcomes.sort(key=lambda answer: answer.request.key[0])
    means = [mean_steps(its) for _, its in groupby(outcomes, lambda answer: answer.request.key[0])]
    assert len(means) == count
    assert min(means) >= 0.75 * np.mean(means)


@pytest.mark.xfail(reason="known: what an earlier deadline leaves over is shared out only later")
@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.sampled_from([SHARED, FAST, LONELY]),
    st.floats(0.02, 0.2),
    st.sampled_from([0.0, 1.0]),
)
def test_equal_requests_that_arrive_together_get_equal_steps(count, durations, budget_s, w):
    world = machine(durations)
    requests = [
        world.request(budget_s, f"robot {n}", value=0.0, guidance_scale=w) for n in range(count)
    ]
    outcomes = world.run(*requests)
    assert len(in_time(outcomes)) == len(answers(outcomes))
    counts = [len(answer.timesteps) for answer in answers(outcomes)]
    assert not counts or max(counts) - min(counts) <= 1
    # who is refused would have made the others late
    if len(counts) < count:
        assert max(counts, default=2) == 2


# ── what is promised ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wish", [{"num_steps": 990}, {"num_steps": 990, "best_effort": True}])
def test_one_who_will_be_late_in_any_case_keeps_no_newcomer_out(wish):
    world = machine(SHARED)
    assert world.engine.submit(world.request(0.001, "late", **wish)) == []
    assert world.engine.submit(world.request(0.08, "newcomer")) == []
    outcomes = {o.request.key[0]: o for o in world.finish()}
    assert outcomes["newcomer"].deadline_met
    assert not outcomes["late"].deadline_met


def test_refused_newcomers_of_a_session_whose_late_request_waits_keep_nobody_out():
    world = machine(SHARED)
    assert world.engine.submit(world.request(0.001, "late", num_steps=990)) == []
    for _ in range(20):
        (refusal,) = world.engine.submit(world.request(0.0001, "late"))
        assert isinstance(refusal.error, DeadlineError)
    assert world.engine.submit(world.request(0.08, "newcomer")) == []


def test_a_late_request_that_waits_gives_its_place_to_a_newer_one_of_its_session():
    world = machine(LONELY, max_in_flight=2)
    for _ in range(5):
        older = world.request(0.001, "robot", num_steps=50, guidance_scale=1.0)
        outcomes = world.engine.submit(older)
        assert older not in [outcome.request for outcome in outcomes]
    (answer,) = world.finish()
    assert answer.request is older


def test_best_effort_makes_nobody_late_to_whom_time_was_promised():
    world = machine(LONELY, min_steps=4, max_useful_steps=4)
    promised = world.request(0.0105, "promised", guidance_scale=1.0)
    effort = world.request(0.0095, "effort", guidance_scale=1.0, best_effort=True)
    # 4 steps of 1 ms each, twice; then twice more, which is too much
    assert world.engine.submit(promised) == []
    assert world.engine.submit(world.request(0.0104, "also", guidance_scale=1.0)) == []
    assert world.engine.submit(effort) == []
    outcomes = {o.request.key[0]: o for o in world.finish()}
    assert outcomes["promised"].deadline_met
    assert outcomes["also"].deadline_met
    assert isinstance(outcomes["effort"], Answer)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.floats(0.004, 0.08), st.sampled_from([0.0, 1.0]), st.sampled_from([None, 4])),
        max_size=20,
    ),
    st.floats(0.001, 0.08),
    st.sampled_from([SHARED, LONELY]),
)
def test_a_budget_that_is_too_small_is_told_one_that_is_not(inside, budget_s, durations):
    world = machine(durations)
    for number, (other_s, w, num_steps) in enumerate(inside):
        wish = {"guidance_scale": w, "num_steps": num_steps}
        world.engine.submit(world.request(other_s, f"other {number}", **wish))
    refusals = world.engine.submit(world.request(budget_s, "newcomer"))
    if refusals and isinstance(error := refusals[0].error, DeadlineError):
        assert error.soonest_s > budget_s
        assert world.engine.submit(world.request(error.soonest_s * 1.0001, "newcomer")) == []


def test_a_session_that_was_never_served_gets_the_place_of_one_that_always_was():
    world = machine(LONELY, min_steps=4)
    for _ in range(10):
        (answer,) = world.run(world.request(0.005, "spoilt", guidance_scale=1.0))
        assert isinstance(answer, Answer)
    spoilt = world.request(0.0055, "spoilt", guidance_scale=1.0)
    assert world.engine.submit(spoilt) == []
    (gave_way,) = world.engine.submit(world.request(0.0055, "poor", guidance_scale=1.0))
    assert gave_way.request is spoilt
    assert isinstance(gave_way.error, OverloadedError)
    (answer,) = world.finish()
    assert answer.request.key[0] == "poor"
    assert answer.deadline_met


def test_nobody_gives_way_to_one_who_cannot_be_served_even_so():
    world = machine(LONELY, min_steps=4)
    for _ in range(10):
        world.run(world.request(0.005, "spoilt", guidance_scale=1.0))
    spoilt = world.request(0.0055, "spoilt", guidance_scale=1.0)
    assert world.engine.submit(spoilt) == []
    (refusal,) = world.engine.submit(world.request(0.0035, "hopeless", guidance_scale=1.0))
    assert refusal.request.key[0] == "hopeless"
    (refusal,) = world.engine.submit(world.request(0.0055, "spoilt", guidance_scale=1.0))
    assert refusal.request is spoilt  # superseded: nothing but its own promise was in the way
    (answer,) = world.finish()
    assert answer.deadline_met


def test_who_has_begun_or_was_promised_long_ago_does_not_give_way():
    for moment in ("begun", "long ago"):
        world = machine(LONELY, min_steps=10)
        for _ in range(10):
            world.run(world.request(0.02, "spoilt", guidance_scale=1.0))
        spoilt = world.request(0.06, "spoilt", guidance_scale=1.0, num_steps=52)
        assert world.engine.submit(spoilt) == []
        if moment == "begun":
            world.engine.advance()
        else:
            world.clock.now_s += 0.006
        (refusal,) = world.engine.submit(world.request(0.012, "poor", guidance_scale=1.0))
        assert refusal.request.key[0] == "poor"


def test_after_a_stall_newcomers_are_let_in_by_the_time_that_is_left_then():
    world = machine(LONELY, min_steps=8)
    promised = world.request(0.08, "promised", num_steps=30, guidance_scale=1.0)
    assert world.engine.submit(promised) == []
    paces = iter([1.0, 45.0])  # encoding, and the first of its 30 steps of 1 ms
    world.backend.pace = lambda: next(paces, 1.0)
    world.engine.advance()
    # 29 ms of work and 34 ms left: 8 ms more are too much
    (refusal,) = world.engine.submit(world.request(0.02, "newcomer", guidance_scale=1.0))
    assert refusal.request.key[0] == "newcomer"
    (answer,) = world.finish()
    assert answer.deadline_met
