"""MBPP's test format: assert statements that call the candidate's functions by name, with optional setup code.

A name that the tests neither define nor find among Python's built-ins refers to the candidate, unless it is a module of
the standard library (`sys`, `math`): reference solutions import these for their tests.
"""

import ast
import builtins
import sys

from trimoe.bench.bench import Verdict
from trimoe.bench.code.environment import environments
from trimoe.bench.code.verdict import Pairs, verdict
from trimoe.sandbox import Check, run_jobs

ENVIRONMENT = environments()["mbpp"]


def score(pairs: Pairs) -> list[Verdict]:
    """One verdict per pair. Rows have `tests`, a list of statements, and `setup`, statements that run before them."""
    jobs = [_job(source, doc.check["setup"], doc.check["tests"]) for source, doc in pairs]
    return [verdict(outcome, source) for outcome, (source, _) in zip(run_jobs(jobs), pairs, strict=True)]


def _job(source: str, setup: str, statements: list[str]) -> Check:
    tests = "\n".join([setup, *statements])
    modules, names = foreign_names(tests)
    setup = "".join(f"import {name}\n" for name in modules)
    return Check(ENVIRONMENT.program(source, tests), setup, tests, tuple(names), ENVIRONMENT.limits)


def foreign_names(tests: str) -> tuple[list[str], list[str]]:
    """Names that tests use without defining them: (modules of the standard library, names of the candidate)."""
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
    """The function that the first test calls: a task may ask for one named like a built-in (`sum`)."""
    calls = [node.func for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Call)]
    return [function.id for function in calls[:1] if isinstance(function, ast.Name)]
