"""LiveCodeBench, medium: runs the text between the last two fences against functional tests.

A row's tests are text with one argument per line: JSON, a Python literal, or plain text. Private tests are compressed
and pickled; the unpickler accepts only plain data.
"""

import ast
import base64
import binascii
import io
import json
import pickle
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code.environment import INT_TEXT_DIGITS, environments
from trimoe.bench.code_tests import check_method
from trimoe.bench.fences import FENCE, candidates, defines, fence_of
from trimoe.bench.rows import Row, View, spec_bench
from trimoe.bench.spec import BenchSpec
from trimoe.errors import BenchError
from trimoe.io.expand import inflated
from trimoe.sandbox import require_sandbox

_CODE = re.compile(r"^[ \t]*(?:class|def|import|from)\s", re.MULTILINE)
MOST_DIGITS = environments()["livecodebench"].int_text_digits
_METHOD = re.compile(r"def\s+(\w+)\s*\(\s*self")


def between_fences(reply: str) -> str | None:
    """The lines between the last two fence lines; with one fence, the side that is code; with none, everything.

    As in LiveCodeBench, every line that contains three backticks is a fence line. Only without any are fences of tildes
    looked for.
    """
    lines = reply.split("\n")
    fences = [i for i, line in enumerate(lines) if FENCE in line]
    fences = fences or [i for i, line in enumerate(lines) if fence_of(line)]
    if len(fences) >= 2:
        text = "\n".join(lines[fences[-2] + 1 : fences[-1]])
    elif fences:
        before, after = "\n".join(lines[: fences[0]]), "\n".join(lines[fences[0] + 1 :])
        text = before if _CODE.search(before) and not _CODE.search(after) else after
    else:
        text = reply
    return text if text.strip() else None


def opinion(reply: str, doc: Doc, verdict: Verdict) -> str:
    """Where the text between the last two fences lacks the asked method, and another block has it; else empty."""
    method = str(doc.check["method"])
    if verdict.correct or defines(verdict.extracted or "", [method]):
        return ""
    return f"another block defines {method}" if any(defines(b.text, [method]) for b in candidates(reply)) else ""


def row_id(row: Row) -> str:
    """The id of a row: lcb/platform/number."""
    return f"lcb/{row['platform']}/{row['question_id']}"


def medium(rows: Iterable[Row], spec: BenchSpec) -> Iterator[Row]:
    """Rows of the pinned ids' platform, without private tests (up to 100 MB per row) unless they will be run."""
    private = bool(spec.options["private_tests"])
    for row in rows:
        if row["platform"] == "leetcode":
            yield row if private else {key: value for key, value in row.items() if key != "private_test_cases"}


def views(rows: Sequence[Row], spec: BenchSpec) -> list[View]:
    """Views of rows. `BenchError` for a row whose difficulty or kind of test does not match its pinned id."""
    return [_view(row, bool(spec.options["private_tests"])) for row in rows]


def _view(row: Row, private: bool) -> View:
    method = _METHOD.search(row["starter_code"])
    public = json.loads(row["public_test_cases"])
    if row["difficulty"] != "medium" or not method or not public or public[0]["testtype"] != "functional":
        raise BenchError(
            f"LiveCodeBench row {row['question_id']} is not the pinned row",
            expected="difficulty medium, a functional public test, a method in the starter code",
            actual=f"difficulty {row['difficulty']}, {len(public)} public tests",
            remedy="use the pinned data set, unchanged",
        )
    cases = [*public, *(private_tests(row["private_test_cases"]) if private else [])]
    tests = [[arguments(case["input"]), literal(case["output"].strip())] for case in cases]
    fields = {"question": row["question_content"], "starter": row["starter_code"]}
    return View(fields, {"method": method.group(1), "tests": tests}, "")


def arguments(text: str) -> list[Any]:
    """The arguments of a call, one per line."""
    return [literal(line) for line in text.split("\n") if line.strip()]


def literal(text: str) -> Any:
    """The value of a JSON text, else of a Python literal, else the text itself."""
    try:
        return json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(json.dumps(ast.literal_eval(text.strip())))  # tuples become lists
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _whole(digits: str) -> int:
    """An integer of up to 50,000 digits, as many as LiveCodeBench reads; `int` alone refuses more than 4,300."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of more than {MOST_DIGITS} digits")
    return int(digits) if len(digits) < INT_TEXT_DIGITS else int(Decimal(digits))


class _Plain(pickle.Unpickler):
    """Unpickles strings and containers only. Classes are refused, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a file of tests")


def private_tests(packed: str) -> list[dict[str, Any]]:
    """Private tests from JSON, or from base64 of zlib of a pickle of JSON."""
    try:
        return list(json.loads(packed))
    except ValueError:
        pass
    try:
        text = _Plain(io.BytesIO(inflated(base64.b64decode(packed)))).load()
        return list(json.loads(text))
    except (ValueError, TypeError, binascii.Error, zlib.error, pickle.UnpicklingError, EOFError) as exc:
        raise BenchError(
            "private tests of a LiveCodeBench row cannot be read",
            expected="JSON, or base64 of a zlib-compressed pickle",
            actual=str(exc)[:200],
            remedy="use the pinned data set, unchanged",
        ) from exc


BENCH = spec_bench(
    "lcb_medium_55",
    views,
    check_method,
    extract=between_fences,
    prepare=medium,
    row_id=row_id,
    scorer=2,
    opinion=opinion,
    needs=require_sandbox,
)
