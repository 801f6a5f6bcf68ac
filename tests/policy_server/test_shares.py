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
        shares.note(session, answered=answered)
    for session in "abc":
        answers = [answered for s, answered in history if s == session]
        assert shares.of(session) == pytest.approx(share_of(answers))
        assert 0 <= shares.of(session) <= 1


def test_newcomers_count_as_not_served_yet():
    assert Shares().of("nobody") == 0


def test_a_million_sessions_are_not_remembered_and_the_ones_heard_of_last_are():
    shares = Shares(max_sessions=100)
    for number in range(1000):
        shares.note(f"session {number}", answered=True)
        shares.note("regular", answered=True)
    assert len(shares) == 100
    assert shares.of("regular") == pytest.approx(1.0)
    remembered = [number for number in range(1000) if shares.of(f"session {number}") > 0]
    assert remembered == list(range(901, 1000))


def test_asking_makes_no_entry():
    shares = Shares()
    shares.of("somebody")
    assert len(shares) == 0
