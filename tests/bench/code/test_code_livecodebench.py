"""LiveCodeBench's functional tests: one instance, tuples as lists, equality outside."""

import pytest

from trimoe.bench.bench import Doc
from trimoe.bench.code import livecodebench
from trimoe.sandbox import Limits
from trimoe.sandbox.inside.compare import listed

TESTS = [[[[2, 7, 11], 9], [0, 1]], [[[3, 3], 6], [0, 1]]]
DOC = Doc("d", "", "", {"method": "twoSum", "tests": TESTS})
GOOD = """
class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = defaultdict(int)
        for i, n in enumerate(nums):
            if target - n in seen: return {answer}
            seen[n] = i
"""


def cause(source: str, doc: Doc = DOC) -> tuple[str, str]:
    (verdict,) = livecodebench.score([(source, doc)])
    return verdict.cause, verdict.detail


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench, "LIMITS", Limits(cpu=1, call_cpu=1))
    sources = {
        "correct": GOOD.replace("{answer}", "[seen[target - n], i]"),
        "tuples count as lists": GOOD.replace("{answer}", "(seen[target - n], i)"),
        "wrong": GOOD.replace("{answer}", "[i, seen[target - n]]"),
        "iterators do not": GOOD.replace("{answer}", "iter([seen[target - n], i])"),
        "no class": "def two_sum(nums, target): return [0, 1]",
        "a function": "def twoSum(nums, target): return [0, 1]",
        "spin": "class Solution:\n    def twoSum(self, a, b):\n        while True: pass",
        "leave": "import os\nos._exit(0)",
        "second test": "class Solution:\n    def twoSum(self, nums, target): return [0, 1] if nums[0] == 2 else 1 / 0",
    }
    verdicts = livecodebench.score([(source, DOC) for source in sources.values()])
    assert {name: v.cause for name, v in zip(sources, verdicts, strict=True)} == {
        "correct": "correct",
        "tuples count as lists": "correct",
        "wrong": "wrong",
        "iterators do not": "wrong",
        "no class": "code error",
        "a function": "correct",
        "spin": "code timeout",
        "leave": "code error",
        "second test": "code error",
    }


def test_the_instance_is_kept_and_the_wrong_test_is_named() -> None:
    counter = "class Solution:\n    n = 0\n    def f(self, x):\n        self.n += 1\n        return self.n"
    doc = Doc("d", "", "", {"method": "f", "tests": [[[0], 1], [[0], 2], [[0], 4]]})
    assert cause(counter, doc) == ("wrong", "test 3: got 3, expected 4")


def test_listed() -> None:
    assert listed({"a": (1, [(2,)])}) == {"a": [1, [[2]]]}
