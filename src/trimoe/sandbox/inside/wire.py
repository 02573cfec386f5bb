"""Encoding of Python values as JSON, for processes that do not trust each other.

Plain JSON values are encoded as themselves; everything else as {"$": [tag, payload]}: tuple, set, frozenset, dict, big
integers, non-finite floats, complex, Fraction, Decimal, bytes, deque, range, dictionary views, built-in types by name,
iterators (their items, up to a bound) and numpy arrays and scalars. Instances of subclasses are encoded as their base
class (a Counter as a dict, a named tuple as a tuple) by the base class's own methods, so overloaded operators are lost.
Any other value is passed to `other`, which encodes a reference or refuses it.

Decoding builds plain values only. It runs no code of the sender and raises `ValueError` for malformed input.
"""

import itertools
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

_LONG = 1 << 1024  # above this, decimal digits are slow (and Python refuses more than 4300 of them)
_MOST_ITEMS = 1 << 20  # of an iterator, which may be infinite
_FEW = 1000  # so few items can be put into a set quickly, whatever their hashes
_MOST_COMPARISONS = 1 << 20  # of items with equal hashes
_MOST_BITS = 1 << 17  # of the terms of a fraction
_MOST_CHARACTERS = 16 << 20  # of an array of texts
_DEEPEST = 200  # levels of containers; the JSON reader has its own limit
_EMPTY: list[Any] = []
_MADE: tuple[Any, ...] = (
    *(iter([]), iter(()), iter({}), iter(""), iter(set()), iter(range(0)), reversed([]), (item for item in _EMPTY)),
    *(map(str, _EMPTY), filter(None, _EMPTY), zip(_EMPTY, strict=True), enumerate(_EMPTY)),
    *(itertools.chain(), itertools.islice(_EMPTY, 0), itertools.permutations(_EMPTY), itertools.count()),
)
_ITERATORS = tuple(map(type, _MADE))

Encoded = Any
"""What `json.dumps` accepts."""


class Unencodable(ValueError):
    """A value that has no encoding."""


def _refuse(value: object) -> Encoded:
    raise Unencodable(f"a value of type {type(value).__name__} cannot be compared outside its process")


