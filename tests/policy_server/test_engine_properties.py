"""The engine in random worlds: whatever arrives, calls take and fails, what must hold does."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import (
    CancelledError,
    DeadlineError,
    OverloadedError,
    ServerFaultError,
    SupersededError,
)
from models.samplers import takes_eta
from policy_server.requests import Answer
from tests.policy_server.simulation import (
    World,
    expected_actions,
    expected_actions_2m,
    value_of,
)

MIN_STEPS, MAX_USEFUL_STEPS = 2, 10
LAST_STEP = (0.0, 1.0, 0.0, 0.0)
"""(a, b, c, d) of a step that ends at alpha_bar = 1."""


@dataclass(frozen=True)
class Machine:
    """What calls take: a fixed part, a part for each row, jitter on both and a stall now and then.

    Whoever is inside at one time is bounded by `max_in_flight`.
    """

    fixed_s: float
    call_s: float
    encode_s: float
    finish_s: float
    jitter: float
    stall_share: float
    seed: int
    max_in_flight: int
    max_call_s: float

    def world(self, **options):
        world = World(
            MIN_STEPS,
            MAX_USEFUL_STEPS,
            self.max_in_flight,
            self.max_call_s,
            fixed_s=self.fixed_s,
            call_s=self.call_s,
            encode_s=self.encode_s,
            finish_s=self.finish_s,
            **options,
        )
        rng = np.random.default_rng(self.seed)

        def pace():
            stalls = rng.random() < self.stall_share
            return rng.lognormal(0, self.jitter) * (rng.uniform(5, 50) if stalls else 1)

        world.backend.pace = pace
        return world


machines = st.builds(
    Machine,
    fixed_s=st.sampled_from([0.0, 0.0002, 0.002]),
    call_s=st.sampled_from([0.00001, 0.0002, 0.001]),
    encode_s=st.sampled_from([0.00001, 0.0005, 0.004]),
    finish_s=st.sampled_from([0.0, 0.0003]),
    jitter=st.sampled_from([0.0, 0.1, 0.5]),
    stall_share=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 1000),
    max_in_flight=st.integers(1, 8),
    max_call_s=st.sampled_from([0.0005, 0.003, 0.02]),
)
wishes = st.fixed_dictionaries(
    {
        "session": st.sampled_from("abcdef"),
        "budget_s": st.one_of(st.floats(0.0005, 0.05), st.floats(0.05, 1.0)),
        "num_steps": st.sampled_from([None, None, None, 1, 3, 30]),
        "guidance_scale": st.sampled_from([0.0, -1.0, 0.5, 2.0]),
        "eta": st.sampled_from([0.0, 0.4, 1.0]),
        "seed": st.integers(0, 3),
        "best_effort": st.booleans(),
    }
)
faults = st.sampled_from(["encode", "step", "to_actions"])
mishaps = st.one_of(
    st.tuples(st.just("cancel"), st.integers(0, 4)),
    st.tuples(st.just("fault"), faults),
    st.tuples(st.just("poison"), st.sampled_from(["raise", "encode", "nan"])),
    st.tuples(st.just("pause"), st.floats(0.001, 0.2)),
)
happenings = st.integers(0, 5).flatmap(lambda number: wishes if number else mishaps)
# most things happen at once: bursts
stories = st.lists(
    st.tuples(st.sampled_from([0, 0, 0.001, 0.02]), happenings), min_size=10, max_size=40
)


class Ledger:
    """Everything that was sent and every outcome; looks into the engine after every move."""

    def __init__(self, world):
        self.world, self.engine, self.backend = world, world.engine, world.backend
        self.sent, self.outcomes, self.raised = {}, {}, 0
        self.next_is = None  # what is wrong with the next request
        self.actions_failed = False
        self.faults = []  # methods that raise once, the next time they are called
        self.backend.fault = self._fault

    def _fault(self, method):
        if method not in self.faults:
            return None
        self.faults.remove(method)
        return RuntimeError(method)

    def take(self, outcomes):
        for outcome in outcomes:
            key = outcome.request.key
            assert outcome.request is self.sent[key]
            assert key not in self.outcomes, "answered twice"
            self.outcomes[key] = outcome
            if isinstance(outcome, Answer):
                assert outcome.finished_s == self.world.clock()
        self._look_inside()

    def send(self, request):
        self.sent[request.key] = request
        self.take(self.engine.submit(request))

    def advance(self):
        try:
            self.take(self.engine.advance())
        except RuntimeError:
            self.raised += 1
            self.take(self.engine.fail(ServerFaultError("the model failed")))

    def finish(self):
        for _ in range(20_000):
            if not self.engine.busy:
                return
            self.advance()
        raise AssertionError("the engine does not come to an end")

    def pass_time(self, gap_s):
        clock = self.world.clock
        until_s = clock() + gap_s
        while self.engine.busy and clock() < until_s:
            self.advance()
        clock.now_s = max(clock(), until_s)

    def happen(self, happening, takes_eta):
        match happening:
            case dict():
                eta = happening["eta"] if takes_eta else 0.0
                request = self.world.request(**{**happening, "eta": eta})
                match self.next_is:
                    case "raise":
                        self.backend.poison[value_of(request)] = RuntimeError("step")
                    case "encode":
                        self.backend.poison["encode", value_of(request)] = RuntimeError("encode")
                    case "nan":
                        self.backend.poison[value_of(request)] = np.nan
                self.next_is = None
                self.send(request)
            case "cancel", index:
                key = [("nobody", 0), *self.sent][-1 - index :][0]  # one of the latest
                was_inside = key in self.sent and key not in self.outcomes
                cancelled = self.engine.cancel(key)
                assert len(cancelled) == was_inside
                self.take(cancelled)
            case "fault", method:
                self.faults.append(method)
                self.actions_failed |= method == "to_actions"
            case "poison", kind:
                self.next_is = kind
            case "pause", pause_s:
                self.world.clock.now_s += pause_s

    def check_blame(self):
        """A failure costs one request, found by trying alone; of finished ones it may be all."""
        blamed = [
            outcome
            for outcome in self.outcomes.values()
            if not isinstance(outcome, Answer) and str(outcome.error) == "the model failed"
        ]
        assert len(blamed) <= self.raised or self.actions_failed

    def _look_inside(self):
        engine, rows = self.engine, self.engine._rows
        inside = self.sent.keys() - self.outcomes.keys()
        assert set(engine._slot_of) == inside
        assert len(inside) <= rows.size
        used = np.flatnonzero(rows.used).tolist()
        assert sorted(engine._slot_of.values()) == used
        assert sorted(rows._free + used) == list(range(rows.size))
        assert engine._suspects <= set(used)
        waiting = {key for key, slot in engine._slot_of.items() if not rows.begun[slot]}
        assert {r.key for r in engine._admission._waiting.values()} == waiting


def check_refusal(refusal):
    request, error = refusal.request, refusal.error
    assert type(error) in {
        CancelledError,
        DeadlineError,
        OverloadedError,
        ServerFaultError,
        SupersededError,
    }
    if isinstance(error, DeadlineError):
        assert not request.patient
        assert error.soonest_s > 0
    if isinstance(error, OverloadedError) and request.best_effort:
        assert any(why in str(error) for why in ("inside already", "late already", "shutting down"))


def check_answer(ledger, answer, oracle):
    """The plan that was executed, what is told of it, and the actions, from the backend's log."""
    request, steps = answer.request, answer.timesteps
    calls = [call for call in ledger.backend.calls if value_of(request) in call]
    executed = [call[value_of(request)] for call in calls]
    assert tuple(t for t, _ in executed) == steps
    assert all(a > b for a, b in itertools.pairwise(steps))
    assert executed[-1][1] == pytest.approx(LAST_STEP, abs=1e-7)
    if request.num_steps is None:
        assert MIN_STEPS <= len(steps) <= MAX_USEFUL_STEPS
    else:
        assert len(steps) == request.num_steps
    assert answer.nfe == len(steps) * (1 if request.guidance_scale in {0, -1} else 2)
    assert answer.rows_per_call == pytest.approx(np.mean([len(call) for call in calls]))
    assert answer.deadline_met == (answer.finished_s <= request.deadline_s)
    parts = (answer.queue_s, answer.encode_s, answer.denoise_s)
    assert min(parts) >= 0
    assert sum(parts) <= answer.finished_s - request.arrived_s + 1e-9
    assert answer.actions.dtype == np.float32
    np.testing.assert_allclose(answer.actions, oracle(request, steps), atol=2e-4)


