"""Shared by all commands: `--json`, output, sizes, progress, and the check for an extra.

Invariants: with `--json`, standard output carries exactly one JSON document; progress goes to standard error, and only
to a terminal. Imports nothing heavy, so `trimoe --help` stays fast.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from trimoe.errors import MissingPrerequisite, UsageError
from trimoe.io.progress import terminal as progress

__all__ = ["EXTRAS", "emit", "install_command", "json_option", "parse_size", "progress", "require_extra", "show_size"]

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

# What an extra brings, and which verbs need it. `doctor` prints it; `require_extra` names it in its remedy.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (
        ("torch", "transformers", "safetensors", "tokenizers"),
        "calibrate, eval, demo, and the logit part of certify",
    ),
    "eval": (
        ("datasets", "lm_eval", "math_verify"),
        "benchmarks: eval and log import of MATH-500 and IFEval, data sets from the hub",
    ),
    "llamacpp": (
        ("cmake", "ninja"),
        "building llama.cpp (trimoe llamacpp install) where the system has neither",
    ),
    "serve": (
        ("torch", "transformers", "fastapi", "uvicorn", "openai"),
        "serving checkpoints with transformers: trimoe serve DIRECTORY",
    ),
    "report": (("matplotlib",), "demo's page, trimoe report, ladder --plot, stats show --heatmap"),
    "view": (("starlette", "uvicorn"), "trimoe view"),
    "data": (("datasets",), "calibration sets that name Hugging Face data sets"),
    "hub": (("huggingface_hub",), "uploading to the hub: trimoe publish --to hub"),
    "parquet": (("pyarrow",), "trimoe log export --format parquet"),
    "dev": (("ruff", "mypy", "pytest", "hypothesis", "scipy"), "make test and make check"),
}


def json_option(command: F) -> F:
    """Adds `--json`; the command receives it as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(command)


def emit(data: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result once: as JSON for machines, or as text for people."""
    # allow_nan=False: NaN is not JSON, and a result that holds one must be fixed where it is made.
    click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text)


def parse_size(text: str, example: str) -> int:
    """Bytes of a size such as 5GB (decimal) or 4GiB (binary). Raises `UsageError`, which shows `example`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMG]?I?B?)", text.strip().upper())
    number = float(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if number < 1:
        raise UsageError(
            f"{text!r} is not a size",
            expected="a number with B, KB, MB, GB, KiB, MiB or GiB",
            remedy=f"for example {example}",
        )
    return int(number)


def show_size(size: int) -> str:
    """Bytes for people: decimal units, three digits."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.3g} {unit}" if size < 100 * step else f"{size / step:.0f} {unit}"
    return f"{size} B"


def require_extra(extra: str, purpose: str) -> None:
    """Raise `MissingPrerequisite` with the install command unless every package of `extra` can be imported."""
    packages, _ = EXTRAS[extra]
    missing = [name for name in packages if sys.modules.get(name, "") is None or not _installed(name)]
    if missing:
        raise MissingPrerequisite(
            f"{purpose} needs the extra '{extra}'",
            expected=", ".join(packages),
            actual=f"not installed: {', '.join(missing)}",
            remedy=install_command(extra),
        )


def install_command(extra: str) -> str:
    """The shell command that installs an extra; torch is pinned because an open range fetches GPU libraries."""
    first = "pip install torch==2.13.0 && " if extra in ("torch", "serve") else ""
    return f"{first}pip install 'trimoe[{extra}]'"


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None
