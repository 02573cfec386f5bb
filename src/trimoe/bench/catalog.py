"""Finds benches by name: shipped ones, users' own files, variants and suites.

A shipped bench is a TOML file in `benches/`, with a Python file of the same name that defines `BENCH` if its answers
need code. `name:variant` is another bench built from it.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from trimoe.bench.answer_table import declared_bench, open_bench
from trimoe.bench.bench import SMOKE, Bench
from trimoe.bench.cause import Cause as Cause
from trimoe.bench.spec_file import load_spec
from trimoe.errors import BenchError, UsageError

SUITES: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny-code", "tiny-math", "tiny-choice", "tiny-format", "tiny-text", "tiny-story"),
    "nine": (
        "arc-challenge",
        "gpqa-diamond",
        "gsm8k-100",
        "math-500-100",
        "aime-2024",
        "ifeval-100",
        "humaneval",
        "humaneval-plus",
        "lcb-medium-55",
    ),
}


@cache
def benches() -> dict[str, Bench]:
    """Every shipped bench by name, sorted by name, without variants."""
    from trimoe.bench import benches as folder

    infos = list(pkgutil.iter_modules(folder.__path__))
    modules = [importlib.import_module(f"{folder.__name__}.{info.name}") for info in infos]
    found = [module.BENCH for module in modules if isinstance(getattr(module, "BENCH", None), Bench)]
    if both := [b.name for b in found if b.protocol is not None and b.protocol.answer is not None]:
        raise BenchError(
            f"bench {both[0]} has an [answer] table and a Python file", expected="one of them", remedy="remove one"
        )
    alone = {path.stem for path in Path(folder.__path__[0]).glob("*.toml")} - {info.name for info in infos}
    found += [declared_bench(load_spec(name)) for name in sorted(alone)]
    return {bench.name: bench for bench in sorted(found, key=lambda bench: bench.name)}


def find(names: "Sequence[str | Bench]") -> list[Bench]:
    """Benches by name, `name:variant` or path of a bench file; `Bench` objects are kept. `UsageError` lists the known
    names. Repeated names count once."""
    known = benches()
    texts = [name for name in names if isinstance(name, str)]
    unknown = [name for name in texts if name.split(":")[0] not in known and not _is_file(name)]
    if unknown or not names:
        raise UsageError(
            f"unknown bench {', '.join(unknown)}" if unknown else "no bench named",
            expected="a bench file (my_bench.toml), or one or more of " + ", ".join(known),
            actual=", ".join(texts) or "none",
            remedy="correct --bench, or use --suite tiny",
        )
    found: dict[str, Bench] = {}
    files: dict[str, str] = {}  # base name -> the file that gave it
    for name in names:
        bench = name if isinstance(name, Bench) else _named(known, *name.split(":"))
        file = name.split(":")[0] if isinstance(name, str) and _is_file(name) else ""
        if file and files.setdefault(bench.name.split(":")[0], file) != file:
            raise BenchError(
                f"{file}: another file also has a bench named {bench.name.split(':')[0]}",
                remedy="rename one of them",
            )
        found.setdefault(bench.name, bench)
    return list(found.values())


def chosen_benches(
    bench: "str | Bench | Sequence[str | Bench] | None", suite: str | None = None, *, smoke: bool = False
) -> list[Bench]:
    """The benches of a name, of names separated by commas, of a list, or of a suite.

    `smoke` takes the variant with a few rows of each. Raises `UsageError` unless exactly one of `bench` and `suite` is
    given, and for unknown names.
    """
    if (bench is None) == (suite is None):
        raise UsageError(
            "name the benches",
            expected="--bench or --suite, one of them",
            actual="neither" if bench is None else "both",
            remedy="for example --suite tiny",
        )
    if suite is not None and suite not in SUITES:
        raise UsageError(f"unknown suite {suite}", expected=", ".join(SUITES), remedy="correct --suite")
    names: Sequence[str | Bench] = SUITES[suite] if suite else [bench] if isinstance(bench, Bench) else bench or ()
    if isinstance(names, str):
        names = [part.strip() for part in names.split(",") if part.strip()]
    if smoke:
        names = [n if isinstance(n, Bench) or SMOKE in n.split(":") else f"{n}:{SMOKE}" for n in names]
    return find(names)


def _is_file(name: str) -> bool:
    return name.split(":")[0].endswith(".toml")


def _named(known: dict[str, Bench], name: str, *variants: str) -> Bench:
    bench = _opened(known, Path(name)) if _is_file(name) else known[name]
    return bench.variant(variants) if variants else bench


def _opened(known: dict[str, Bench], path: Path) -> Bench:
    bench = open_bench(path)
    if bench.name in known:
        raise BenchError(f"{path}: a shipped bench is already named {bench.name}", remedy="rename yours")
    return bench
