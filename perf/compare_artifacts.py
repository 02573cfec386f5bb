"""Artifacts of two versions of trimoe, made with the same commands and compared file by file.

    python perf/compare_artifacts.py OLD_SRC NEW_SRC [--out DIR] [--parts core,eval,gguf,models] [--model MODEL ...]

OLD_SRC and NEW_SRC are `src` folders of two checkouts. Both run under this interpreter, selected by PYTHONPATH, through
the command line alone: module paths may differ between versions, the command line may not. Both versions start from
the bundled model of OLD_SRC and run in a folder of the same path, with one thread, so that paths, inputs and rounding
are equal. Then every file is compared by SHA-256, every exit code, and every JSON document printed.

Normalised before hashing, and counted separately in the summary: the version, durations and the memory of a run
(`VOLATILE` keys of JSON files and safetensors headers, `MASKS` in text). Not compared: SQLite files (their exported
rows are), standard error, and text printed without --json. Messages in printed JSON may be reworded between versions,
so differences there are listed but do not fail; --strict makes them fail.

Exit code 0: all artifacts and exit codes are equal. 1: something differs, or nothing was compared.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifact_commands import PARTS, Step, chosen_steps

VOLATILE = frozenset({"trimoe", "seconds", "seconds_per_layer", "ram", "peak_ram"})
"""Keys whose values name the version, a duration or the memory of one run."""
MASKS = (
    (re.compile(r"trimoe[ /]v?\d+\.\d+\.\d+\S*"), "trimoe VERSION"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d| UTC)?"), "MOMENT"),
)
TEXT = frozenset({".json", ".jsonl", ".yaml", ".yml", ".md", ".html", ".txt", ".csv", ".toml", ".svg", ""})
SKIPPED = frozenset({".db", ".db-wal", ".db-shm", ".lock", ".log"})
SET = """name: comparison
window: 256
classes:
  generic_code: [{kind: tiny, domain: code, count: 12}]
  generic_math: [{kind: tiny, domain: math, count: 12}]
  targeted_text: [{kind: tiny, domain: text, count: 12}]
"""

RUNNER = """
import json, os, runpy, sys
import numpy, tokenizers, torch, transformers  # imported once, so that a command does not pay for it
for name, argv in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        for number, suffix in ((1, "out"), (2, "log")):
            os.dup2(os.open(f"printed/{name}.{suffix}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["trimoe", *argv]
        runpy.run_module("trimoe", run_name="__main__", alter_sys=True)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(f"printed/{name}.exit", "w") as file:
        print(code, file=file)
"""
"""Runs every command as `python -m trimoe` does, in a child of its own."""


@dataclass
class Difference:
    """What differs between the two versions. `fatal` differences decide the exit code."""

    what: str
    detail: str
    fatal: bool = True


@dataclass
class Summary:
    """Counts and differences of one comparison."""

    identical: int = 0
    normalised: int = 0
    differences: list[Difference] = field(default_factory=list)


def prepare(work: Path, old: Path, models: list[Path]) -> None:
    """A fresh work folder with the inputs that both versions share."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "maps").mkdir(parents=True)
    weights = next(old.glob("trimoe/**/checkpoint/model.safetensors"))
    shutil.copytree(weights.parent, work / "model")
    (work / "set.yaml").write_text(SET)
    layers = json.loads((work / "model" / "config.json").read_text())["num_hidden_layers"]
    (work / "maps" / "plain.json").write_text(json.dumps({str(layer): [1, 4, 9] for layer in range(layers)}))
    (work / "others").mkdir()
    for model in models:
        if model.is_dir():
            shutil.copytree(model, work / "others" / model.name)
        else:
            shutil.copyfile(model, work / "others" / model.name)
        shutil.copyfile(model.with_name(f"{model.name}.map.json"), work / "others" / f"{model.name}.map.json")
        (work / model.name.removesuffix(".gguf")).mkdir()


def make(source: Path, work: Path, steps: list[Step]) -> None:
    """Run the steps in order; keep exit code, standard output and standard error of each in `work/printed`."""
    (work / "printed").mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "COLUMNS": "120",
    }
    commands = json.dumps([[step.name, step.argv] for step in steps])
    subprocess.run([sys.executable, "-c", RUNNER], cwd=work, env=environment, input=commands, text=True, check=True)


def stable(value: Any) -> Any:
    """A JSON value without the keys in `VOLATILE`, with masked texts."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [stable(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def masked(text: str) -> str:
    """A text with versions and moments replaced."""
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    return text


def normal(path: Path) -> bytes:
    """The content of a file, normalised as the module's docstring says."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        return json.dumps(stable(header)).encode() + content[8 + size :]
    if path.suffix not in TEXT | {".out"}:
        return content
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    try:
        # the order of keys is a part of a file, not of a printed document
        return json.dumps(stable(json.loads(text)), indent=1, sort_keys=path.suffix == ".out").encode()
    except ValueError:
        return masked(text).encode()


def first_difference(old: bytes, new: bytes) -> str:
    """The first lines that differ, or the first byte."""
    try:
        lines = list(zip(old.decode().splitlines(), new.decode().splitlines(), strict=False))
    except UnicodeDecodeError:
        place = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), -1)
        return f"{len(old)} and {len(new)} bytes, first difference at byte {place}"
    found = [(a, b) for a, b in lines if a != b]
    shown = "; ".join(f"{a.strip()[:160]!r} became {b.strip()[:160]!r}" for a, b in found[:3])
    return f"{len(found)} lines differ: {shown}" if found else "one has more lines than the other"


