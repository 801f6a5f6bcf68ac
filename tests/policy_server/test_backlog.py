"""The backlog against a plain list that is added up anew for every question."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_server.backlog import Backlog

NOW_S = 100.0


class PlainList:
    """(deadline, work) of every promise; nothing is kept that could go wrong."""

    def __init__(self, promises=()):
        self.promises = list(promises)

    def done_s(self, deadline_s):
        return NOW_S + sum(work_s for due_s, work_s in self.promises if due_s <= deadline_s)

    def leaves_all_in_time(self, deadline_s, work_s):
        in_time = {d for d, _ in self.promises if d > deadline_s and self.done_s(d) <= d}
        return all(self.done_s(d) + work_s <= d for d in in_time)


# few different values, so that deadlines are often equal; eighths add up exactly
instants = st.integers(0, 12).map(lambda n: NOW_S + n / 2)
works = st.integers(1, 16).map(lambda n: n / 8)
promises = st.lists(st.tuples(instants, works), max_size=8)
moves = st.lists(st.tuples(st.booleans(), instants, works, st.integers(0, 20)), max_size=12)


@settings(max_examples=500)
@given(promises, moves, instants, works)
def test_it_says_what_a_plain_list_says_whatever_is_added_and_taken_back(
    first, moves, deadline_s, work_s
):
    first.sort(key=lambda promise: promise[0])
    backlog, plain = Backlog(NOW_S, [d for d, _ in first], [w for _, w in first]), PlainList(first)
    for added, due_s, move_s, which in moves:
        if added or not plain.promises:
            backlog.add(due_s, move_s)
            plain.promises.append((due_s, move_s))
        else:
            promise = plain.promises.pop(which % len(plain.promises))
            backlog.remove(*promise)
    for asked_s in (deadline_s, NOW_S - 1, NOW_S + 100):
        assert backlog.begin_s(asked_s) == plain.done_s(asked_s)
    if len({d for d, _ in plain.promises}) == len(plain.promises):
        # among equal deadlines a part may already be late, and the rest not
        expected = plain.leaves_all_in_time(deadline_s, work_s)
        assert backlog.leaves_all_in_time(deadline_s, work_s) == expected


@given(promises, instants, works)
def test_taking_back_what_was_never_promised_changes_nothing(first, due_s, work_s):
    first = sorted((d, w) for d, w in first if d != due_s)
    backlog = Backlog(NOW_S, [d for d, _ in first], [w for _, w in first])
    before_s = [backlog.begin_s(NOW_S + n / 2) for n in range(-1, 14)]
    backlog.remove(due_s, work_s)
    assert [backlog.begin_s(NOW_S + n / 2) for n in range(-1, 14)] == before_s


def test_nothing_is_promised_at_first():
    assert Backlog(NOW_S).begin_s(1e300) == NOW_S
    assert Backlog(NOW_S).leaves_all_in_time(0.0, 1e300)


@pytest.mark.parametrize(("work_s", "fits"), [(0.5, True), (0.625, False)])
def test_one_who_is_due_later_can_wait_until_its_deadline_and_no_longer(work_s, fits):
    backlog = Backlog(NOW_S, [NOW_S + 1.5], [1.0])
    assert backlog.leaves_all_in_time(NOW_S + 1.0, work_s) == fits
    assert backlog.leaves_all_in_time(NOW_S + 1.5, work_s)  # goes before


def test_one_who_is_late_anyway_keeps_nobody_out():
    backlog = Backlog(NOW_S, [NOW_S + 1.0], [2.0])
    assert backlog.leaves_all_in_time(NOW_S + 0.5, 100.0)
