"""The bound on unseen waiting, against queues that are known."""

import random
from collections import deque

import pytest

from policy_server.unread import Unread


class Clients:
    """Queues of which one message each is taken in turn, as ZeroMQ does."""

    def __init__(self, names):
        self.queues = {name: deque() for name in names}
        self.order = deque(names)

    def take(self):
        """(client, when its message came), or None."""
        for _ in range(len(self.order)):
            name = self.order[0]
            self.order.rotate(-1)
            if self.queues[name]:
                return name, self.queues[name].popleft()
        return None


@pytest.mark.parametrize("seed", range(20))
def test_no_message_has_waited_longer_than_is_said(seed):
    rng = random.Random(seed)
    clients = Clients([b"a", b"b", b"c", b"d"])
    rates = {name: rng.choice([0.1, 0.3, 1.0]) for name in clients.queues}
    unread = Unread(0.0)
    for now_s in range(1, 2000):
        for name, rate in rates.items():
            if rng.random() < rate:
                clients.queues[name].append(now_s - 0.5)
        for _ in range(rng.randrange(4)):
            message = clients.take()
            if message is None:
                unread.drained(float(now_s))
            else:
                client, came_s = message
                assert unread.read(client, float(now_s)) >= now_s - came_s


def test_who_sends_a_flood_waits_for_itself_alone():
    clients = Clients([b"flood", b"calm"])
    unread = Unread(0.0)
    said = {b"flood": [], b"calm": []}
    for number in range(1, 1000):
        now_s = 0.001 * number
        clients.queues[b"flood"] += [now_s] * 2
        if number % 100 == 0:
            clients.queues[b"calm"].append(now_s)
        client, _ = clients.take()
        said[client].append(unread.read(client, now_s))
    assert max(said[b"calm"]) < 0.005
    assert said[b"flood"][-1] > 0.9


def test_clients_that_all_have_something_queued_are_all_late():
    names = [b"%d" % i for i in range(10)]
    clients = Clients(names)
    for name in names:
        clients.queues[name] += [0.0] * 100
    unread = Unread(0.0)
    for number in range(1, 1000):
        client, _ = clients.take()
        assert unread.read(client, number * 0.001) == pytest.approx(number * 0.001)
