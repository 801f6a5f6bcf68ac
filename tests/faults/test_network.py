"""A bad network between a robot and its server: a real server process, real sockets, our proxy.

POLICY_SERVER_LONG_TESTS=1 adds each fault alone, and a black hole that outlasts TCP keep-alive.
"""

import os
import socket
import threading
import time

import pytest

from benchmarks.faulty_proxy import Faults, FaultyProxy
from client import ConnectionLostError, PolicyClient
from tests.faults.driving import Drive, check

BACK_WITHIN_S = 1.0
LONG = bool(os.environ.get("POLICY_SERVER_LONG_TESTS"))


CASES = {
    "slow": (Faults(delay_s=0.1), "late"),
    "loses and reorders": (Faults(drop=0.3, reorder=0.3), "lost"),
    "repeats": (Faults(duplicate=1.0), "on_time"),
    "breaks": (Faults(delay_s=0.02, truncate=0.1, reset=0.1), "lost"),
}
LONG_CASES = {
    "loses answers": (Faults(drop=0.4, towards="client"), "lost"),
    "loses requests": (Faults(drop=0.4, towards="server"), "lost"),
    "reorders": (Faults(reorder=0.5), "late"),
    "cuts": (Faults(truncate=0.2), "lost"),
    "resets": (Faults(reset=0.2), "lost"),
    "does it all": (Faults(0.05, 0.1, 0.1, 0.1, 0.1, 0.1), "lost"),
}


@pytest.mark.realtime
@pytest.mark.parametrize("case", [*CASES, *(LONG_CASES if LONG else ())])
def test_no_wrong_action_while_it_lasts_and_all_is_well_after_it(server, case):
    faults, outcome = (CASES | LONG_CASES)[case]
    with FaultyProxy(server.address) as proxy, Drive(proxy.address) as drive:
        drive.wait_driven()
        before = drive.stats.outcomes[outcome]
        proxy.faults = faults
        time.sleep(0.5)
        drive.wait(lambda: drive.stats.outcomes[outcome] > before)
        proxy.faults = Faults()
        over_s = time.monotonic()
        drive.wait_driven()
        back_s = drive.first(over_s, safe=False) - over_s
    check(drive)
    twice = faults.duplicate and faults.towards != "client"  # the server says so, to nobody
    assert twice or drive.stats.unmatched == 0
    assert back_s < BACK_WITHIN_S


@pytest.mark.realtime
@pytest.mark.parametrize(
    "lasts_s",
    [0.5, pytest.param(5.0, marks=pytest.mark.skipif(not LONG, reason="past TCP keep-alive"))],
)
def test_a_black_hole_is_held_out_safely(server, lasts_s):
    with FaultyProxy(server.address) as proxy, Drive(proxy.address) as drive:
        drive.wait_driven()
        proxy.faults = Faults(black_hole=True)
        time.sleep(lasts_s)
        assert drive.commands[-1].is_safe
        proxy.faults = Faults()
        over_s = time.monotonic()
        drive.wait_driven()
        back_s = drive.first(over_s, safe=False) - over_s
    check(drive)
    assert drive.stats.unmatched == 0
    assert back_s < BACK_WITHIN_S


def test_nobody_waits_for_longer_than_was_said_in_a_black_hole(server):
    with FaultyProxy(server.address) as proxy, PolicyClient(proxy.address) as policy:
        policy.metadata(timeout_s=5.0)
        proxy.faults = Faults(black_hole=True)
        for ask in (policy.ping, policy.metadata):
            began_s = time.monotonic()
            with pytest.raises(ConnectionLostError):
                ask(timeout_s=0.2)
            assert 0.2 <= time.monotonic() - began_s < 0.4


def relay_all_but_the_first(listener, server_address):
    """Who connects first is listened to for ever, whoever comes next reaches the server."""
    first, _ = listener.accept()
    second, _ = listener.accept()
    host, port = server_address.removeprefix("tcp://").split(":")
    server = socket.create_connection((host, int(port)))

    def pump(source, sink):
        while some := source.recv(65536):
            sink.sendall(some)
        sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=pump, args=(server, second))
    back.start()
    pump(second, server)
    back.join()
    for each in (first, second, server):
        each.close()


def test_somebody_who_accepts_and_says_nothing_is_given_up(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = threading.Thread(target=relay_all_but_the_first, args=(listener, server.address))
        relay.start()
        with PolicyClient(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as policy:
            policy.ping(timeout_s=5.0)
        relay.join()
