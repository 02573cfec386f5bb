"""Expected results of evalplus problems: results of the canonical solutions, computed in the sandbox and cached.

Invariants: a cached result is found by the hash of the source, of every input, and of the Python version that ran it,
never by a name. A damaged file is computed again. The cache is $XDG_CACHE_HOME/trimoe/oracle.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import Refused
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_json
from trimoe.sandbox import Calls, Limits, Sandbox

_FORMAT = 1  # of the encoding of results
LIMITS = Limits(cpu=120, call_cpu=120, memory=4 << 30, output=64 << 20)


@dataclass(frozen=True)
class Expected:
    """One encoded result per input, in order, and the CPU seconds of all calls together."""

    lines: tuple[bytes, ...]
    cpu: float


def expected(calls: Sequence[Calls], sandbox: Sandbox, cache: Path | None = None) -> list[Expected]:
    """Results of canonical solutions. Raises `Refused` if one fails: the row is broken then, and nothing is scored."""
    folder = cache or _folder()
    paths = [folder / f"{_identity(call)}.json" for call in calls]
    known = [_read(path, call) for path, call in zip(paths, calls, strict=True)]
    missing = [place for place, found in enumerate(known) if found is None]
    outcomes = sandbox.run([calls[place] for place in missing])
    for place, outcome in zip(missing, outcomes, strict=True):
        if outcome.status != "ok":
            raise Refused(
                f"the canonical solution of {calls[place].entry} does not run",
                expected="a result for every input",
                actual=f"{outcome.status}: {outcome.detail}",
                remedy="check the data set file; run again if the machine was overloaded",
            )
        known[place] = Expected(outcome.lines, outcome.cpu)
        body = {
            "lines": [line.decode("latin-1") for line in outcome.lines],
            "cpu": outcome.cpu,
        }  # latin-1 keeps any bytes
        with publish_file(paths[place], overwrite=True) as temporary:
            temporary.write_text(json.dumps(body))
    return [found for found in known if found is not None]


def _identity(call: Calls) -> str:
    arguments = [repr(one) for one in call.args]
    return sha256_json([_FORMAT, platform.python_version(), call.source, call.entry, arguments, call.digest_over])


def _read(path: Path, call: Calls) -> Expected | None:
    try:
        body: Any = json.loads(path.read_bytes())
        lines = tuple(line.encode("latin-1") for line in body["lines"])
        return Expected(lines, float(body["cpu"])) if len(lines) == len(call.args) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimoe" / "oracle"
