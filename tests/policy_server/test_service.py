"""What becomes of requests between socket and engine, with a sentence encoder that can be held."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest

from client import InvalidRequestError, OverloadedError, ServerFaultError
from client.errors import PolicyError
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    ErrorReply,
    Metadata,
    MetadataReply,
    MetadataRequest,
    PingRequest,
    Pong,
    SamplingDefaults,
)
from client.specs import ArraySpec, PolicySpec
from policy_server.instruction_cache import InstructionCache
from policy_server.service import Service
from tests.policy_server.simulation import CHUNK, World

SPEC = PolicySpec(
    task="simulated",
    observation={"state": ArraySpec((1, 3), "float32")},
    action_names=("a", "b"),
    action_minimum=(-1.0, -1.0),
    action_maximum=(1.0, 1.0),
    horizon=CHUNK[0],
    obs_steps=1,
    exec_steps=2,
    control_period_s=0.01,
)


class Encoder:
    """Counts its calls, waits while it is held, and fails on demand."""

    def __init__(self):
        self.free = threading.Event()
        self.free.set()
        self.texts = []

    def __call__(self, texts):
        assert self.free.wait(10)
        self.texts.extend(texts)
        if "fail" in texts:
            raise RuntimeError("secret path")
        return np.zeros((len(texts), 3), np.float32)


class Rig:
    def __init__(self, fixed_s=0.0, **limits):
        self.world = World(fixed_s=fixed_s)
        self.encoder = Encoder()
        self.cache = InstructionCache(self.encoder, **limits)
        self.replies = []
        metadata = Metadata(
            model_id="simulated",
            spec_id="s-1",
            spec=SPEC,
            min_steps=2,
            max_useful_steps=10,
            max_steps=1000,
            defaults=SamplingDefaults(0.5, 0.25, "ddim", "trailing"),
            limits={
                "max_in_flight": 3,
                "max_in_flight_per_client": 4,
                "max_guidance_scale": 100.0,
            },
            protocol_version=1,
            backend="simulated",
            server_version="0",
        )
        self.service = Service(
            self.world.engine,
            self.cache,
            metadata,
            self.world.clock,
            lambda address, reply: self.replies.append((address, reply)),
        )

    def act(self, request_id, instruction="known", session="s", value=0.25, unread_s=0.0, **fields):
        fields = {"budget_s": 1.0, **fields}
        observation = {"state": np.full((1, 3), value, np.float32)}
        request = ActRequest(session, request_id, observation, instruction, **fields)
        self.service.handle(session.encode(), request, self.world.clock(), unread_s)

    def cancel(self, request_id, session="s", address=None):
        address = session.encode() if address is None else address
        self.service.handle(address, CancelRequest(session, request_id), self.world.clock())

    def run(self):
        """Until nothing is left to do."""
        while self.service.encoding_instructions:
            self.service.collect_instructions()
        while self.service.busy:
            self.service.advance()
        return self.take()

    def take(self):
        replies, self.replies = self.replies, []
        return replies


@pytest.fixture
def rig():
    rig = Rig()
    rig.act(1)
    ((address, chunk),) = rig.run()  # "known" is cached from here on
    assert address == b"s"
    assert isinstance(chunk, ActionChunk)
    yield rig
    rig.encoder.free.set()
    rig.cache.close()


def test_ping_and_metadata(rig):
    rig.service.handle(b"x", PingRequest(4), 0.0)
    rig.service.handle(b"x", MetadataRequest(5), 0.0)
    (pong, metadata) = rig.take()
    assert pong == (b"x", Pong(4))
    assert isinstance(metadata[1], MetadataReply)
    assert metadata[1].metadata.spec == SPEC


def test_defaults_are_filled_in_and_echoed(rig):
    rig.act(2)
    rig.act(3, session="t", guidance_scale=-1.0, eta=0.0, seed=7)
    first, second = (reply for _, reply in rig.run())
    assert (first.guidance_scale, first.eta) == (0.5, 0.25)
    assert (second.guidance_scale, second.eta, second.seed) == (-1.0, 0.0, 7)


@pytest.mark.parametrize("instruction", ["known", "not yet encoded"])
def test_a_request_that_comes_twice_is_answered_once(rig, instruction):
    rig.encoder.free.set()
    rig.act(2, instruction)
    rig.act(2, instruction)
    ((_, error),) = rig.take()
    assert (error.request_id, error.code) == (None, "invalid_request")
    assert "request_id: 2 is being served already" in error.message
    ((_, chunk),) = rig.run()
    assert (type(chunk), chunk.request_id) == (ActionChunk, 2)


@pytest.mark.parametrize("why", ["unread", "draining"])
def test_what_comes_twice_and_would_be_refused_is_still_answered_once(rig, why):
    rig.act(2)
    rig.service.advance()  # in service
    if why == "draining":
        rig.service.drain()
    with pytest.raises(OverloadedError):
        rig.act(3, session="other", unread_s=1.0)
    rig.act(2, unread_s=1.0)
    ((_, error),) = rig.take()
    assert (error.request_id, error.code) == (None, "invalid_request")
    ((_, chunk),) = rig.run()
    assert (type(chunk), chunk.request_id) == (ActionChunk, 2)


def test_what_may_have_waited_for_long_is_refused(rig):
    rig.act(2, unread_s=0.019)
    with pytest.raises(OverloadedError, match="unread for 21 ms"):
        rig.act(3, session="t", unread_s=0.021)


def test_two_requests_without_a_seed_get_different_noise(rig):
    rig.act(2)
    rig.act(3, session="t")
    seeds = [reply.seed for _, reply in rig.run()]
    assert seeds[0] != seeds[1]


def test_a_new_instruction_delays_nobody_else(rig):
    rig.encoder.free.clear()
    rig.act(2, "never heard of", session="slow")
    rig.act(3, "known", session="quick")
    while rig.service.busy:
        rig.service.advance()
    ((address, _),) = rig.take()
    assert address == b"quick"
    assert not rig.service.idle
    rig.encoder.free.set()
    ((address, chunk),) = rig.run()
    assert address == b"slow"
    assert isinstance(chunk, ActionChunk)
    assert rig.service.idle


def test_an_instruction_is_encoded_once(rig):
    rig.act(2, "new", session="a")
    rig.act(2, "new", session="b")
    assert len(rig.run()) == 2
    rig.act(3, "new", session="a")
    assert len(rig.run()) == 1
    assert rig.encoder.texts.count("new") == 1


def test_time_spent_encoding_counts_against_the_budget(rig):
    rig.encoder.free.clear()
    rig.act(2, "new", budget_s=0.05)
    rig.world.clock.now_s += 0.06
    rig.encoder.free.set()
    ((_, reply),) = rig.run()
    assert reply.code == "deadline"


@pytest.mark.parametrize("second", ["new", "known"])
def test_a_newer_request_supersedes_one_that_waits_for_its_instruction(rig, second):
    rig.encoder.free.clear()
    rig.act(2, "new")
    rig.act(3, second)
    rig.encoder.free.set()
    replies = [reply for _, reply in rig.run()]
    assert [(r.request_id, type(r)) for r in replies] == [(2, ErrorReply), (3, ActionChunk)]
    assert replies[0].code == "superseded"


def test_a_failure_of_the_encoder_is_told_without_its_details(rig):
    rig.act(2, "fail")
    ((_, reply),) = rig.run()
    assert reply.code == ServerFaultError.code
    assert reply.request_id == 2
    assert "secret" not in reply.message
    rig.act(3)
    assert isinstance(rig.run()[0][1], ActionChunk)


def test_requests_that_wait_for_an_instruction_are_bounded(rig):
    rig.encoder.free.clear()
    for i in range(3):
        rig.act(9, "new", session=f"s{i}")
    with pytest.raises(OverloadedError, match="queue: 3"):
        rig.act(9, "new", session="one more")
    rig.encoder.free.set()
    assert len(rig.run()) == 3


def test_new_instructions_are_bounded():
    rig = Rig(max_pending=1)
    rig.encoder.free.clear()
    rig.act(1, "one", session="a")
    with pytest.raises(OverloadedError, match="new instructions"):
        rig.act(1, "two", session="b")
    rig.encoder.free.set()
    assert len(rig.run()) == 1
    rig.cache.close()


def test_requests_of_one_client_are_bounded_and_those_of_others_are_not(rig):
    for request_id in range(2, 6):
        rig.act(request_id, num_steps=100, budget_s=1e6 - request_id)
        rig.service.advance()  # so that it has begun, and is not superseded
    with pytest.raises(OverloadedError, match="queue: 4 requests of this client"):
        rig.act(6, num_steps=100, budget_s=1e6)
    rig.act(6, num_steps=100, budget_s=1e6, session="another")
    rig.cancel(2)
    rig.act(7, num_steps=100, budget_s=1e6)
    replies = [(address, reply.request_id) for address, reply in rig.run()]
    assert sorted(replies) == [(b"another", 6), *((b"s", i) for i in (2, 3, 4, 5, 7))]
    assert rig.service._inside_of == {}


def test_one_client_cannot_fill_the_queue_of_new_instructions(rig):
    rig.encoder.free.clear()
    observation = {"state": np.full((1, 3), 0.25, np.float32)}
    one, two = (ActRequest(name, 1, observation, f"new {name}", 1.0) for name in ("one", "two"))
    rig.service.handle(b"greedy", one, rig.world.clock())
    with pytest.raises(OverloadedError, match="queue: 1 requests of this client wait"):
        rig.service.handle(b"greedy", two, rig.world.clock())
    rig.service.handle(b"another", two, rig.world.clock())
    rig.encoder.free.set()
    assert sorted(address for address, _ in rig.run()) == [b"another", b"greedy"]


def test_half_of_the_time_no_instruction_is_embedded():
    busy_s = []

    def encode(texts):
        begun_s, until_s = time.monotonic(), time.thread_time() + 0.02
        while time.thread_time() < until_s:
            pass
        busy_s.append((begun_s, time.monotonic()))
        return np.zeros((len(texts), 3), np.float32)

    cache = InstructionCache(encode)
    for text in "abc":
        cache.ask(text)
    while cache.pending:
        cache.collect()
    cache.close()
    for (_, ended_s), (next_s, _) in itertools.pairwise(busy_s):
        assert next_s - ended_s >= 0.019


def test_the_cache_forgets_what_was_used_longest_ago():
    rig = Rig(max_cached=2)
    for number, text in enumerate(["a", "b", "a", "c", "a", "b"], 1):
        rig.act(number, text)
        rig.run()
    assert rig.encoder.texts == ["a", "b", "c", "b"]
    rig.cache.close()


def test_draining_answers_everybody(rig):
    rig.act(2, session="served")
    rig.service.advance()  # in service
    rig.act(3, session="waiting")
    rig.encoder.free.clear()
    rig.act(4, "new", session="encoding")
    rig.service.drain()
    with pytest.raises(OverloadedError, match="shutting down"):
        rig.act(5, session="late")
    while not rig.service.idle:
        rig.service.advance()
    replies = dict(rig.take())
    assert isinstance(replies[b"served"], ActionChunk)
    for address in (b"waiting", b"encoding"):
        assert replies[address].code == "overloaded"
    rig.encoder.free.set()


def test_a_model_that_raises_costs_one_request(rig):
    rig.act(2, session="a", value=0.5)
    rig.act(3, session="b")
    rig.act(4, session="c")
    rig.world.backend.poison = {0.5: RuntimeError("boom")}
    replies = dict(rig.run())
    assert (replies[b"a"].code, replies[b"a"].request_id) == ("server_fault", 2)
    assert "boom" not in replies[b"a"].message
    assert isinstance(replies[b"b"], ActionChunk)
    assert isinstance(replies[b"c"], ActionChunk)


@pytest.mark.parametrize("instruction", ["known", "new"])
def test_a_bug_in_the_engine_costs_one_request(rig, monkeypatch, instruction):
    def raises(_request):
        raise ZeroDivisionError

    monkeypatch.setattr(rig.world.engine, "submit", raises)
    try:
        rig.act(2, instruction=instruction)
    except ZeroDivisionError:  # what the reactor answers
        assert instruction == "known"
    else:
        ((address, reply),) = rig.run()
        assert (address, reply.request_id, reply.code) == (b"s", 2, "server_fault")
    monkeypatch.undo()
    rig.act(2)  # nothing is left of it
    ((_, chunk),) = rig.run()
    assert chunk.request_id == 2
    assert rig.service.idle


def test_requests_that_share_calls_say_so_and_are_answered_each_at_its_address():
    rig = Rig(fixed_s=0.001)  # so that sharing pays
    rig.act(2)
    ((_, alone),) = rig.run()
    assert alone.rows_per_call == 1.0
    rig.act(3, session="a", num_steps=4, guidance_scale=0.0)
    rig.act(9, session="b", num_steps=4, guidance_scale=0.0)
    replies = rig.run()
    assert sorted((address, r.request_id) for address, r in replies) == [(b"a", 3), (b"b", 9)]
    assert [r.rows_per_call for _, r in replies] == [2.0, 2.0]
    rig.cache.close()


@pytest.mark.parametrize("calls", [0, 2])
def test_a_cancelled_request_is_answered_as_that_and_leaves_the_others_alone(rig, calls):
    rig.act(2, session="a", num_steps=6)
    rig.act(2, session="b", num_steps=6)
    for _ in range(calls):
        rig.service.advance()
    rig.cancel(2, session="a")
    ((address, reply),) = rig.take()
    assert (address, reply.code, reply.request_id) == (b"a", "cancelled", 2)
    ((address, reply),) = rig.run()
    assert address == b"b"
    assert isinstance(reply, ActionChunk)
    rig.act(2, session="a")  # nothing is left of the old one
    assert isinstance(rig.run()[0][1], ActionChunk)


def test_a_request_that_waits_for_its_instruction_can_be_cancelled():
    rig = Rig(max_pending=2)
    rig.encoder.free.clear()
    for session, instruction in [("z", "held"), ("a", "shared"), ("b", "shared")]:
        rig.act(1, instruction, session=session)
    rig.cancel(1, session="a")
    rig.cancel(1, session="b")
    replies = rig.take()
    assert [(a, r.code, r.request_id) for a, r in replies] == [
        (b"a", "cancelled", 1),
        (b"b", "cancelled", 1),
    ]
    rig.act(2, "another", session="a")  # there is room: nobody waits for "shared" any more
    rig.encoder.free.set()
    assert sorted(address for address, _ in rig.run()) == [b"a", b"z"]
    assert "shared" not in rig.encoder.texts
    rig.cache.close()


def test_cancelling_one_of_two_that_wait_for_an_instruction_leaves_it_to_the_other(rig):
    rig.encoder.free.clear()
    rig.act(2, "shared", session="a")
    rig.act(2, "shared", session="b")
    rig.cancel(2, session="a")
    rig.encoder.free.set()
    replies = dict(rig.run())
    assert replies[b"a"].code == "cancelled"
    assert isinstance(replies[b"b"], ActionChunk)


def test_cancelling_what_is_not_there_does_nothing(rig):
    rig.cancel(1)  # answered long ago
    rig.cancel(2)  # never asked
    rig.act(2)
    rig.cancel(3)
    assert rig.take() == []
    assert isinstance(rig.run()[0][1], ActionChunk)


def test_only_who_asked_may_cancel(rig):
    rig.encoder.free.clear()
    rig.act(2, session="a")
    rig.act(2, "new", session="b")
    rig.cancel(2, session="a", address=b"somebody else")
    rig.cancel(2, session="b", address=b"somebody else")
    assert rig.take() == []
    rig.encoder.free.set()
    assert all(isinstance(reply, ActionChunk) for _, reply in rig.run())


def test_a_cancelled_request_does_not_hold_up_the_end(rig):
    rig.act(2, num_steps=1000)
    rig.service.advance()
    rig.service.drain()
    rig.cancel(2)
    assert rig.service.idle
    assert [reply.code for _, reply in rig.take()] == ["cancelled"]


def test_an_answer_that_is_none_costs_one_request(rig, monkeypatch):
    to_actions = rig.world.backend.to_actions
    monkeypatch.setattr(rig.world.backend, "to_actions", lambda x0: to_actions(x0).astype(float))
    rig.act(2)
    ((_, reply),) = rig.run()
    assert (reply.code, reply.request_id) == ("server_fault", 2)
    monkeypatch.undo()
    rig.act(3)
    assert isinstance(rig.run()[0][1], ActionChunk)


@pytest.mark.parametrize("w", [100.5, -1e39])
def test_a_guidance_scale_beyond_all_use_is_refused(rig, w):
    with pytest.raises(InvalidRequestError, match="guidance_scale: expected"):
        rig.act(2, guidance_scale=w)


def test_a_session_that_changes_its_mind_does_not_fill_the_encoder_s_queue():
    rig = Rig(max_pending=3)  # what is being encoded, what a wants now, and b
    rig.encoder.free.clear()
    for number in range(1, 20):
        rig.act(number, f"instruction {number}", session="a")
    rig.act(1, "mine", session="b")
    rig.encoder.free.set()
    answered = [reply.request_id for _, reply in rig.run() if isinstance(reply, ActionChunk)]
    assert sorted(answered) == [1, 19]
    assert len(rig.encoder.texts) <= 3
    rig.cache.close()


def test_errors_of_a_bad_request_leave_nothing_behind(rig):
    with pytest.raises(PolicyError):
        rig.act(2, num_steps=1001)
    assert rig.service.idle
    rig.act(2)
    assert len(rig.run()) == 1


def test_eta_is_refused_where_the_sampler_has_none(rig):
    metadata = rig.service._metadata
    defaults = SamplingDefaults(0.0, 0.0, "dpmpp_2m", "logsnr")
    rig.service._metadata = dataclasses.replace(metadata, defaults=defaults)
    with pytest.raises(InvalidRequestError, match="eta: this policy is sampled with dpmpp_2m"):
        rig.act(2, eta=0.5)
    rig.act(3, eta=0.0)
    ((_, chunk),) = rig.run()
    assert isinstance(chunk, ActionChunk)


def test_a_refused_newcomer_supersedes_nothing_that_waits_for_its_instruction(rig):
    rig.encoder.free.clear()
    rig.act(2, "new")
    rig.act(3, "known", budget_s=0.0005)
    rig.encoder.free.set()
    replies = {reply.request_id: reply for _, reply in rig.run()}
    assert isinstance(replies[2], ActionChunk)
    assert replies[3].code == "deadline"


def test_an_older_request_does_not_supersede_a_newer_one_that_waits_for_its_instruction(rig):
    rig.encoder.free.clear()
    rig.act(3, "new")
    with pytest.raises(PolicyError, match="newer request"):
        rig.act(2, "known")
    rig.encoder.free.set()
    ((_, reply),) = rig.run()
    assert (reply.request_id, type(reply)) == (3, ActionChunk)


def replace_model(rig, max_steps=1000):
    """Another model takes over, with a backend of its own on the same clock."""
    other = World(clock=rig.world.clock)
    metadata = dataclasses.replace(rig.service._metadata, model_id="other", max_steps=max_steps)
    rig.service.replace_model(other.engine, metadata)
    return other


def test_what_is_in_flight_is_finished_by_the_model_that_began_it(rig):
    rig.act(2, session="a", num_steps=20)
    rig.act(3, session="b", num_steps=20)
    rig.service.advance()
    replace_model(rig)
    rig.act(4, session="c", num_steps=20)
    assert rig.service.busy
    made_by = {reply.request_id: reply.model_id for _, reply in rig.run()}
    assert made_by == {2: "simulated", 3: "simulated", 4: "other"}
    assert rig.service.idle
    rig.act(5)
    assert [reply.model_id for _, reply in rig.run()] == ["other"]


def test_two_models_take_turns_while_one_finishes(rig):
    rig.act(2, session="a", num_steps=200)
    rig.service.advance()
    replace_model(rig)
    rig.act(3, session="b", num_steps=3)
    assert [reply.request_id for _, reply in rig.run()] == [3, 2]


def test_a_request_of_the_model_before_can_be_cancelled_and_given_up(rig):
    rig.act(2, session="a", num_steps=20)
    rig.act(3, session="b", num_steps=20)
    rig.service.advance()
    replace_model(rig)
    rig.act(4, session="c", num_steps=20)
    rig.cancel(2, session="a")
    rig.service.give_up()
    codes = {reply.request_id: reply.code for _, reply in rig.take()}
    assert codes == {2: "cancelled", 3: "overloaded", 4: "overloaded"}
    assert rig.service.idle


def test_what_waited_for_its_instruction_is_checked_by_the_model_that_will_answer(rig):
    rig.encoder.free.clear()
    rig.act(2, "new", session="a", num_steps=600)
    rig.act(3, "new", session="b", num_steps=20)
    replace_model(rig, max_steps=500)
    rig.encoder.free.set()
    replies = {reply.request_id: reply for _, reply in rig.run()}
    assert (replies[2].code, replies[3].model_id) == ("invalid_request", "other")
    assert "1..500" in replies[2].message