@pytest.mark.parametrize(
    ("sampler", "grid", "oracle"),
    [("ddim", "trailing", expected_actions), ("dpmpp_2m", "logsnr", expected_actions_2m)],
)
@settings(max_examples=100)
@given(machines, stories, st.sampled_from([False, False, True]))
def test_whatever_happens_every_request_has_one_outcome_and_answers_tell_the_truth(
    sampler, grid, oracle, machine, story, drained
):
    world = machine.world(sampler=sampler, grid=grid)
    ledger = Ledger(world)
    for gap_s, happening in story:
        ledger.pass_time(gap_s)
        ledger.happen(happening, takes_eta(sampler))
    if drained:
        ledger.take(world.engine.drain())
        assert not world.engine._admission._waiting
    ledger.finish()
    assert ledger.sent.keys() == ledger.outcomes.keys()
    assert not world.engine._suspects
    for outcome in ledger.outcomes.values():
        if isinstance(outcome, Answer):
            check_answer(ledger, outcome, oracle)
            value = value_of(outcome.request)
            assert {value, ("encode", value)}.isdisjoint(world.backend.poison)
        else:
            check_refusal(outcome)
    ledger.check_blame()


@settings(max_examples=60)
@given(
    machines,
    st.lists(wishes, min_size=1, max_size=7),
    st.sampled_from([("ddim", "trailing"), ("dpmpp_2m", "logsnr")]),
    st.integers(1, 30),
)
def test_same_seed_and_steps_the_same_chunk_alone_and_in_any_company(
    machine, others, sampler, num_steps
):
    options = {"sampler": sampler[0], "grid": sampler[1]}
    eta = 0.7 if sampler[0] == "ddim" else 0.0
    wish = {"value": 0.3, "seed": 5, "num_steps": num_steps, "eta": eta, "best_effort": True}
    alone = machine.world(**options)
    (expected,) = alone.run(alone.request(guidance_scale=1.5, **wish))
    company = machine.world(**options)
    outcomes = []
    for number, other in enumerate(others):
        eta = other["eta"] if sampler[0] == "ddim" else 0.0
        outcomes += company.engine.submit(company.request(**{**other, "eta": eta}))
        if number == len(others) // 2:
            request = company.request(guidance_scale=1.5, session="me", **wish)
            outcomes += company.engine.submit(request)
            outcomes += company.engine.advance()
    outcomes += company.finish()
    (mine,) = [o for o in outcomes if o.request is request]
    if isinstance(mine, Answer):  # there may be no room for it
        np.testing.assert_array_equal(mine.actions, expected.actions)
        assert mine.timesteps == expected.timesteps
    else:
        assert "inside already" in str(mine.error) or "late already" in str(mine.error)


