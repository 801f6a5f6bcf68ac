"""Checks of single values from outside; each names the field, what was expected and what came.

They are made for every field of every message, so the common type passes after one comparison of
types; whatever does not goes through the full rule, which is the only one that can refuse.
"""

from __future__ import annotations

import math
import reprlib
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_INTEGER = 2**63 - 1
_SMALLEST, _LARGEST = sys.float_info.min, sys.float_info.max


def shown(value: object) -> str:
    """`value` for an error message, cut so that a hostile value cannot flood a log."""
    return reprlib.repr(value)


def integer(field: str, value: object, low: int, high: int = MAX_INTEGER) -> int:
    """`value` as an int; a bool is not one, although Python says so.

    Raises:
        ValueError: not an integer in low..high.
    """
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        plain = int(value)
        if low <= plain <= high:
            return plain
    upper = "2**63 - 1" if high == MAX_INTEGER else high
    msg = f"{field}: expected an integer in {low}..{upper}, got {shown(value)}"
    raise ValueError(msg)


def number(field: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite float in low..high, both included.

    Raises:
        ValueError: not a number, not finite, or out of range.
    """
    if type(value) is float and low <= value <= high and -_LARGEST <= value <= _LARGEST:
        return value
    plain = value.item() if isinstance(value, (np.integer, np.floating)) else value
    if isinstance(plain, (int, float)) and not isinstance(plain, bool):
        finite = -_LARGEST <= plain <= _LARGEST  # exact for a huge int, too
        if finite and low <= plain <= high:
            return float(plain)
    allowed = "" if low == -math.inf and high == math.inf else f" in {low:g}..{high:g}"
    msg = f"{field}: expected a finite number{allowed}, got {shown(value)}"
    raise ValueError(msg)


def positive_seconds(field: str, value: object) -> float:
    """`value` as a duration in seconds that is greater than zero.

    Raises:
        ValueError: not a finite number greater than zero.
    """
    if type(value) is float and _SMALLEST <= value <= _LARGEST:
        return value
    try:
        return number(field, value, low=_SMALLEST)
    except ValueError:
        msg = f"{field}: expected a finite number of seconds > 0, got {shown(value)}"
        raise ValueError(msg) from None


def boolean(field: str, value: object) -> bool:
    """`value` as a bool; 0 and 1 are not.

    Raises:
        ValueError: not a bool.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    msg = f"{field}: expected true or false, got {shown(value)}"
    raise ValueError(msg)


def text(field: str, value: object, max_bytes: int = sys.maxsize) -> str:
    """`value` as a string that is not blank and has at most `max_bytes` bytes in UTF-8.

    Raises:
        ValueError: not a string, blank, too long, or not encodable (a lone surrogate).
    """
    if type(value) is str and value.isascii() and 0 < len(value) <= max_bytes:
        if not value.isspace():
            return value
    elif not isinstance(value, str):
        msg = f"{field}: expected a string, got {shown(value)}"
        raise ValueError(msg)
    if not value or value.isspace():
        msg = f"{field}: expected a string that is not blank, got {shown(value)}"
        raise ValueError(msg)
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        msg = f"{field}: expected text that UTF-8 can encode, got {shown(value)}"
        raise ValueError(msg) from None
    if size > max_bytes:
        msg = f"{field}: expected at most {max_bytes} bytes of UTF-8, got {size}; shorten it"
        raise ValueError(msg)
    return value


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which numpy puts together anew each time that it is asked."""
    return dtype.name


def all_finite(array: npt.NDArray[Any]) -> bool:
    """Whether no element is NaN or infinite."""
    return b"\0" not in np.isfinite(array).tobytes()  # a third of the time of `.all()`
