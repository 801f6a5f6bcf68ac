"""A client among hostile replies: only chunks and errors come up, and the next request works."""

import itertools
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_wire import JUNK, MESSAGES, raw, replace_somewhere

from client import PolicyClient, PolicyError, wire
from client.messages import ActionChunk, Timing
from client.outstanding import Chunk

OBSERVATION = {"state": np.zeros((2, 3), np.float32)}
BOMBS = [b"\x91" * 60_000, b"\x81\xa1a" * 20_000, b"\xdc\x10\x00" * 20_000, b"\xdf\xff\xff\xff\xff"]


@st.composite
def hostile_reply(draw, chunk):
    """Frames: any message, or the right one, with something changed or as it is; noise; a bomb."""
    frames = raw(draw(MESSAGES | st.just(chunk)))
    match draw(st.integers(0, 5)):
        case 0:
            header = replace_somewhere(msgpack.unpackb(frames[0]), draw(JUNK), draw(st.data()))
            return [msgpack.packb(header), *frames[1:]]
        case 1:
            at = draw(st.integers(0, len(frames[0])))
            changed = frames[0][:at] + draw(st.binary(max_size=4)) + frames[0][at + 2 :]
            return [changed, *frames[1:]]
        case 2:
            return draw(st.permutations(frames)) + draw(
                st.lists(st.binary(max_size=9), max_size=40)
            )
        case 3:
            return draw(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
        case 4:
            return raw(chunk)
    return [draw(st.sampled_from(BOMBS))]


def chunk(request_id):
    return ActionChunk(
        request_id=request_id,
        actions=np.ones((8, 2), np.float32),
        num_steps=1,
        timesteps=(9,),
        nfe=1,
        rows_per_call=1.0,
        deadline_met=True,
        model_id="m",
        spec_id="s",
        guidance_scale=0.0,
        eta=0.0,
        seed=1,
        timing=Timing(0.0, 0.0, 0.0, 0.0),
    )


@pytest.fixture(scope="module")
def ends():
    """A client, and the socket of the server that it asks."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        server.linger = 0
        port = server.bind_to_random_port("tcp://127.0.0.1")
        with PolicyClient(f"tcp://127.0.0.1:{port}") as client:
            client._connection.wait_connected(5000)
            client._request_ids = itertools.count(
                1000
            )  # all as long in a header: what is drawn depends on it
            yield client, server


def asked(client, server):
    """(request_id, whom to answer) of a request that has just been sent."""
    request_id = client.submit(OBSERVATION, "open the drawer", budget_s=10.0, timeout_s=10.0)
    while True:
        assert server.poll(5000)
        address, *frames = server.recv_multipart()
        if wire.decode(frames).request_id == request_id:
            return request_id, address


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_nothing_but_chunks_and_errors_comes_up(ends, data):
    client, server = ends
    request_id, address = asked(client, server)
    right = chunk(request_id)
    for frames in data.draw(st.lists(hostile_reply(right), min_size=1, max_size=4)):
        server.send_multipart([address, *frames])
    last_id, address = asked(client, server)
    server.send_multipart([address, *wire.encode(replace(right, request_id=last_id))])
    results = []
    while not any(isinstance(r, Chunk) and r.request_id == last_id for r in results):
        new = client.poll(5.0)
        assert new, results
        results += new
    for result in results:
        assert isinstance(result, Chunk | PolicyError)
        if isinstance(result, Chunk):
            assert np.isfinite(result.actions).all()
            assert result.request_id in {request_id, last_id}
    assert len([r for r in results if r.request_id == request_id]) <= 1
    client.cancel(request_id)
    client.poll(0.0)
