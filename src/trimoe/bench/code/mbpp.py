"""MBPP's form of tests: assert statements that call the candidate's functions by name, perhaps after some setup.

What a test names and neither defines nor Python has is the candidate's; a name that is a module of the standard library
(`sys`, `math`) is that module, because reference solutions import them for their tests.
"""

import ast
import builtins
import sys

from trimoe.bench.bench import Verdict
from trimoe.bench.code.verdict import Pairs, verdict
from trimoe.sandbox import Check, Limits, run_jobs

LIMITS = Limits(cpu=10)


def score(pairs: Pairs) -> list[Verdict]:
    """Rows have `tests`, a list of statements, and `setup`, statements that come before them."""
    jobs = [_job(source, doc.check["setup"], doc.check["tests"]) for source, doc in pairs]
    return [verdict(outcome, source) for outcome, (source, _) in zip(run_jobs(jobs), pairs, strict=True)]


def _job(source: str, setup: str, statements: list[str]) -> Check:
    tests = "\n".join([setup, *statements])
    modules, names = foreign_names(tests)
    return Check(source, "".join(f"import {name}\n" for name in modules), tests, tuple(names), LIMITS)


def foreign_names(tests: str) -> tuple[list[str], list[str]]:
    """Names that tests use without defining them: modules of the standard library, and the candidate's."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
    free = sorted(name for name in used - defined if not hasattr(builtins, name))
    modules = [name for name in free if name in sys.stdlib_module_names]
    return modules, [name for name in free if name not in modules] or _first_called(tests)


def _first_called(tests: str) -> list[str]:
    """A task may ask for a function named like a built-in one (`sum`): then it is what the first test calls."""
    calls = [node.func for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Call)]
    return [function.id for function in calls[:1] if isinstance(function, ast.Name)]
