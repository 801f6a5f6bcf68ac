"""The reactor alone, over a real socket: what its boundary does when something behind it breaks."""

import threading
import time

import msgpack
import numpy as np
import pytest
import zmq

from client import wire
from client.messages import ActionChunk, CancelRequest, PingRequest, Pong, Timing
from policy_server.reactor import _RECEIVE_S, Reactor


class Broken:
    """A service that answers every request with whatever it is told to do about it."""

    busy = False
    idle = True
    encoding_instructions = False

    def __init__(self, reactor, on_request):
        self.reactor, self.on_request = reactor, on_request
        self.unread_s = []

    def handle(self, address, request, arrived_s, unread_s=0.0):
        self.unread_s.append(unread_s)
        self.reactor.send(address, self.on_request(request))

    def collect_instructions(self):
        pass

    advance = drain = give_up = collect_instructions


def raises(request):
    raise KeyError("a bug")


def too_large(request):
    return ActionChunk(
        request_id=request.request_id,
        actions=np.zeros((3000, 3000), np.float32),
        num_steps=1,
        timesteps=(0,),
        nfe=1,
        rows_per_call=1.0,
        deadline_met=True,
        model_id="m",
        spec_id="s-1",
        guidance_scale=0.0,
        eta=0.0,
        seed=0,
        timing=Timing(0.0, 0.0, 0.0, 0.0),
    )


@pytest.fixture
def reactor():
    return Reactor(wire.WireLimits())


@pytest.fixture
def exchange(reactor):
    """Serve a service on a thread, send it messages, and return the headers of its replies."""
    stop = threading.Event()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    threads = []

    def run(service, messages, replies):
        if not threads:
            socket.connect(reactor.bind("tcp://127.0.0.1:*"))
        for message in messages:
            socket.send_multipart(message)
        if not threads:
            threads.append(threading.Thread(target=reactor.serve, args=(service, stop.is_set)))
            threads[0].start()
        headers = []
        for _ in range(replies):
            assert socket.poll(5000)
            headers.append(msgpack.unpackb(socket.recv_multipart()[0]))
        return headers

    yield run
    stop.set()
    threads[0].join()
    reactor.close()
    socket.close()
    context.term()


@pytest.mark.parametrize("bug", [raises, too_large])
def test_a_bug_costs_one_request_and_is_told(reactor, exchange, bug):
    service = Broken(reactor, lambda r: bug(r) if r.request_id == 1 else Pong(r.request_id))
    fault, pong = exchange(service, [wire.encode(PingRequest(i)) for i in (1, 2)], 2)
    assert (fault["type"], fault["code"], fault["request_id"]) == ("error", "server_fault", 1)
    assert (pong["type"], pong["request_id"]) == ("pong", 2)


def test_a_bug_in_cancelling_is_not_told_as_if_it_were_the_act_request_s(reactor, exchange):
    service = Broken(reactor, raises)
    (fault,) = exchange(service, [wire.encode(CancelRequest("s", 7))], 1)
    assert (fault["code"], fault["request_id"]) == ("server_fault", None)


def test_a_reply_is_not_a_request(reactor, exchange):
    service = Broken(reactor, raises)
    (error,) = exchange(service, [wire.encode(Pong(7))], 1)
    assert (error["code"], error["request_id"]) == ("protocol", 7)


def test_a_flood_does_not_keep_the_model_from_running(reactor, exchange):
    class Slow(Broken):
        """Taking in a message takes as long as all of them may take between two calls."""

        busy = True
        taken = 0
        between_calls = ()

        def handle(self, address, request, arrived_s, unread_s=0.0):
            time.sleep(_RECEIVE_S)
            self.taken += 1
            super().handle(address, request, arrived_s, unread_s)

        def advance(self):
            self.between_calls += (self.taken,)
            self.taken = 0

    service = Slow(reactor, lambda r: Pong(r.request_id))
    replies = exchange(service, [wire.encode(PingRequest(i)) for i in range(30)], 30)
    assert [reply["request_id"] for reply in replies] == list(range(30))
    assert max(service.between_calls) <= 2


def test_a_message_that_comes_after_a_slow_burst_has_not_been_waiting(reactor, exchange):
    """The loop stops to take in messages because of the time, with nothing left to be read."""

    def slowly(request):
        time.sleep(1.5 * _RECEIVE_S if request.request_id == 2 else 0.0)
        return Pong(request.request_id)

    service = Broken(reactor, slowly)
    exchange(service, [wire.encode(PingRequest(n)) for n in (1, 2)], 2)
    time.sleep(0.3)
    exchange(service, [wire.encode(PingRequest(3))], 1)
    assert service.unread_s[2] < 0.15
