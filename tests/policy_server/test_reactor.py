"""The reactor alone, over a real socket: what its boundary does when something behind it breaks."""

import threading

import msgpack
import numpy as np
import pytest
import zmq

from client import wire
from client.messages import ActionChunk, PingRequest, Pong, Timing
from policy_server.reactor import Reactor


class Broken:
    """A service that answers pings, with whatever it is told to do about them."""

    busy = False
    idle = True
    encoding_instructions = False

    def __init__(self, reactor, on_ping):
        self.reactor, self.on_ping = reactor, on_ping

    def handle(self, address, request, arrived_s):
        self.reactor.send(address, self.on_ping(request))

    def collect_instructions(self):
        pass

    advance = drain = collect_instructions


def raises(request):
    raise KeyError("a bug")


def too_large(request):
    return ActionChunk(
        request_id=request.request_id,
        actions=np.zeros((3000, 3000), np.float32),
        num_steps=1,
        timesteps=(0,),
        nfe=1,
        deadline_met=True,
        model_id="m",
        guidance_scale=0.0,
        eta=0.0,
        seed=0,
        timing=Timing(0.0, 0.0, 0.0, 0.0),
    )


@pytest.mark.parametrize("bug", [raises, too_large])
def test_a_bug_costs_one_request_and_is_told(bug):
    reactor = Reactor(wire.DEFAULT_LIMITS)
    address = reactor.bind("tcp://127.0.0.1:*")
    service = Broken(reactor, lambda r: bug(r) if r.request_id == 1 else Pong(r.request_id))
    stop = threading.Event()
    thread = threading.Thread(target=reactor.serve, args=(service, stop.is_set))
    thread.start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    try:
        replies = []
        for request_id in (1, 2):
            socket.send_multipart(wire.encode(PingRequest(request_id)))
            assert socket.poll(5000)
            replies.append(msgpack.unpackb(socket.recv_multipart()[0]))
    finally:
        stop.set()
        thread.join()
        reactor.close()
        socket.close()
        context.term()
    assert (replies[0]["type"], replies[0]["code"], replies[0]["request_id"]) == (
        "error",
        "server_fault",
        1,
    )
    assert (replies[1]["type"], replies[1]["request_id"]) == ("pong", 2)