def any_order_saves_all(work_s, budgets_s, together):
    """Exhaustive: whether all can be in time, one after another or all at the same time."""
    if together:
        return all(work <= budget for work, budget in zip(work_s, budgets_s, strict=True))
    return any(
        all(
            end_s <= budgets_s[i]
            for i, end_s in zip(order, itertools.accumulate(work_s[i] for i in order), strict=True)
        )
        for order in itertools.permutations(range(len(work_s)))
    )


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("best_effort", [False, True])
@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1)), min_size=1, max_size=4))
def test_with_all_there_from_the_start_nobody_is_late_whom_another_order_would_have_saved(
    together, best_effort, wishes
):
    """Guided requests in calls of 2 ms, of one request each or of any number of them."""
    durations = {"fixed_s": 0.002, "call_s": 0.0} if together else {"call_s": 0.001}
    world = World(encode_s=0.0, **durations)
    world.run(world.request(session="warm-up"))  # from now on it knows how large calls may be
    spread_s = 0.0 if together else 0.002 * sum(n for n, _ in wishes)
    work_s = [0.002 * n for n, _ in wishes]
    # floats: nobody's deadline is within a nanosecond of the end of a call
    budgets_s = [
        work + round(slack * spread_s, 6) + 1e-7
        for work, (_, slack) in zip(work_s, wishes, strict=True)
    ]
    requests = [
        world.request(
            budget_s,
            f"robot {i}",
            num_steps=wishes[i][0],
            guidance_scale=1.0,
            best_effort=best_effort,
        )
        for i, budget_s in enumerate(budgets_s)
    ]
    outcomes = world.run(*requests)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    if any_order_saves_all(work_s, budgets_s, together):
        assert all(answer.deadline_met for answer in answers)
        # without `best_effort` a queue may be refused that is too long for comfort
        assert len(answers) == len(requests) or not (best_effort or together)
