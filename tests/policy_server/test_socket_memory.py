"""Requests over sockets without end leave a server's memory and open files as they were.

    POLICY_SERVER_LONG_TESTS=1 pytest -s tests/policy_server/test_socket_memory.py

sends a million requests, from a thousand clients one after another, instead of some thousands.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import zmq

from benchmarks.server_process import running_server
from client import wire
from client.messages import ActRequest, PingRequest
from tests.policies import make_policy, save_checkpoint

LONG = bool(os.environ.get("POLICY_SERVER_LONG_TESTS"))
CLIENTS, REQUESTS = (1000, 1000) if LONG else (40, 100)
WARM_UP_CLIENTS = 10 if LONG else 20
"""After so many, the memories that are bounded are full."""
WINDOW = 10
"""Requests of a client that are open at one time."""
GROWTH_BYTES = 5e6


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, make_policy(), min_steps=1, max_useful_steps=2)
    with running_server(folder, "--backend", "torch") as server:
        yield server


def messages(number):
    """What one client asks: mostly for actions, of sessions that come and go."""
    observation = {"state": np.full((2, 3), 0.1, np.float32)}
    for i in range(REQUESTS):
        if i % 10 == 0:
            yield wire.encode(PingRequest(i))
        elif i % 97 == 0:
            yield [b"not a header", bytes(1000)]
        else:
            session = f"visitor {number} {i}" if i % 3 else f"robot {i % 7}"
            yield wire.encode(
                ActRequest(
                    session, i, observation, f"do number {number % 20}", 10.0, best_effort=True
                )
            )


def visit(address, number):
    """One client that connects, asks, is answered and leaves."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        replies = opened = 0
        for message in messages(number):
            socket.send_multipart(message)
            opened += 1
            while opened - replies >= WINDOW:
                assert socket.poll(5000)
                socket.recv_multipart()
                replies += 1
        while replies < opened:
            assert socket.poll(5000)
            socket.recv_multipart()
            replies += 1
        assert not socket.poll(0)
    return replies


def open_files(server):
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_memory_and_open_files_stay_as_they_were(server):
    replies, resident, files = 0, [], []
    for number in range(CLIENTS):
        replies += visit(server.address, number)
        if number + 1 >= WARM_UP_CLIENTS and (number + 1) % (CLIENTS // 10 or 1) == 0:
            resident.append(server.resident_bytes)
            files.append(open_files(server))
    assert replies == CLIENTS * REQUESTS
    assert max(resident) - resident[0] < GROWTH_BYTES, resident
    assert max(files) - min(files) <= 4, files  # the last clients' may not be closed yet
    if LONG:
        print(replies, resident, files)  # noqa: T201 - figures of the long run
