"""Helpers for all commands: `--json`, printed results, readable sizes, progress, and checks for optional packages.

Invariants: with `--json`, standard output is exactly one JSON document. Progress goes to standard error:
a bar in a terminal, else lines of text. Only light imports, so `trimoe --help` stays fast.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from trimoe.errors import MissingPrerequisite
from trimoe.io.progress import terminal as progress

__all__ = ["EXTRAS", "emit", "install_command", "json_option", "progress", "require_extra", "show_size"]

F = TypeVar("F", bound=Callable[..., Any])

# Extra of the package -> (packages that it installs, commands that need it). `trimoe doctor` prints this table.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (
        ("torch", "transformers", "safetensors", "tokenizers"),
        "calibrate, eval, demo, and the logit part of certify",
    ),
    "eval": (
        ("datasets", "lm_eval", "math_verify"),
        "eval and log import of MATH-500 and IFEval, and data sets from the Hugging Face hub",
    ),
    "llamacpp": (
        ("cmake", "ninja"),
        "building llama.cpp (trimoe llamacpp install) on systems without cmake or ninja",
    ),
    "serve": (
        ("torch", "transformers", "fastapi", "uvicorn", "openai"),
        "serving a checkpoint with transformers: trimoe serve DIRECTORY",
    ),
    "report": (("matplotlib",), "the page of trimoe demo, trimoe report, ladder --plot, stats show --heatmap"),
    "view": (("starlette", "uvicorn"), "trimoe view"),
    "data": (("datasets",), "calibration sets with Hugging Face data sets"),
    "hub": (("huggingface_hub",), "uploading to the Hugging Face hub: trimoe publish --to hub"),
    "parquet": (("pyarrow",), "trimoe log export --format parquet"),
    "dev": (("ruff", "mypy", "pytest", "hypothesis", "scipy"), "make test and make check"),
}


def json_option(command: F) -> F:
    """Adds `--json`; the command receives it as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(command)


def emit(data: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result: `data` as JSON, or `text`."""
    # NaN is not valid JSON. A result that contains it is a bug where the result is computed, so fail here.
    click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text)


def show_size(size: int) -> str:
    """A number of bytes as text, in decimal units with three significant digits."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.3g} {unit}" if size < 100 * step else f"{size / step:.0f} {unit}"
    return f"{size} B"


def require_extra(extra: str, purpose: str) -> None:
    """Raise `MissingPrerequisite`, with the install command, unless all packages of `extra` are installed."""
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
    """The shell command that installs an extra. torch is pinned: an open version range would download GPU libraries."""
    first = "pip install torch==2.13.0 && " if extra in ("torch", "serve") else ""
    return f"{first}pip install 'trimoe[{extra}]'"


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None
