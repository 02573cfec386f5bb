"""Values survive the way, operators of strangers do not, and nonsense is refused."""

import json
import math
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.sandbox.inside import wire

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 3000), 1 << 3000),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.fractions(),
    st.decimals(allow_nan=False),
    st.sampled_from([int, str, list, range(3, 9, 2)]),
    st.text(st.characters(categories=["Cs"])),
)
HASHABLE = st.recursive(SCALARS, lambda s: st.one_of(st.tuples(s, s), st.frozensets(s, max_size=3)), max_leaves=6)
VALUES = st.recursive(
    SCALARS,
    lambda s: st.one_of(
        st.lists(s),
        st.tuples(s, s),
        st.dictionaries(HASHABLE, s, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.builds(deque, st.lists(s)),
    ),
    max_leaves=20,
)


def there_and_back(value: Any) -> Any:
    return wire.decode(json.loads(wire.dumps(wire.encode(value))))


def alike(a: Any, b: Any) -> bool:
    """Equal and of the same types; NaN is like NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    if isinstance(a, complex):
        return alike(a.real, b.real) and alike(a.imag, b.imag)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, set | frozenset):
        return len(a) == len(b)  # a NaN in a set is equal to nothing, so members cannot be matched
    return bool(a == b)


@given(VALUES)
def test_values_survive(value: Any) -> None:
    text = wire.dumps(wire.encode(value))
    assert b"\n" not in text
    assert alike(there_and_back(value), value)


@given(st.sets(st.one_of(st.integers(), st.text(), st.tuples(st.integers(), st.text()))))
def test_sets_survive(value: set[Any]) -> None:
    assert there_and_back(value) == value


def test_subclasses_travel_as_what_they_are_below() -> None:
    point = namedtuple("point", "x y")
    colour = IntEnum("colour", "red blue")
    assert there_and_back(point(1, [2])) == (1, [2])
    assert there_and_back(Counter("aab")) == {"a": 2, "b": 1}
    assert there_and_back(OrderedDict(a=1)) == {"a": 1}
    assert there_and_back([colour.blue, type("S", (str,), {})("text")]) == [2, "text"]


def test_overloaded_operators_are_not_asked() -> None:
    def lie(*_: Any) -> Any:
        raise AssertionError("asked")

    names = (
        "__eq__",
        "__iter__",
        "__len__",
        "__str__",
        "__repr__",
        "__hash__",
        "__int__",
        "__float__",
        "items",
        "__index__",
    )
    for base, args in (
        (int, (7,)),
        (float, (1.5,)),
        (list, ([1, 2],)),
        (tuple, ([1],)),
        (dict, ({"a": 1},)),
        (bytes, (b"x",)),
    ):
        liar = type("Liar", (base,), dict.fromkeys(names, lie))(*args)
        back = there_and_back([liar])[0]
        assert type(back) is base
        assert back == base(*args)


def test_views_and_iterators() -> None:
    assert list(there_and_back(x * x for x in range(3))) == [0, 1, 4]
    assert there_and_back({"a": 1}.keys()) == {"a"}
    assert list(there_and_back({"a": 1}.values())) == [1]
    assert there_and_back({"a": 1}.items()) == {("a", 1)}
    assert there_and_back(range(5)) == range(5)
    assert next(there_and_back(map(str, [1]))) == "1"


def test_numpy_values_keep_their_types() -> None:
    for value in (np.float64(0.1), np.int32(-3), np.bool_(True), np.complex64(1 + 2j), np.str_("x")):
        back = there_and_back(value)
        assert type(back) is type(value)
        assert back == value
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array[0, 0] = np.nan
    back = there_and_back([array])[0]
    assert back.dtype == array.dtype
    assert np.array_equal(back, array, equal_nan=True)


def test_what_has_no_form_is_refused_or_handed_on() -> None:
    class Thing:
        pass

    loop: list[Any] = []
    loop.append(loop)
    for value in (Thing(), lambda: 1, json, loop, iter(int, 1), {1: Thing()}, np.array([Thing()])):
        with pytest.raises(wire.Unencodable):
            wire.encode(value)
    assert wire.encode([Thing()], lambda value: {"$": ["ref", 5]}) == [{"$": ["ref", 5]}]
    assert wire.decode([{"$": ["ref", 5]}], lambda number: number * 2) == [10]


@pytest.mark.parametrize(
    "text",
    [
        '{"$": ["ref", 1]}',
        '{"$": ["no such tag", 1]}',
        '{"$": 1}',
        '{"a": 1}',
        '{"$": ["int", "x"], "b": 1}',
        "{}",
        '{"$": ["int", "zz"]}',
        '{"$": ["float", "1.0"]}',
        '{"$": ["set", [[]]]}',
        '{"$": ["dict", [[1]]]}',
        '{"$": ["bytes", "0"]}',
        '{"$": ["ndarray", ["|O8", []]]}',
        '{"$": ["ndarray", ["<f8", [[1], [1, 2]]]]}',
        '{"$": ["type", "eval"]}',
        '{"$": ["type", ["x"]]}',
        '{"$": ["range", [0, 1, 0]]}',
        '{"$": ["fraction", [1, 0]]}',
        '{"$": ["tuple", 3]}',
        '{"$": [["tuple"], []]}',
        '{"$": ["decimal", "x"]}',
        '{"$": ["scalar", ["<i4", [1]]]}',
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    value = json.loads(text)
    if text == '{"$": ["scalar", ["<i4", [1]]]}':
        assert isinstance(wire.decode(value), np.ndarray)  # an array where a number was promised: equal to no number
        return
    with pytest.raises(ValueError):  # noqa: PT011 that it is one is all that matters
        wire.decode(value)


PLAIN = st.one_of(st.none(), st.integers(), st.text(), st.floats(allow_nan=False))
KEYS = st.sampled_from(["$", "a"])
TAGS = st.sampled_from([*wire._READERS, "ref", "no tag"])


def tagged(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists, dictionaries, and what looks like an encoded value."""
    payload = inner | st.lists(inner, max_size=3) | st.lists(st.lists(inner, min_size=2, max_size=2), max_size=2)
    encoded = st.tuples(TAGS, payload).map(lambda pair: {"$": list(pair)})
    return st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner), encoded, encoded)


