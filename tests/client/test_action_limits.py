"""client/action_limits.py: what is at a limit, beyond it, and no number at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from client.action_limits import ActionLimits
from client.errors import UnsafeActionError

LIMITS = ActionLimits((-1000.0, 0.0), (1000.0, 5.0), (10.0, math.inf))


def chunk(first: float, second: float = 0.0) -> np.ndarray:
    """Three actions, the last of which is the one in question."""
    return np.array([[0, 0], [0, 0], [first, second]], np.float32)


@pytest.mark.parametrize("limit", [1000.0, -1000.0])
def test_an_action_at_its_limit_passes_and_rounding_is_clipped(limit: float) -> None:
    just_over = np.float32(limit) * np.float32(1 + 1e-6)
    assert abs(just_over) > abs(limit)
    for value in (limit, just_over):
        safe = LIMITS.check(chunk(float(value)))
        assert safe.dtype == np.float32
        assert safe.tolist() == [[0, 0], [0, 0], [limit, 0]]


@pytest.mark.parametrize(
    ("first", "second", "where"), [(1000.1, 0, "2, 0"), (-1000.1, 0, "2, 0"), (0, -0.1, "2, 1")]
)
def test_what_is_beyond_a_limit_is_rejected_not_clipped(
    first: float, second: float, where: str
) -> None:
    with pytest.raises(UnsafeActionError, match=rf"actions\[{where}\]: expected") as caught:
        LIMITS.check(chunk(first, second))
    assert caught.value.reason == "limits"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_rejected(bad: float) -> None:
    for actions in (chunk(bad), chunk(0, bad)):
        with pytest.raises(UnsafeActionError, match="finite") as caught:
            LIMITS.check(actions)
        assert caught.value.reason == "finite"


def test_a_change_is_limited_where_it_does_harm() -> None:
    previous = np.array([100.0, 0.0], np.float32)
    for first, second in ((110, 5), (90, 0), (100, 5)):
        LIMITS.check_change(previous, np.array([first, second], np.float32))
    for first in (110.1, 89.9, np.nan):
        with pytest.raises(UnsafeActionError, match=r"action\[0\].*at most 10") as caught:
            LIMITS.check_change(previous, np.array([first, 0], np.float32))
        assert caught.value.reason == "change"


@pytest.mark.parametrize(
    ("minimum", "maximum", "max_change"),
    [
        ((), (), ()),
        ((0.0,), (1.0, 1.0), (1.0,)),
        ((1.0,), (0.0,), (1.0,)),
        ((0.0,), (math.inf,), (1.0,)),
        ((0.0,), (1.0,), (0.0,)),
        ((0.0,), (1.0,), (math.nan,)),
    ],
)
def test_limits_that_are_none(
    minimum: tuple[float, ...], maximum: tuple[float, ...], max_change: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="ActionLimits"):
        ActionLimits(minimum, maximum, max_change)
