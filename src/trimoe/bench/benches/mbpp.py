"""MBPP: runs the largest fenced block, or the text from the first `def`, against three asserts."""

import re

from trimoe.bench.code_tests import check_asserts
from trimoe.bench.extract import largest_block
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.sandbox import require_sandbox

_DEF = re.compile(r"^def ", re.MULTILINE)


def view(row: Row) -> View:
    """A row. The prompt shows the asserts that are run."""
    tests = list(row["test_list"])
    check = {"tests": tests, "setup": row.get("test_setup_code") or ""}
    return View({"text": row["text"], "tests": "\n".join(tests)}, check, f"```python\n{row['code']}\n```")


def code(reply: str) -> str | None:
    """The largest block, closed or not; without a fence, the text from the first line that starts with `def`."""
    block = largest_block(reply, unterminated=True)
    if block is not None:
        return block
    found = _DEF.search(reply)
    return reply[found.start() :] if found else None


BENCH = spec_bench("mbpp", each(view), check_asserts, extract=code, needs=require_sandbox)