def unordered(encoded: Any) -> Any:
    """The items of sets in one order: theirs depends on the hash seed, and on the order in which they were added."""
    if isinstance(encoded, list):
        return [unordered(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    tag, payload = encoded["$"]
    items = unordered(payload)
    return {"$": [tag, sorted(items, key=repr) if tag in ("set", "frozenset") else items]}


def test_any_json_is_a_value_or_a_value_error() -> None:
    """A value that is read can be encoded again, and means the same."""
    seen = {"read": 0, "refused": 0, "containers": 0}

    @settings(max_examples=500, deadline=None)
    @given(st.recursive(PLAIN, tagged, max_leaves=12))
    def check(value: Any) -> None:
        try:
            found = wire.decode(value)
        except ValueError:
            seen["refused"] += 1
            return
        seen["read"] += 1
        seen["containers"] += b'"$"' in wire.dumps(value)
        again = wire.encode(wire.decode(value))
        assert again == wire.encode(found), "one text, two values"
        assert unordered(wire.encode(wire.decode(again))) == unordered(again)

    check()
    assert min(seen.values()) >= 20, seen


def test_small_texts_do_not_become_huge_values() -> None:
    wide = wire.decode({"$": ["ndarray", ["<U999999", ["a"] * 1000]]})
    assert wide.nbytes == 4000
    colliding = [i * ((1 << 61) - 1) for i in range(20_000)]  # all of hash 0
    for tag, items in (
        ("set", colliding),
        ("frozenset", colliding),
        ("keys", colliding),
        ("dict", [[i, 0] for i in colliding]),
    ):
        with pytest.raises(ValueError, match="hash"):
            wire.decode({"$": [tag, items]})
    assert len(there_and_back(set(range(20_000)) | {str(i) for i in range(20_000)})) == 40_000
    deep: Any = 1
    for _ in range(450):
        deep = [deep]
    with pytest.raises(ValueError, match="levels"):
        wire.decode(deep)


def test_exact_numbers() -> None:
    assert there_and_back(Fraction(1, 3)) == Fraction(1, 3)
    assert there_and_back(Decimal("0.10")) == Decimal("0.10")
    assert there_and_back(-(1 << 20000)) == -(1 << 20000)
