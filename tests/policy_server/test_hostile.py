"""Hostile messages over real sockets: the reactor owes each exactly one reply, and lives."""

import threading
from collections import Counter

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.hostile_messages import owed_reply
from client import wire
from client.messages import ActRequest, CancelRequest, MetadataRequest, PingRequest
from policy_server.reactor import Reactor
from policy_server.service import Service
from tests.client.test_wire import JUNK, replace_somewhere
from tests.policy_server.test_service import SPEC, Rig

LIMITS = wire.WireLimits.of_requests(SPEC)


def valid(number):
    observation = {"state": np.full((1, 3), 0.25, np.float32)}
    act = ActRequest("s", number, observation, "known", 1.0, num_steps=3)
    messages = (act, PingRequest(number), MetadataRequest(number), CancelRequest("s", number))
    return [[bytes(frame) for frame in wire.encode(message)] for message in messages]


@st.composite
def hostile(draw):
    """Frames: of a valid message with something changed in its header, its bytes or its frames."""
    frames = list(draw(st.sampled_from(valid(draw(st.integers(0, 5))))))
    match draw(st.integers(0, 4)):
        case 0:
            header = replace_somewhere(msgpack.unpackb(frames[0]), draw(JUNK), draw(st.data()))
            frames[0] = msgpack.packb(header)
        case 1:
            victim = draw(st.integers(0, len(frames) - 1))
            at = draw(st.integers(0, len(frames[victim])))
            frames[victim] = (
                frames[victim][:at] + draw(st.binary(max_size=4)) + frames[victim][at + 2 :]
            )
        case 2:
            frames = draw(st.permutations(frames)) + draw(
                st.lists(st.binary(max_size=9), max_size=30)
            )
        case 3:
            frames = draw(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
        case 4:
            nesting = draw(
                st.sampled_from([b"\x91", b"\x81\xa1a", b"\xdc\x00\x10", b"\xdf\xff\xff\xff\xff"])
            )
            frames = [nesting * draw(st.integers(1, LIMITS.max_header_bytes // len(nesting)))]
    return frames


@pytest.fixture(scope="module")
def socket():
    """A client of a reactor with a real service and a simulated engine."""
    rig = Rig()
    reactor = Reactor(LIMITS)
    metadata = rig.service._metadata
    service = Service(rig.world.engine, rig.cache, metadata, rig.world.clock, reactor.send)
    stop = threading.Event()
    thread = threading.Thread(target=reactor.serve, args=(service, stop.is_set))
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(reactor.bind("tcp://127.0.0.1:*"))
        thread.start()
        yield socket
        stop.set()
        thread.join()
    reactor.close()
    service.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=st.lists(hostile(), min_size=1, max_size=6))
def test_every_message_gets_the_one_reply_that_it_is_owed(socket, messages):
    owed = Counter()
    for frames in [*messages, *(wire.encode(PingRequest(i)) for i in (77, 78))]:
        socket.send_multipart(frames)
        is_owed, request_id = owed_reply(list(frames), LIMITS)
        owed[request_id] += is_owed
    got = Counter()
    for _ in range(owed.total()):
        assert socket.poll(5000), (owed, got)
        got[msgpack.unpackb(socket.recv_multipart()[0])["request_id"]] += 1
    # whose number is that of one in service gets an error without it
    assert set(got - owed) <= {None}
    assert not socket.poll(0)