def compare(old: Path, new: Path) -> Summary:
    """Compare two folders of artifacts."""
    names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (old, new)]
    summary = Summary()
    for name in sorted(names[0] ^ names[1]):
        summary.differences.append(Difference(name, "only the old version made it" if name in names[0] else "new file"))
    for name in sorted(names[0] & names[1]):
        a, b = old / name, new / name
        if a.suffix in SKIPPED:
            continue
        if hashlib.sha256(a.read_bytes()).digest() == hashlib.sha256(b.read_bytes()).digest():
            summary.identical += 1
            continue
        left, right = normal(a), normal(b)
        if left == right:
            summary.normalised += 1
        else:
            fatal = a.suffix != ".out"
            summary.differences.append(Difference(name, first_difference(left, right), fatal))
    return summary


def main() -> None:
    """Make both sets of artifacts, compare them, print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder for both sets (default: artifacts)")
    parser.add_argument("--parts", default="core,eval,models", help=f"of {','.join(PARTS)}; core is always made")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        help="another checkpoint or GGUF file; NAME.map.json beside it",
    )
    parser.add_argument("--keep-old", action="store_true", help="reuse the artifacts of OLD_SRC from an earlier run")
    parser.add_argument("--strict", action="store_true", help="differences in printed JSON fail too")
    options = parser.parse_args()
    old, new = (path.resolve() for path in (options.old, options.new))
    models = [path.resolve() for path in options.model]
    steps = chosen_steps(options.parts.split(","), old, models)
    work = options.out / "work"
    for source, folder in ((old, options.out / "old"), (new, options.out / "new")):
        if options.keep_old and folder.name == "old" and folder.is_dir():
            continue
        prepare(work, old, models)
        make(source, work.resolve(), steps)
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    summary = compare(options.out / "old", options.out / "new")
    for difference in summary.differences:
        print(f"{'DIFFERS' if difference.fatal else 'printed'} {difference.what}: {difference.detail}")
    fatal = [difference for difference in summary.differences if difference.fatal or options.strict]
    print(f"{summary.identical} files identical, {summary.normalised} equal after normalising, {len(fatal)} differ")
    sys.exit(1 if fatal or not summary.identical else 0)


if __name__ == "__main__":
    main()
