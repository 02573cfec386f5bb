"""Whether a result is the expected one. Pure; both sides are plain values (the result came through `wire`)."""

import math
from collections.abc import Sequence
from typing import Any

_DEFAULT_ATOL = 1e-6  # evalplus: what a float result may differ by when the row says 0
_RTOL = 1e-7  # evalplus: passed to numpy.allclose explicitly


def same(result: Any, expected: Any) -> bool:
    """Python's equality. Values that refuse to be compared (arrays of different shapes) are not the same."""
    try:
        return bool(result == expected)
    except (ValueError, TypeError, RecursionError):
        return False


def shown(value: Any, width: int = 80) -> str:
    """A value for a person to read, cut to a width. Numbers too long to print are named instead."""
    try:
        return repr(value)[:width]
    except (ValueError, RecursionError, MemoryError):
        return f"<a long {type(value).__name__}>"


def same_as_evalplus(result: Any, expected: Any, atol: float) -> bool:
    """evalplus 0.3.1's rule: equal, or of the same type and within tolerance where the row has one or floats are due.

    Tolerance is numpy.allclose's: |result - expected| <= atol + 1e-7 * |expected|, elementwise; a NaN is never close.
    evalplus keeps a tolerance it needed once for all later inputs of the row. Here each input gets its own, so the
    verdict does not depend on their order.
    """
    if same(result, expected):
        return True
    if atol == 0 and _is_floats(expected):
        atol = _DEFAULT_ATOL
    if atol == 0 or type(result) is not type(expected):
        return False
    return _close(result, expected, atol)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(result: Any, expected: Any, atol: float) -> bool:
    if isinstance(expected, list | tuple):
        if not isinstance(result, Sequence) or len(result) != len(expected):
            return False
        return all(_close(one, other, atol) for one, other in zip(result, expected, strict=True))
    if not isinstance(expected, int | float | complex) or not isinstance(result, int | float | complex):
        return False
    try:
        if isinstance(expected, complex) or isinstance(result, complex):
            return abs(result - expected) <= atol + _RTOL * abs(expected)
        if math.isinf(expected) or math.isinf(result):
            return result == expected
        return abs(result - expected) <= atol + _RTOL * abs(expected)
    except OverflowError:  # an integer beyond the floats
        return False
