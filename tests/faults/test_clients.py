"""Clients that misbehave: whoever is driven beside them must not notice."""

import socket
import struct
import time
from contextlib import suppress

import numpy as np
import zmq

from benchmarks.faulty_proxy import Faults, FaultyProxy
from benchmarks.hostile_sender import HANDSHAKE, frame
from client import PolicyClient
from client.messages import ActRequest, MetadataRequest
from client.wire import encode
from tests.faults.driving import INSTRUCTION, Drive, check

OBSERVATION = {"state": np.zeros((2, 3), np.float32)}


def request(request_id, **options):
    return encode(ActRequest("other", request_id, OBSERVATION, INSTRUCTION, 1.0, **options))


def assert_served(drive):
    """After all that; how well meanwhile depends on what else the test machine does."""
    drive.wait_driven()
    assert drive.stats.outcomes["fault"] == 0


def test_one_that_never_reads(server):
    with (
        Drive(server.address) as drive,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as deaf,
    ):
        deaf.linger = 0
        deaf.rcvhwm = 1
        deaf.sndtimeo = 5000
        deaf.setsockopt(zmq.RCVBUF, 4096)
        deaf.connect(server.address)
        drive.wait_driven()
        for request_id in range(4000):  # more replies than fit between the two
            deaf.send_multipart(encode(MetadataRequest(request_id)))
            if request_id % 50 == 0:  # it is deaf, not loud
                time.sleep(0.02)
        assert_served(drive)
    check(drive)


def test_one_that_dies_with_a_heartbeat_behind_many_messages(server):
    """Which libzmq 4.3.5 does not survive if the socket has a high-water mark (libzmq #4364)."""
    host, port = server.address.removeprefix("tcp://").split(":")
    message = frame(bytes(encode(MetadataRequest(1))[0]), more=False)
    heartbeat = b"\x04\x07\x04PING\x00\x00"
    with Drive(server.address) as drive:
        drive.wait_driven()
        for _ in range(10):
            bad = socket.create_connection((host, int(port)), timeout=5.0)
            bad.sendall(HANDSHAKE)
            bad.recv(1000)
            bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                bad.sendall((70 * message + heartbeat) * 60)
            bad.close()
        assert_served(drive)
    check(drive)


def test_many_that_die_in_mid_request(server):
    with Drive(server.address) as drive, FaultyProxy(server.address) as proxy:
        drive.wait_driven()
        for number in range(20):
            with PolicyClient(server.address) as policy:  # with the request inside
                policy.metadata(timeout_s=5.0)
                policy.submit(OBSERVATION, INSTRUCTION, budget_s=1.0, num_steps=50)
            with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.connect(proxy.address)
                proxy.faults = Faults()
                dealer.send_multipart(encode(MetadataRequest(number)))
                assert dealer.poll(5000)
                dealer.recv_multipart()
                proxy.faults = Faults(truncate=1.0)  # half way through the message
                dealer.send_multipart(request(number))
                assert not dealer.poll(20)
        host, port = server.address.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as stub:  # half way through the greeting
            stub.sendall(b"\xff\0\0")
        assert_served(drive)
        assert proxy.counts["truncate"] >= 20
    check(drive)
