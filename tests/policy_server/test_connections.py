"""Bounds below ZeroMQ's messages, with clients that speak its protocol by hand."""

import logging
import os
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgpack
import pytest
import zmq

from benchmarks.hostile_sender import HANDSHAKE, frame
from client import ConnectionLostError, PolicyClient, wire
from client.messages import PingRequest, Pong
from policy_server.connections import Connections, reserve_descriptors
from policy_server.reactor import CURVE_BYTES, Reactor

LIMITS = wire.WireLimits(max_header_bytes=10_000, max_array_bytes=10_000)
UNREAD_BYTES = LIMITS.max_message_bytes
"""What a connection may send without a message, with these limits."""
LONG = bool(os.environ.get("POLICY_SERVER_LONG_TESTS"))


class Pongs:
    """A service that answers pings."""

    busy = encoding_instructions = False
    idle = True

    def __init__(self, reactor):
        self.reactor = reactor

    def handle(self, address, request, arrived_s, unread_s):
        self.reactor.send(address, Pong(request.request_id))

    def collect_instructions(self):
        pass

    advance = drain = give_up = collect_instructions


@contextmanager
def serving(**options):
    reactor = Reactor(LIMITS, **options)
    stop = threading.Event()
    thread = threading.Thread(target=reactor.serve, args=(Pongs(reactor), stop.is_set))
    try:
        address = reactor.bind("tcp://127.0.0.1:*")
        thread.start()
        yield address
    finally:
        stop.set()
        thread.join()
        reactor.close()


