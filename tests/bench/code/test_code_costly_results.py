"""Results that are costly to decode, compare or print: each is its sample's verdict, and the bench goes on.

A candidate chooses what it sends. It may write the encoded form itself, with any declared size.
"""

from collections.abc import Callable, Iterator

import pytest

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.benches import tiny_code
from trimoe.bench.code import compare, evalplus, livecodebench
from trimoe.bench.code.evalplus import Problem
from trimoe.sandbox import Compare, Limits, Sandbox
from trimoe.sandbox.inside import wire

# Sends a line of its own in place of its result and leaves.
SEND = """
import os
def send(line):
    for fd in range(3, 64):
        try: os.write(fd, line)
        except OSError: pass
def value(text): send(b'{"value":' + text.encode() + b'}\\n')
"""
RESULTS = {
    "one long text in a wide array": """
import numpy as np
def f(x): value('{"$":["ndarray",["<U1",["' + 'a' * 100000 + '"' + ',"a"' * 500000 + ']]]}'); os._exit(0)
""",
    "a declared item size": """
def f(x): value('{"$":["ndarray",["<c99999",[1]]]}'); os._exit(0)
""",
    "a fraction of a million digits": """
def f(x):
    value('{"$":["fraction",[{"$":["int","0x' + 'f' * 900000 + '"]},{"$":["int","0x' + 'e' * 900001 + '"]}]]}')
    os._exit(0)
""",
    "half the items collide": """
def f(x):
    ours = [i * ((1 << 61) - 1) for i in range(40000)] + list(range(41000))
    value('{"$":["set",' + str(ours) + ']}')
    os._exit(0)
""",
    "colliding keys": """
def f(x):
    ours = [[i * ((1 << 61) - 1), 0] for i in range(60000)]
    value('{"$":["dict",' + str(ours) + ']}')
    os._exit(0)
""",
    "colliding tuples": """
def f(x):
    ours = ','.join('{"$":["tuple",[' + str(i * ((1 << 61) - 1)) + ']]}' for i in range(30000))
    value('{"$":["set",[' + ours + ']]}')
    os._exit(0)
""",
    "deep lists": "def f(x): value('[' * 200000 + ']' * 200000); os._exit(0)",
    "deep tagged values": "def f(x): value('{\"$\":[\"tuple\",[' * 9000 + ']]}' * 9000); os._exit(0)",
    "millions of empty lists": "def f(x): value('[' + '[],' * 2000000 + '[]]'); os._exit(0)",
    "an array that broadcasts": """
import numpy as np
def f(x): return np.zeros((400000, 1), dtype=np.int8)
""",
    "a number of many digits": "def f(x): value('9' * 5000000); os._exit(0)",
    "a decimal of a huge exponent": 'def f(x): value(\'{"$":["decimal","1e999999999999"]}\'); os._exit(0)',
    "a long decimal": "def f(x): value('{\"$\":[\"decimal\",\"' + '9' * 7000000 + '\"]}'); os._exit(0)",
    "no JSON": "def f(x): value('nonsense' * 1000); os._exit(0)",
    "invalid text": 'def f(x): send(b\'{"value":"\\xff\\xfe\\x00"}\\n\'); os._exit(0)',
    "another key": 'def f(x): send(b\'{"value":1,"value":{}}\\n{"value":}\\n\'); os._exit(0)',
    "a long message": "def f(x): send(b'{\"raised\":[\"' + b'x' * 6000000 + b'\", \"\"]}\\n'); os._exit(0)",
    "an unprintable message": "def f(x): raise ValueError('\\ud800\\x00')",
    "nothing": "def f(x): os._exit(0)",
}
GOOD = "def f(x): return [x]"


def method(source: str) -> str:
    """The function f as a method of `Solution`."""
    return f"{source}\nclass Solution:\n    def f(self, x): return f(x)\n"


def by_livecodebench(sources: list[str]) -> list[Verdict]:
    doc = Doc("d", "", "", {"method": "f", "tests": [[[1], [1]]]})
    return livecodebench.score([(method(source), doc) for source in sources])


def by_tiny_code(sources: list[str]) -> list[Verdict]:
    doc = Doc("d", "", "", {"entry_point": "f", "tests": [["1", "[1]"]]})
    return tiny_code.score([(source, doc) for source in sources])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=2) as sandbox:
        yield sandbox


@pytest.mark.timeout(300)
@pytest.mark.parametrize("score", [by_livecodebench, by_tiny_code])
def test_each_is_its_sample_s_verdict(score: Callable[[list[str]], list[Verdict]]) -> None:
    first, *others, last = score([GOOD, *(SEND + source for source in RESULTS.values()), GOOD])
    assert first.correct
    assert last.correct
    assert {name: v for name, v in zip(RESULTS, others, strict=True) if v.correct is not False} == {}
    for verdict in others:
        verdict.detail.encode()  # can be stored


@pytest.mark.timeout(300)
def test_evalplus_too(sandbox: Sandbox, tmp_path: object) -> None:
    problem = Problem("T/0", "def f(x):\n", "f", "    return [x]\n", ((1,),), (), 1e-6)
    names = ["one long text in a wide array", "half the items collide", "an array that broadcasts", "invalid text"]
    pairs = [(SEND + RESULTS[name], problem) for name in names]
    *others, last = evalplus.score([*pairs, (GOOD, problem)], sandbox)
    assert last.correct
    assert [v.correct for v in others] == [False] * len(names)


def compared(sandbox: Sandbox, results: list[object], expected: list[object], **limits: float) -> Compare:
    lines = [tuple(wire.dumps({"value": wire.encode(v)}) for v in values) for values in (results, expected)]
    return Compare(*lines, "same", (None,) * len(results), Limits(**limits))  # type: ignore[arg-type]


def test_a_comparison_stops_at_the_first_difference(sandbox: Sandbox) -> None:
    (outcome,) = sandbox.run([compared(sandbox, [1, (2,), 3, 4], [1.0, (2,), 5, 6])])
    assert (outcome.status, len(outcome.lines)) == ("ok", 3)
    found = compare.difference(outcome, [3, 5, 7, 9])
    assert found is not None
    assert (found.place, found.got, found.expected) == (7, "3", "5")
    assert compare.difference(sandbox.run([compared(sandbox, [1], [True])])[0], [0]) is None


def test_a_comparison_has_limits_of_its_own(sandbox: Sandbox) -> None:
    many: list[object] = [list(range(300_000))]
    tight = [compared(sandbox, many, many, memory=16 << 20), compared(sandbox, [1], [1])]
    starved, good = sandbox.run(tight)
    found = compare.difference(starved, [4])
    assert found is not None
    assert found.place == 4
    assert found.unreadable
    assert found.verdict("s", "").cause == "code error"
    assert compare.difference(good, [0]) is None


def test_equal_texts_need_no_process() -> None:
    due = compare.Due.of([1, float("nan"), "x"], "same")
    job, places = compare.comparison(due.lines, due)
    assert places == [1]
    assert job is not None
    assert compare.comparison(due.lines[:1], due) == (None, [])
