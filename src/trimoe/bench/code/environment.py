"""The environment in which each grader runs a program, from `environments.toml`: imports, limits, settings."""

import ast
from functools import cache
from importlib import resources
from typing import Annotated

import msgspec

from trimoe.io.datafile import Data, load
from trimoe.sandbox import Limits

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
RECURSION_LIMIT, INT_TEXT_DIGITS = 1000, 4300  # Python's defaults


class Environment(Data, frozen=True, kw_only=True):
    """One grader's environment; `environments.toml` explains each field."""

    original: str
    star: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    recursion_limit: Positive = RECURSION_LIMIT
    int_text_digits: Positive = INT_TEXT_DIGITS
    test_imports: bool = False
    call_seconds: Seconds
    seconds: Seconds
    per_test: bool = False
    memory_mib: Positive

    @property
    def preamble(self) -> str:
        """Python source that stands before a program."""
        lines = [f"from {name} import *" for name in self.star] + [f"import {name}" for name in self.modules]
        if self.recursion_limit != RECURSION_LIMIT:
            lines.append(f"__import__('sys').setrecursionlimit({self.recursion_limit})")
        if self.int_text_digits != INT_TEXT_DIGITS:
            lines.append(f"__import__('sys').set_int_max_str_digits({self.int_text_digits})")
        return "".join(f"{line}\n" for line in lines)

    @property
    def limits(self) -> Limits:
        """The limits of a sample with one test."""
        return Limits(cpu=self.seconds, call_cpu=self.call_seconds, memory=self.memory_mib << 20)

    def program(self, source: str, tests: str = "") -> str:
        """A candidate's source with what the original grader puts around it. `tests` is the data set's code."""
        after = f"\n{imports_of(tests)}" if self.test_imports else ""
        return f"{self.preamble}\n{source}{after}" if self.preamble else f"{source}{after}"


@cache
def environments() -> dict[str, Environment]:
    """Every grader's environment by name."""
    source = resources.files(__package__) / "environments.toml"
    return load(dict[str, Environment], source, "environments.toml")


def imports_of(tests: str) -> str:
    """The import statements at the top level of a data set's tests, as source. Tests that do not parse have none."""
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError):
        return ""
    return "".join(f"{ast.unparse(node)}\n" for node in body if isinstance(node, ast.Import | ast.ImportFrom))
