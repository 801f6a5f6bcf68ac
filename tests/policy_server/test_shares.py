"""How well sessions were served: against the definition, and bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.shares import _WEIGHT, Shares


def share_of(answers):
    """A mean in which each request counts for a fixed part of what those after it leave."""
    return sum(
        _WEIGHT * (1 - _WEIGHT) ** age * answered for age, answered in enumerate(reversed(answers))
    )


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_each_session_has_its_own_share_in_which_the_latest_requests_count_most(history):
    shares = Shares()
    for session, answered in history:
        shares.note(session, 1.0, answered=answered)
    for session in "abc":
        answers = [answered for s, answered in history if s == session]
        assert shares.of(session) == pytest.approx(share_of(answers))
        assert 0 <= shares.of(session) <= 1


def test_newcomers_count_as_not_served_yet():
    assert Shares().of("nobody") == 0


def test_a_million_sessions_are_not_remembered_and_the_ones_heard_of_last_are():
    shares = Shares(max_sessions=100)
    for number in range(1000):
        shares.note(f"session {number}", 1.0, answered=True)
        shares.note("regular", 1.0, answered=True)
    assert len(shares) == 100
    assert shares.of("regular") == pytest.approx(1.0)
    remembered = [number for number in range(1000) if shares.of(f"session {number}") > 0]
    assert remembered == list(range(901, 1000))


def test_asking_makes_no_entry():
    shares = Shares()
    shares.of("somebody")
    assert len(shares) == 0


def test_whoever_is_served_better_than_most_has_less_room_but_at_least_half_of_it():
    shares = Shares()
    assert shares.room("nobody") == 1
    for _ in range(50):
        shares.note("spoilt", 1.0, answered=True)
        shares.note("poor", 1.0, answered=False)
    assert shares.room("poor") == shares.room("nobody") == 1
    assert shares.room("spoilt") == 0.5
    shares = Shares()
    for session in "ab":
        for number in range(50):
            shares.note(session, 1.0, answered=session == "a" or number % 5 > 0)
    assert 0.5 < shares.room("a") < 0.95
    assert shares.room("b") == 1


def test_those_who_have_left_do_not_count():
    shares = Shares()
    for number in range(100):
        shares.note(f"gone {number}", 1.0, answered=False)
    for _ in range(50):
        shares.note("here", 2.9, answered=True)
    assert shares.room("here") == 0.5
    shares.note("here", 3.1, answered=True)
    assert len(shares) == 1
    assert shares.room("here") == 1