def encode(value: Any, other: Callable[[object], Encoded] = _refuse, depth: int = 0) -> Encoded:
    """The JSON form of a value. `other` encodes values without one. Raises `Unencodable`."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_LONG < value < _LONG else {"$": ["int", hex(value)]}
    if kind is float:
        return value if math.isfinite(value) else {"$": ["float", repr(value)]}
    if depth > _DEEPEST:
        raise Unencodable(f"more than {_DEEPEST} levels of containers, or one that holds itself")

    def each(items: Any) -> list[Encoded]:
        items = items if type(items) is list else list(items)
        return items if _is_plain(items) else [encode(item, other, depth + 1) for item in items]

    if kind is list:
        return each(value)
    if kind is type and value in _TYPES.values():
        return {"$": ["type", value.__name__]}
    if kind.__module__.partition(".")[0] == "numpy" and (numeric := _numpy(value)) is not None:
        return numeric  # before the bases: a numpy.float64 is a float too
    for base in kind.__mro__:
        if (writer := _WRITERS.get(base)) is not None:
            tag, items = writer(value)
            if tag in ("int", "str", "float"):
                return encode(items, other, depth + 1)
            if tag == "list":
                return each(items)
            return {"$": [tag, each(items) if isinstance(items, list | Iterator) else items]}
    if isinstance(value, _ITERATORS):
        items = list(itertools.islice(cast(Iterable[Any], value), _MOST_ITEMS + 1))
        if len(items) > _MOST_ITEMS:
            raise Unencodable(f"an iterator of more than {_MOST_ITEMS} items")
        return {"$": ["iter", each(items)]}
    return other(value)


def _is_plain(items: list[Any]) -> bool:
    """Whether every item is its own JSON form. Decides the common case of long lists without a Python loop."""
    kinds = set(map(type, items))
    if kinds <= _PLAIN:
        return True
    try:
        return kinds <= _NUMBERS and all(map(math.isfinite, items))
    except OverflowError:  # an integer beyond the range of floats, hence beyond _LONG
        return False


_PLAIN = {str, bool, type(None)}
_NUMBERS = {int, float, bool}

_TYPES = {kind.__name__: kind for kind in (int, float, str, bool, bytes, complex, list, tuple, dict, set, frozenset)}

# By the base class's own methods: overloads of subclasses are not called.
_WRITERS: Mapping[type, Callable[[Any], tuple[str, Any]]] = {
    int: lambda v: ("int", int.__index__(v)),
    float: lambda v: ("float", float.__float__(v)),
    str: lambda v: ("str", str.__str__(v) if type(v) is str else "".join(str.__iter__(v))),
    list: lambda v: ("list", list.__iter__(v)),
    tuple: lambda v: ("tuple", tuple.__iter__(v)),
    set: lambda v: ("set", set.__iter__(v)),
    frozenset: lambda v: ("frozenset", frozenset.__iter__(v)),
    dict: lambda v: ("dict", [list(pair) for pair in dict.items(v)]),
    deque: lambda v: ("deque", deque.__iter__(v)),
    range: lambda v: ("range", [v.start, v.stop, v.step]),
    type({}.keys()): lambda v: ("keys", iter(v)),
    type({}.values()): lambda v: ("values", iter(v)),
    type({}.items()): lambda v: ("items", [list(pair) for pair in v]),
    bytes: lambda v: ("bytes", bytes.hex(v)),
    bytearray: lambda v: ("bytearray", bytearray.hex(v)),
    Decimal: lambda v: ("decimal", Decimal.__str__(v)),
    Fraction: lambda v: ("fraction", [Fraction.numerator.__get__(v), Fraction.denominator.__get__(v)]),
    complex: lambda v: ("complex", [complex.real.__get__(v), complex.imag.__get__(v)]),
}


def _numpy(value: Any) -> Encoded | None:
    import numpy as np

    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufcU":
        array = np.asarray(value)
        plain = encode(array.tolist())
        return {"$": ["ndarray" if isinstance(value, np.ndarray) else "scalar", [array.dtype.str, plain]]}
    return None


def decode(value: Encoded, reference: Callable[[Any], object] | None = None, depth: int = 0) -> Any:
    """The value of a JSON form; `reference` resolves references made by the encoder's `other`. Raises `ValueError`."""
    if depth > 2 * _DEEPEST:  # a dictionary has two levels in encoded form and one as a value
        raise ValueError("too many levels of containers")
    if isinstance(value, list):
        return [decode(item, reference, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        ((mark, (tag, payload)),) = value.items()
        if mark == "$" and tag == "ref" and reference is not None:
            return reference(payload)
        if mark != "$" or tag not in _READERS:
            raise ValueError(f"unknown tag {tag!r}"[:80])
        reader, nested = _READERS[tag]
        return reader([decode(item, reference, depth + 1) for item in payload] if nested else payload)
    except (TypeError, KeyError, AttributeError, ArithmeticError, MemoryError) as exc:
        raise ValueError(f"malformed value: {exc}"[:200]) from exc


def _ndarray(payload: Any) -> Any:
    import numpy as np

    kind, plain = payload
    if not isinstance(kind, str) or kind[1:2] not in ("b", "i", "u", "f", "c", "U") or len(kind) > 8:
        raise ValueError("not the type of an array")
    # Strings get the width they need: a width named by the sender would be allocated for every element. Still, one long
    # string among many short ones widens all of them.
    if kind[1] == "U" and len(texts := _leaves(plain)) * max(map(len, texts), default=0) > _MOST_CHARACTERS:
        raise ValueError("an array of texts of very different lengths")
    return np.array(plain, dtype=np.dtype("U" if kind[1] == "U" else kind))


def _leaves(value: Any) -> list[str]:
    """The texts in nested lists."""
    if not isinstance(value, list):
        return [str(value)]
    return [leaf for item in value for leaf in _leaves(item)]


def _unlike(items: list[Any]) -> list[Any]:
    """Check the items of a set or keys of a dictionary: items of equal hash take quadratic time."""
    if len(items) > _FEW:
        alike = Counter(map(hash, items))
        if sum(count * count for count in alike.values()) > _MOST_COMPARISONS + 100 * len(items):
            raise ValueError("many different items with the same hash")
    return items


def _fraction(pair: Any) -> Fraction:
    """A fraction; reducing it takes quadratic time, so its terms must not be longer than any honest one's."""
    if any(isinstance(term, int) and term.bit_length() > _MOST_BITS for term in pair):
        raise ValueError(f"a fraction with terms of more than {_MOST_BITS:,} bits")
    return Fraction(*pair)


def _dictionary(pairs: list[Any]) -> dict[Any, Any]:
    _unlike([key for key, _ in pairs])
    return dict(pairs)


_READERS: Mapping[str, tuple[Callable[[Any], Any], bool]] = {
    "int": (lambda text: int(text, 16), False),
    "float": (lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text], False),
    "type": (_TYPES.__getitem__, False),
    "tuple": (tuple, True),
    "set": (lambda items: set(_unlike(items)), True),
    "frozenset": (lambda items: frozenset(_unlike(items)), True),
    "dict": (_dictionary, True),
    "deque": (deque, True),
    "iter": (iter, True),
    "range": (lambda ends: range(*ends), True),
    "keys": (lambda items: dict.fromkeys(_unlike(items)).keys(), True),
    "values": (lambda items: dict(enumerate(items)).values(), True),
    "items": (lambda pairs: _dictionary(pairs).items(), True),
    "bytes": (bytes.fromhex, False),
    "bytearray": (bytearray.fromhex, False),
    "decimal": (Decimal, False),
    "fraction": (_fraction, True),
    "complex": (lambda pair: complex(*pair), True),
    "ndarray": (_ndarray, True),
    "scalar": (lambda payload: _ndarray(payload)[()], True),
}


def dumps(value: Encoded) -> bytes:
    """One line of JSON, for `json.loads` of the bytes. Lone surrogates are not escaped: a pair would become one."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
