"""The faulty proxy itself: what goes in comes out, but for the fault that was asked for."""

import socket
import struct
import time
from contextlib import contextmanager

import pytest
import zmq

from benchmarks.faulty_proxy import Faults, FaultyProxy

MESSAGES = [[b"%d" % i, b"", b"x" * (40 * i)] for i in range(30)]  # with short and long frames


@contextmanager
def connected(**options):
    """A ROUTER that listens, a DEALER that reaches it through the proxy."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind("tcp://127.0.0.1:*")
        address = router.get_string(zmq.LAST_ENDPOINT)
        with FaultyProxy(address, **options) as proxy, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.reconnect_ivl = 10
            dealer.connect(proxy.address)
            dealer.send(b"hello")
            router.recv_multipart()
            yield proxy, dealer, router


def arrived(router, within_ms=200):
    messages = []
    while router.poll(within_ms):
        messages.append(router.recv_multipart()[1:])
    return messages


def sent(faults, **options):
    with connected(**options) as (proxy, dealer, router):
        proxy.faults = faults
        for message in MESSAGES:
            dealer.send_multipart(message)
        return proxy, arrived(router)


def test_without_faults_everything_arrives_both_ways_and_is_heard():
    with connected(record=True) as (proxy, dealer, router):
        for message in MESSAGES:
            dealer.send_multipart(message)
        for _ in MESSAGES:
            router.send_multipart(router.recv_multipart())
        assert [dealer.recv_multipart() for _ in MESSAGES] == MESSAGES
        assert proxy.heard.count(MESSAGES[-1][-1]) == 2
    assert not proxy.counts


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("drop", []), ("duplicate", [m for m in MESSAGES for _ in range(2)])],
)
def test_every_message_is_lost_or_comes_twice(kind, expected):
    proxy, got = sent(Faults(**{kind: 1.0}))
    assert got == expected
    assert proxy.counts == {kind: len(MESSAGES)}


def test_some_are_lost_and_the_others_stay_in_order():
    proxy, got = sent(Faults(drop=0.5))
    assert got == [m for m in MESSAGES if m in got]
    assert len(got) == len(MESSAGES) - proxy.counts["drop"]
    assert 5 < proxy.counts["drop"] < 25


def test_reordered_messages_are_all_there():
    proxy, got = sent(Faults(reorder=0.4))
    assert len(MESSAGES) - len(got) < 5  # the last ones, if nothing followed them
    assert got != [m for m in MESSAGES if m in got]
    assert proxy.counts["reorder"] > 5


def test_faults_towards_the_server_are_not_the_clients():
    with connected() as (proxy, dealer, router):
        proxy.faults = Faults(drop=1.0, towards="client")
        dealer.send(b"question")
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, b"answer"])
        assert not dealer.poll(100)


def test_delay_keeps_the_order_and_what_follows_does_not_wait_again():
    with connected() as (proxy, dealer, router):
        proxy.faults = Faults(delay_s=0.2)
        began_s = time.monotonic()
        for message in MESSAGES:
            dealer.send_multipart(message)
        assert router.poll(2000)
        first_s = time.monotonic() - began_s
        assert arrived(router) == MESSAGES
        assert 0.2 <= first_s < time.monotonic() - began_s - 0.2 < 0.5


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_a_connection_that_breaks_delivers_nothing_of_the_message_and_comes_back(kind):
    with connected() as (proxy, dealer, router):
        proxy.faults = Faults(**{kind: 1.0})
        dealer.send_multipart([b"first part", b"second part"])
        assert arrived(router) == []
        assert proxy.counts[kind] == 1
        proxy.faults = Faults()
        dealer.send(b"again")
        assert arrived(router) == [[b"again"]]


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_what_a_socket_sees_of_a_connection_that_breaks(kind):
    greeting = bytes(64)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with (
            FaultyProxy(address) as proxy,
            socket.create_connection(("127.0.0.1", int(proxy.address.split(":")[2]))) as near,
        ):
            far, _ = listener.accept()
            with far:
                near.sendall(greeting)
                assert far.recv(64, socket.MSG_WAITALL) == greeting
                proxy.faults = Faults(**{kind: 1.0})
                near.sendall(struct.pack("BB", 0, 8) + b"halfhalf")
                if kind == "reset":
                    with pytest.raises(ConnectionResetError):
                        far.recv(100)
                    with pytest.raises(ConnectionResetError):
                        near.recv(100)
                else:
                    assert far.recv(100, socket.MSG_WAITALL) == b"\x00\x08hal"
                    assert near.recv(100) == b""


def test_a_black_hole_gives_back_what_fell_into_it():
    with connected() as (proxy, dealer, router):
        proxy.faults = Faults(black_hole=True)
        dealer.send(b"patience")
        assert arrived(router) == []
        proxy.faults = Faults()
        assert arrived(router) == [[b"patience"]]


def test_a_server_that_comes_later_is_reached():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind("tcp://127.0.0.1:*")
        address = router.get_string(zmq.LAST_ENDPOINT)
        router.unbind(address)
        with FaultyProxy(address) as proxy, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.reconnect_ivl = 10
            dealer.connect(proxy.address)
            dealer.send(b"anybody there")
            time.sleep(0.1)
            router.bind(address)
            assert router.poll(2000)
            assert arrived(router) == [[b"anybody there"]]


@pytest.mark.parametrize("wrong", [{"delay_s": -1.0}, {"drop": -0.1}, {"drop": 0.6, "reset": 0.6}])
def test_faults_and_addresses_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Faults(**wrong)
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        FaultyProxy("ipc:///somewhere")
