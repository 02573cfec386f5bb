"""Comparison of results with expected values. Pure; both sides are plain values (results were decoded by `wire`).

A result is whatever the candidate chose to send, so decoding and comparing it may cost any time and memory. That
happens in a sample of its own, under limits: see `jobs.Compare`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

_DEFAULT_ATOL = 1e-6  # evalplus: absolute tolerance for floats when the row has 0
_RTOL = 1e-7  # evalplus: passed to numpy.allclose explicitly


def same(result: Any, expected: Any) -> bool:
    """Python's equality. Values that cannot be compared, such as arrays of different shapes, differ."""
    try:
        return bool(result == expected)
    except (ValueError, TypeError, RecursionError):
        return False


def listed(value: Any) -> Any:
    """Tuples converted to lists at any depth, because JSON does not distinguish them."""
    if isinstance(value, tuple | list):
        return [listed(item) for item in value]
    return {key: listed(item) for key, item in value.items()} if isinstance(value, dict) else value


def is_root(coefficients: Sequence[Any], root: Any) -> bool:
    """HumanEval/32: any x with |p(x)| <= 1e-4 where p has the given coefficients, lowest first."""
    try:
        return bool(abs(sum(c * math.pow(root, i) for i, c in enumerate(coefficients))) <= 1e-4)
    except (TypeError, ValueError, OverflowError):
        return False


def shown(value: Any, width: int = 80) -> str:
    """A value for a message, cut to `width` characters. Values that cannot be printed are replaced by their type."""
    try:
        return repr(value)[:width]
    except (ValueError, RecursionError, MemoryError):
        return f"<a long {type(value).__name__}>"


def same_as_evalplus(result: Any, expected: Any, atol: float) -> bool:
    """The rule of evalplus 0.3.1: equal, or of the same type and within tolerance.

    A tolerance applies if the row has one (`atol`) or floats are expected. It is numpy.allclose's, elementwise:
    |result - expected| <= atol + 1e-7 * |expected|; a NaN is never close. evalplus keeps a tolerance, once needed, for
    all later inputs of the row. Here each input gets its own, so the verdict does not depend on their order.
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
    except OverflowError:  # an integer beyond the range of floats
        return False


RULES: dict[str, Callable[[Any, Any, Any], bool]] = {
    "same": lambda result, expected, _: same(result, expected),
    "listed": lambda result, expected, _: same(listed(result), listed(expected)),
    "evalplus": same_as_evalplus,
    "root": lambda result, _, coefficients: is_root(coefficients, result),
}
"""The rules by name. Each takes a result, the expected value, and a setting: a tolerance, or coefficients."""
