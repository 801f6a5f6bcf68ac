"""client/policy_client.py against a real ROUTER socket on a thread."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from client import wire
from client.errors import (
    CancelledError,
    ConnectionLostError,
    DeadlineError,
    InvalidRequestError,
    PolicyError,
    ProtocolError,
    ServerFaultError,
)
from client.messages import (
    ActionChunk,
    ActRequest,
    CancelRequest,
    ErrorReply,
    Message,
    Metadata,
    MetadataReply,
    PingRequest,
    Pong,
)
from client.outstanding import Chunk
from client.policy_client import PolicyClient

if TYPE_CHECKING:
    from conftest import Answer, Frames, Server

OBSERVATION = {"state": np.array([[0], [1], [2]], np.float32)}
PATIENCE_S = 10.0  # of what does come; a slow machine is no failure


@pytest.fixture
def connect() -> Iterator[Callable[..., PolicyClient]]:
    clients: list[PolicyClient] = []

    def make(server: Server | str, **options: Any) -> PolicyClient:
        address = server if isinstance(server, str) else server.address
        clients.append(PolicyClient(address, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def act(client: PolicyClient, **changes: Any) -> Chunk:
    options: dict[str, Any] = {"budget_s": PATIENCE_S, "timeout_s": PATIENCE_S}
    return client.act(OBSERVATION, "open the drawer", **options | changes)


def submit(client: PolicyClient, **changes: Any) -> int:
    options: dict[str, Any] = {"budget_s": PATIENCE_S, "timeout_s": PATIENCE_S}
    return client.submit(OBSERVATION, "open the drawer", **options | changes)


def poll_until(client: PolicyClient, count: int) -> list[Chunk | PolicyError]:
    results: list[Chunk | PolicyError] = []
    until_s = time.monotonic() + PATIENCE_S
    while len(results) < count and time.monotonic() < until_s:
        results += client.poll(timeout_s=0.1)
    return results


def with_act(answer: Answer, act_answer: Callable[[ActRequest], Sequence[Frames]]) -> Answer:
    """A good server but for what it answers to `act`."""

    def reply(message: Message) -> Sequence[Frames]:
        return act_answer(message) if isinstance(message, ActRequest) else answer(message)

    return reply


def test_metadata_and_ping(
    serve: Callable[..., Server],
    connect: Callable[..., PolicyClient],
    answer: Answer,
    metadata: Metadata,
) -> None:
    client = connect(serve(answer))
    assert client.metadata(timeout_s=PATIENCE_S) == metadata
    assert 0 < client.ping(timeout_s=PATIENCE_S) < PATIENCE_S


def test_act_sends_what_was_asked_and_returns_the_answer(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    server = serve(answer)
    client = connect(server, session_id="arm-1")
    chunk = act(client, num_steps=2, guidance_scale=0.5, eta=1.0, seed=3, best_effort=True)
    request = server.received[-1]
    assert isinstance(request, ActRequest)
    assert (request.session_id, request.instruction) == ("arm-1", "open the drawer")
    assert (request.num_steps, request.guidance_scale) == (2, 0.5)
    assert (request.eta, request.seed, request.best_effort) == (1.0, 3, True)
    np.testing.assert_array_equal(request.observation["state"], OBSERVATION["state"], strict=True)
    assert PATIENCE_S - 1 < request.budget_s < PATIENCE_S  # less what the metadata took
    assert chunk.actions[:, 0].tolist() == list(range(2, 12))
    assert chunk.request_id == request.request_id
    assert (chunk.num_steps, chunk.timesteps, chunk.model_id) == (2, (99, 49), "test-1")
    assert not chunk.late
    assert 0 < chunk.round_trip_s <= chunk.latency_s


def test_answers_of_another_specification_are_errors_until_metadata_is_asked_again(
    serve: Callable[..., Server],
    connect: Callable[..., PolicyClient],
    answer: Answer,
    metadata: Metadata,
) -> None:
    def other(message: Message) -> Sequence[Frames]:
        """Of the same shapes, so that nothing else gives it away."""
        (frames,) = answer(message)
        reply = wire.decode(frames)
        if isinstance(reply, ActionChunk):
            return [wire.encode(replace(reply, model_id="test-2", spec_id="s-2"))]
        if isinstance(reply, MetadataReply):
            return [wire.encode(replace(reply, metadata=replace(metadata, spec_id="s-2")))]
        return [frames]

    server = serve(answer)
    client = connect(server)
    act(client)
    server.stop()
    serve(other, server.address)
    for _ in range(2):
        with pytest.raises(ProtocolError, match=r"test-1.*test-2.*s-2.*metadata"):
            act(client)
    client.metadata(timeout_s=PATIENCE_S)
    assert act(client).model_id == "test-2"


def test_an_error_about_a_request_that_came_twice_is_not_the_answer(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    def twice(request: ActRequest) -> Sequence[Frames]:
        error = ErrorReply(None, "invalid_request", "being served already")
        return [wire.encode(error), *answer(request)]

    client = connect(serve(with_act(answer, twice)))
    assert act(client).model_id == "test-1"
    request_id = submit(client)
    results = poll_until(client, 3)
    assert [r.request_id for r in results] == [None, None, request_id]


def test_sessions_differ_and_request_ids_rise(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    server = serve(answer)
    for client in (connect(server), connect(server)):
        act(client)
        act(client)
    requests = [m for m in server.received if isinstance(m, ActRequest)]
    assert requests[0].session_id == requests[1].session_id != requests[2].session_id
    assert requests[0].request_id < requests[1].request_id


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (ErrorReply(1, "deadline", "no time", 0.2), DeadlineError),
        (ErrorReply(1, "server_fault", "it broke"), ServerFaultError),
        (ErrorReply(None, "protocol", "what?"), ProtocolError),
        (Pong(1), ProtocolError),
    ],
)
def test_an_error_is_raised_as_its_class_and_the_connection_lives_on(
    serve: Callable[..., Server],
    connect: Callable[..., PolicyClient],
    answer: Answer,
    reply: ErrorReply | Pong,
    expected: type[PolicyError],
) -> None:
    def act_answer(request: ActRequest) -> Sequence[Frames]:
        named = reply.request_id and request.request_id
        return [wire.encode(type(reply)(**vars(reply) | {"request_id": named}))]

    client = connect(serve(with_act(answer, act_answer)))
    with pytest.raises(expected) as caught:
        act(client)
    if isinstance(caught.value, DeadlineError):
        assert caught.value.soonest_s == 0.2
    assert client.ping(timeout_s=PATIENCE_S) > 0


@pytest.mark.parametrize("garbage", [[b"\xc1"], [b""], [b"\x80"], [b"\x81\xa8protocol\x02"]])
def test_a_malformed_reply_is_a_protocol_error_and_no_crash(
    serve: Callable[..., Server],
    connect: Callable[..., PolicyClient],
    answer: Answer,
    garbage: list[bytes],
) -> None:
    client = connect(serve(with_act(answer, lambda _: [garbage])))
    with pytest.raises(ProtocolError):
        act(client)
    submit(client)
    (error,) = poll_until(client, 1)
    assert isinstance(error, ProtocolError)
    assert error.request_id is None
    assert client.ping(timeout_s=PATIENCE_S) > 0


def test_a_flood_of_garbage_neither_piles_up_nor_passes_for_later_answers(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    flood = iter([[[b"\xc1"]] * 600])
    client = connect(serve(lambda message: next(flood, None) or answer(message)))
    with pytest.raises(ProtocolError):
        act(client)
    until_s = time.monotonic() + PATIENCE_S
    while len(client._settled) < 256 and time.monotonic() < until_s:
        client._collect()
    for _ in range(20):  # the rest is read, and dropped
        time.sleep(0.005)
        client._collect()
    assert isinstance(act(client), Chunk)
    assert len(client.poll(0.0)) == 256


def test_what_cannot_be_decoded_is_not_blamed_on_another_request(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    client = connect(serve(with_act(answer, lambda _: [[b"\xc1"]])))
    client.metadata(timeout_s=PATIENCE_S)
    request_id = submit(client, timeout_s=0.3)  # its answer, which is garbage, comes first
    assert client.ping(timeout_s=PATIENCE_S) > 0
    results = poll_until(client, 2)
    assert [(type(r), r.request_id) for r in results] == [
        (ProtocolError, None),
        (ConnectionLostError, request_id),
    ]


def test_a_reply_of_another_version_names_its_request(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    def act_answer(request: ActRequest) -> Sequence[Frames]:
        return [[b"\x82\xa8protocol\x02\xaarequest_id" + bytes([request.request_id])]]

    client = connect(serve(with_act(answer, act_answer)))
    client.metadata(timeout_s=PATIENCE_S)
    request_id = submit(client)
    (error,) = poll_until(client, 1)
    assert isinstance(error, ProtocolError)
    assert error.request_id == request_id


def test_no_server_raises_within_the_timeout(connect: Callable[..., PolicyClient]) -> None:
    client = connect("tcp://127.0.0.1:1")
    for ask in (client.metadata, client.ping, lambda timeout_s: act(client, timeout_s=timeout_s)):
        began_s = time.monotonic()
        with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1"):
            ask(timeout_s=0.05)
        assert 0.04 < time.monotonic() - began_s < 2.0


@pytest.mark.realtime
def test_signals_do_not_make_it_wait_for_longer(connect: Callable[..., PolicyClient]) -> None:
    """A wait that begins anew after each of them would never end."""
    client = connect("tcp://127.0.0.1:1")
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    try:
        begun_s = time.monotonic()
        assert client.poll(0.1) == []
        with pytest.raises(ConnectionLostError):
            client.ping(timeout_s=0.1)
        assert time.monotonic() - begun_s < 2.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_a_silent_server_raises_within_the_timeout(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    client = connect(serve(with_act(answer, lambda _: [])))
    client.metadata(timeout_s=PATIENCE_S)
    began_s = time.monotonic()
    with pytest.raises(ConnectionLostError, match="timeout_s"):
        act(client, timeout_s=0.1)
    assert 0.09 < time.monotonic() - began_s < 2.0


def test_submit_without_a_connection_is_lost_not_queued(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    client = connect(f"tcp://127.0.0.1:{port}")
    ids = [submit(client), submit(client)]
    results = client.poll()
    assert [r.request_id for r in results] == ids
    assert all(isinstance(r, ConnectionLostError) for r in results)
    assert client.poll() == []
    server = serve(answer, f"tcp://127.0.0.1:{port}")
    client.ping(timeout_s=PATIENCE_S)
    assert not any(isinstance(m, ActRequest) for m in server.received)


def test_submitted_requests_come_up_exactly_once(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    held: list[ActRequest] = []

    def act_answer(request: ActRequest) -> Sequence[Frames]:
        held.append(request)
        if len(held) < 3:
            return []
        first, _, third = (list(answer(r)) for r in held)  # the second is never answered
        return [*third, *first, *first, *third]  # out of order, and twice

    client = connect(serve(with_act(answer, act_answer)))
    client.metadata(timeout_s=PATIENCE_S)
    ids = [submit(client), submit(client, timeout_s=0.2), submit(client)]
    results = {r.request_id: r for r in poll_until(client, 3)}
    assert list(results) in ([ids[2], ids[0], ids[1]], [ids[1], ids[2], ids[0]])
    assert isinstance(results[ids[1]], ConnectionLostError)
    for i in (ids[0], ids[2]):
        chunk = results[i]
        assert isinstance(chunk, Chunk)
        assert set(chunk.actions[:, 1].tolist()) == {float(i)}
    client.ping(timeout_s=PATIENCE_S)  # the duplicates came before this
    assert client.poll() == []
    assert client.dropped_replies == 2


def cancels(server: Server) -> list[tuple[str, int]]:
    return [(m.session_id, m.request_id) for m in server.received if isinstance(m, CancelRequest)]


def test_a_cancelled_request_comes_up_once_as_that_and_the_server_is_told(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    def reply(message: Message) -> Sequence[Frames]:
        if isinstance(message, ActRequest):
            return []
        if isinstance(message, CancelRequest):  # what the server then answers to the act request
            return [wire.encode(ErrorReply(message.request_id, "cancelled", "as you like"))]
        return answer(message)

    server = serve(reply)
    client = connect(server, session_id="arm-1")
    client.metadata(timeout_s=PATIENCE_S)
    kept, unwanted = submit(client, timeout_s=0.5), submit(client)
    client.cancel(unwanted)
    client.cancel(unwanted)
    (error,) = client.poll()
    assert isinstance(error, CancelledError)
    assert error.request_id == unwanted
    assert client.ping(timeout_s=PATIENCE_S) > 0  # the server's answer came before this
    assert cancels(server) == [("arm-1", unwanted)]
    (lost,) = poll_until(client, 1)
    assert lost.request_id == kept
    assert client.dropped_replies == 1


def test_what_is_not_outstanding_is_not_cancelled(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    server = serve(answer)
    client = connect(server)
    client.metadata(timeout_s=PATIENCE_S)
    answered = submit(client)
    client.ping(timeout_s=PATIENCE_S)  # the answer came before this
    client.cancel(answered)
    client.cancel(answered + 100)
    (chunk,) = client.poll()
    assert isinstance(chunk, Chunk)
    client.cancel(answered)
    assert client.poll() == []
    client.ping(timeout_s=PATIENCE_S)
    assert cancels(server) == []


def test_cancelling_without_a_connection_does_not_wait(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    server = serve(with_act(answer, lambda _: []))
    client = connect(server)
    client.metadata(timeout_s=PATIENCE_S)
    request_id = submit(client)
    server.stop()
    began_s = time.monotonic()
    client.cancel(request_id)
    assert time.monotonic() - began_s < 0.5
    (error,) = client.poll()
    assert isinstance(error, CancelledError)


def test_a_request_whose_time_is_up_is_cancelled_by_itself(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    silent = [ActRequest]

    def reply(message: Message) -> Sequence[Frames]:
        return [] if isinstance(message, tuple(silent)) else answer(message)

    server = serve(reply)
    client = connect(server, session_id="arm-1")
    client.metadata(timeout_s=PATIENCE_S)
    request_id = submit(client, timeout_s=0.05)
    (error,) = poll_until(client, 1)
    assert isinstance(error, ConnectionLostError)
    with pytest.raises(ConnectionLostError):
        act(client, timeout_s=0.05)
    silent.append(PingRequest)
    with pytest.raises(ConnectionLostError):
        client.ping(timeout_s=0.05)  # is not worth a message
    silent.pop()
    client.ping(timeout_s=PATIENCE_S)
    assert cancels(server) == [("arm-1", request_id), ("arm-1", request_id + 1)]
    assert client.poll() == []


def test_act_leaves_the_answers_to_submit_for_poll(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    client = connect(serve(answer))
    client.metadata(timeout_s=PATIENCE_S)
    submitted = submit(client)
    acted = act(client)
    (result,) = client.poll()
    assert (result.request_id, acted.request_id) == (submitted, submitted + 1)


def test_a_duplicate_of_a_late_reply_is_dropped(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    held: list[Frames] = []

    def act_answer(request: ActRequest) -> Sequence[Frames]:
        held.extend(answer(request))
        return held if len(held) > 1 else []

    client = connect(serve(with_act(answer, act_answer)))
    client.metadata(timeout_s=PATIENCE_S)
    with pytest.raises(ConnectionLostError):
        act(client, timeout_s=0.1)
    assert act(client).request_id == 3  # not the late answer to request 2, which comes first
    assert client.dropped_replies == 1


def test_budgets_count_from_when_due_and_keep_back_the_network(
    serve: Callable[..., Server],
    connect: Callable[..., PolicyClient],
    answer: Answer,
    clock: Any,
    answer_chunk: Callable[..., ActionChunk],
) -> None:
    """On a clock that stands still but for what the server adds: a network of exactly 10 ms."""

    def act_answer(request: ActRequest) -> Sequence[Frames]:
        clock.now_s += 0.030
        return [wire.encode(answer_chunk(request, total_s=0.020))]

    server = serve(with_act(answer, act_answer))
    client = connect(server, clock=clock)
    client.metadata(timeout_s=PATIENCE_S)
    due_s = clock.now_s - 0.005
    first = act(client, budget_s=0.08, due_s=due_s)
    second = act(client, budget_s=0.08)
    third = act(client, budget_s=0.03)
    fourth = act(client, budget_s=0.012)
    budgets = [m.budget_s for m in server.received if isinstance(m, ActRequest)]
    assert budgets == pytest.approx([0.075, 0.070, 0.020, 0.006])
    assert [c.late for c in (first, second, third, fourth)] == [False, False, False, True]
    assert [c.latency_s for c in (first, second)] == pytest.approx([0.035, 0.030])
    assert first.due_s == due_s


def test_a_spent_budget_is_not_sent_unless_a_late_answer_is_wanted(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    server = serve(answer)
    client = connect(server)
    client.metadata(timeout_s=PATIENCE_S)
    past_s = time.monotonic() - 1.0
    with pytest.raises(DeadlineError, match="budget_s"):
        submit(client, budget_s=0.5, due_s=past_s)
    assert act(client, budget_s=0.5, due_s=past_s, best_effort=True).late
    assert act(client, budget_s=0.5, due_s=past_s, num_steps=2).late
    assert sum(isinstance(m, ActRequest) for m in server.received) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget_s": 0.0}, "budget_s"),
        ({"budget_s": -1.0}, "budget_s"),
        ({"budget_s": float("nan")}, "budget_s"),
        ({"num_steps": 0}, "num_steps"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"instruction": " "}, "instruction"),
        ({"instruction": "x" * 10_000}, "instruction.*1000 bytes.*10000"),
        ({"observation": {"state": np.zeros((3, 1))}}, r"observation\.state.*float64"),
        ({"observation": {"state": np.full((3, 1), np.nan, np.float32)}}, r"observation\.state"),
        ({"observation": {}}, "missing"),
    ],
)
def test_bad_input_is_refused_before_it_is_sent(
    serve: Callable[..., Server],
    connect: Callable[..., PolicyClient],
    answer: Answer,
    changes: dict[str, Any],
    says: str,
) -> None:
    server = serve(answer)
    client = connect(server)
    client.metadata(timeout_s=PATIENCE_S)
    arguments: dict[str, Any] = {"observation": OBSERVATION, "instruction": "go", "budget_s": 1.0}
    for method in (client.submit, client.act):
        with pytest.raises(InvalidRequestError, match=says):
            method(**arguments | changes)
    client.ping(timeout_s=PATIENCE_S)
    assert not any(isinstance(m, ActRequest) for m in server.received)
    assert client.poll() == []


def test_an_address_that_cannot_be_one() -> None:
    with pytest.raises(InvalidRequestError, match="address"):
        PolicyClient("localhost:5555")


def test_arrays_may_be_reused_after_submit(
    serve: Callable[..., Server], connect: Callable[..., PolicyClient], answer: Answer
) -> None:
    server = serve(answer)
    client = connect(server)
    client.ping(timeout_s=PATIENCE_S)
    large = {"state": np.zeros((3, 500_000), np.float32)}  # large enough that zmq would refer to it
    client.submit(large, "go", budget_s=1.0, timeout_s=PATIENCE_S)
    large["state"][:] = 1.0
    client.ping(timeout_s=PATIENCE_S)
    (request,) = (m for m in server.received if isinstance(m, ActRequest))
    assert not request.observation["state"].any()
