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


def test_whoever_is_served_better_than_most_has_less_room_but_always_some():
    shares = Shares()
    assert shares.room("nobody", 1.0) == 1
    for _ in range(50):
        shares.note("spoilt", 1.0, answered=True)
        shares.note("poor", 1.0, answered=False)
    assert shares.room("poor", 1.0) == shares.room("nobody", 1.0) == 1
    assert shares.room("spoilt", 1.0) == 0.3
    shares = Shares()
    for session in "ab":
        for number in range(50):
            shares.note(session, 1.0, answered=session == "a" or number % 5 > 0)
    assert 0.3 < shares.room("a", 1.0) < 0.95
    assert shares.room("b", 1.0) == 1


def test_new_sessions_that_are_served_take_no_room_from_old_ones():
    shares = Shares()
    for _ in range(50):
        shares.note("old", 1.0, answered=True)
    for number in range(50):
        shares.note(f"new {number}", 1.0, answered=True)
    assert shares.room("old", 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("answered", [False, True])
def test_those_who_have_left_do_not_count(answered):
    shares = Shares()
    for number in range(100):
        shares.note(f"gone {number}", 1.0, answered=answered)
    for number in range(51):
        shares.note("here", 2.9, answered=number % 2 == 0)
        shares.note("poor", 2.9, answered=False)
    with_them = shares.room("here", 3.0)
    without = shares.room("here", 3.1)
    assert len(shares) == 2
    expected = 1 - 4 * (shares.of("here") / 2)  # the mean is half of it: "poor" has nothing
    assert without == pytest.approx(max(0.3, expected), abs=1e-3)
    assert with_them == (0.3 if not answered else 1.0)
