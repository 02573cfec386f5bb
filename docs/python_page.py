"""The reference page of the Python API, from signatures and docstrings."""

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import trimoe
from trimoe import errors
from trimoe.public import FUNCTIONS

PYTHON = """\
# Python API

`import trimoe` offers the steps of the workflow as functions, and their results as classes. It loads neither torch nor
numpy; a name is imported when it is first used. Every path may be a `str` or a `Path`, and every model may be given as
a path or as what `open` and `prune` return. In a terminal or a notebook, long calls show their progress;
`progress=callback` reports to `callback(done, total, text)` instead.

The examples run in this order, in one directory with a calibration set `tasks.yaml`, as a test of the documentation.
`tiny` is `trimoe.model.tiny`, the bundled model. A longer example: [trimoe in Python](../howto/python.md).
"""


def python_page() -> str:
    """Every public name: signature, docstring and example."""
    classes = [name for name in trimoe.__all__ if inspect.isclass(getattr(trimoe, name))]
    kinds = [name for name in classes if not issubclass(getattr(trimoe, name), Exception)]
    failures = sorted(set(classes) - set(kinds), key=lambda name: list(vars(errors)).index(name))
    parts = [PYTHON, "## Functions\n"]
    parts += [_documented(name, FUNCTIONS[name]) for name in FUNCTIONS]
    parts.append("## Classes\n")
    parts += [_documented(name, f"{getattr(trimoe, name).__module__}:{name}") for name in kinds]
    parts.append("## Errors\n")
    parts.append("Exit codes and the tree: [errors](errors.md).\n")
    parts += [_documented(name, f"trimoe.errors:{name}") for name in failures]
    return "\n".join(parts).rstrip() + "\n"


def _documented(name: str, where: str) -> str:
    """One public name as a section."""
    module, _, attribute = where.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    lines = [f"### trimoe.{name}\n"]
    if not inspect.isclass(found):
        lines.append(f"```python\n{_signature(name, found)}\n```\n")
    lines.append(_markdown(inspect.getdoc(found) or ""))
    if inspect.isclass(found) and not issubclass(found, Exception):
        rows = [f"| `{member}` | {text} |" for member, text in _members(found)]
        lines.append("\n| Member | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(lines)


def _signature(name: str, function: Callable[..., Any]) -> str:
    """The signature as it is written in the source, one parameter per line."""
    node = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(node, ast.FunctionDef)
    every, defaults = node.args, [*node.args.defaults]
    plain: list[str] = []
    for at, argument in enumerate(every.args):
        default = at - (len(every.args) - len(defaults))
        plain.append(ast.unparse(argument) + (f" = {ast.unparse(defaults[default])}" if default >= 0 else ""))
    named = [
        ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")
        for argument, default in zip(every.kwonlyargs, every.kw_defaults, strict=True)
    ]
    rest = [f"**{ast.unparse(every.kwarg)}"] if every.kwarg else []
    body = "".join(f"    {line},\n" for line in (*plain, *(["*"] if named else []), *named, *rest))
    return f"trimoe.{name}(\n{body}) -> {ast.unparse(node.returns) if node.returns else None}"


def _members(kind: type) -> Iterator[tuple[str, str]]:
    """Public methods and properties of a class with the first sentence of their docstrings, as Markdown."""
    for owner in reversed(kind.__mro__):
        if not owner.__module__.startswith("trimoe"):
            continue
        for name, value in vars(owner).items():
            function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            arguments = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
            called = "" if isinstance(value, property | functools.cached_property) else f"({', '.join(arguments)})"
            yield name + called, _sentence(function.__doc__)


def _sentence(text: str | None) -> str:
    """The first sentence of a docstring, for a table."""
    first = " ".join((text or "").split("\n\n")[0].split())
    return re.split(r"(?<=[^.])\.\s", first)[0].rstrip(".").replace("|", "\\|")


def _markdown(text: str) -> str:
    """A docstring as Markdown: its examples become code blocks."""
    blocks = []
    for block in text.split("\n\n"):
        blocks.append(f"```pycon\n{block}\n```" if block.lstrip().startswith(">>>") else block)
    return "\n\n".join(blocks) + "\n"