def connect(address):
    host, port = address.removeprefix("tcp://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=5.0)
    connection.sendall(HANDSHAKE)
    return connection


def pinged(policy):
    try:
        policy.ping(timeout_s=0.5)
    except ConnectionLostError:
        return False
    return True


def ended(connection):
    """Whether the other side closes it, rather than be silent for five seconds."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_message_without_end_is_cut_off_and_others_are_served():
    with serving() as address, PolicyClient(address) as policy, closing(connect(address)) as bad:
        policy.ping(timeout_s=5.0)
        part = frame(bytes(9000), more=True)
        with pytest.raises(ConnectionError):
            bad.sendall(part * (2**28 // len(part)))
        policy.ping(timeout_s=5.0)


def test_a_message_of_too_many_frames_is_answered_by_one_error():
    with serving() as address, zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.connect(address)
        header = msgpack.packb({"protocol": 1, "type": "ping", "request_id": 7})
        client.send_multipart([header] + [b""] * 5000)
        client.send_multipart(wire.encode(PingRequest(8)))
        replies = []
        for _ in range(2):
            assert client.poll(5000)
            replies.append(wire.decode(client.recv_multipart()))
        assert (replies[0].request_id, replies[0].code) == (7, "invalid_request")
        assert "at most 17 frames, got more" in replies[0].message
        assert replies[1] == Pong(8)


def test_a_message_of_very_many_frames_is_answered_and_keeps_no_model_waiting():
    """They are two bytes each on the wire, so no bound of bytes keeps them away."""
    with serving() as address, closing(connect(address)) as bad, PolicyClient(address) as policy:
        policy.ping(timeout_s=5.0)
        bad.sendall(b"\x01\x00" * 80_000 + b"\x00\x00")
        answer = b""
        while b"error" not in answer:
            answer += bad.recv(4096)
        policy.ping(timeout_s=5.0)


def test_whoever_sends_many_whole_messages_is_served_for_ever():
    with serving() as address, PolicyClient(address) as policy:
        padding = b"x" * 9000  # as a second frame, which no ping has: answered by an error
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger = 0
            client.connect(address)
            for number in range(3 * UNREAD_BYTES // len(padding)):
                client.send_multipart([*wire.encode(PingRequest(number)), padding])
                assert client.poll(5000)
                client.recv_multipart()
        policy.ping(timeout_s=5.0)


@pytest.mark.parametrize("secret", [False, True])
def test_what_has_been_read_is_known_to_the_byte(secret):
    """Else a flood could get credit, or a busy client be cut off that is read in good time."""
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as watched,
        context.socket(zmq.DEALER) as client,
    ):
        watched.linger = client.linger = 0
        if secret:
            public, watched.curve_secretkey = zmq.curve_keypair()
            watched.curve_server = True
            client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
            client.curve_serverkey = public
        connections = Connections(
            context,
            watched,
            most=2,
            max_partial_bytes=1000,
            max_unread_bytes=1000,
            frame_bytes=CURVE_BYTES if secret else 0,
        )
        client.connect(f"tcp://127.0.0.1:{watched.bind_to_random_port('tcp://127.0.0.1')}")

        def send_and_read(message):
            client.send_multipart(message)
            _, *frames = watched.recv_multipart(copy=False)
            connections.read_from(frames[-1], [frame.buffer for frame in frames])

        send_and_read([b"the handshake lies before this"])
        connections.check(0.0, drained=True)
        sizes = [0, 1, 200, 222, 223, 255, 256, 5000]  # around those with a longer head
        for size in sizes:
            send_and_read([bytes(size)])
            send_and_read([bytes(size), bytes(size + 1)])
        connections.check(0.0, drained=False)
        (connection,) = connections._open.values()
        assert connection.read > sum(3 * size for size in sizes)
        assert connection.bytes_received() - connection.baseline == connection.read
        connections.close()


def test_a_flood_is_cut_off_before_it_fills_the_memory_and_others_are_served():
    with serving() as address, PolicyClient(address) as policy, closing(connect(address)) as bad:
        policy.ping(timeout_s=5.0)
        one = frame(bytes(wire.encode(PingRequest(1))[0]), more=False)
        with pytest.raises(ConnectionError):
            bad.sendall(one * (2**27 // len(one)))
        policy.ping(timeout_s=5.0)


def test_clients_are_bounded_and_a_place_is_free_when_one_leaves(caplog):
    with serving(max_clients=2) as address, ExitStack() as stack:
        first = stack.enter_context(PolicyClient(address))
        first.ping(timeout_s=5.0)
        with PolicyClient(address) as second:
            second.ping(timeout_s=5.0)
            third = stack.enter_context(PolicyClient(address))
            assert not pinged(third)
            assert "more than 2 at one time" in caplog.text
            assert [r.levelno for r in caplog.records] == [logging.WARNING]  # and no flood of them
            second.close()
            assert any(pinged(third) for _ in range(20))
            first.ping(timeout_s=5.0)


def test_who_says_nothing_gives_way_to_who_does():
    with serving(max_clients=2) as address, PolicyClient(address) as first:
        first.ping(timeout_s=5.0)
        with closing(connect(address)) as silent, PolicyClient(address) as third:
            third.ping(timeout_s=5.0)
            assert ended(silent)
            first.ping(timeout_s=5.0)


def test_a_client_that_does_not_begin_to_talk_is_turned_away():
    with serving() as address:
        host, port = address.removeprefix("tcp://").split(":")
        with closing(socket.create_connection((host, int(port)), timeout=15.0)) as silent:
            assert ended(silent)


def test_heartbeats_do_not_add_up():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as watched:
        watched.linger = 0
        bounds = {"max_partial_bytes": 1000, "max_unread_bytes": 1000, "frame_bytes": 0}
        connections = Connections(context, watched, most=2, **bounds)
        with closing(
            connect(f"tcp://127.0.0.1:{watched.bind_to_random_port('tcp://127.0.0.1')}")
        ) as idle:
            idle.recv(1000)
            heartbeat = b"\x04\x07\x04PING\x00\x00"
            for second in range(1000):
                idle.sendall(heartbeat)
                connections.check(float(second), drained=True)
            assert len(connections) == 1
            idle.sendall(frame(bytes(1000), more=True) * 200)
            until_s = time.monotonic() + 5.0
            while len(connections) and time.monotonic() < until_s:
                connections.check(1000.0, drained=True)
            assert len(connections) == 0
        connections.close()


def test_descriptors_stay_as_they_were_while_clients_come_and_go():
    with serving() as address:
        counts = []
        for _ in range(3):
            for _ in range(1000 if LONG else 40):
                with PolicyClient(address) as policy:
                    policy.ping(timeout_s=5.0)
            counts.append(settled_descriptors())
        assert counts[0] == counts[1] == counts[2], counts


def settled_descriptors():
    """Open files of this process, once they have been the same for a while."""
    seen = []
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        time.sleep(0.05)
        seen.append(len(list(Path("/proc/self/fd").iterdir())))
    return seen[-1]


def test_more_clients_than_files_may_be_open_is_refused():
    with pytest.raises(ValueError, match="max_clients: 1000000000"):
        reserve_descriptors(10**9)
