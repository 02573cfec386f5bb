"""MBPP: runs the block that defines the asked function, the largest of several, against three asserts."""

import re

from trimoe.bench.bench import Doc
from trimoe.bench.code.mbpp import foreign_names
from trimoe.bench.code_tests import check_asserts
from trimoe.bench.extract import parse, valid_prefix
from trimoe.bench.fences import Block, candidates, defines, largest
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.sandbox import require_sandbox

_DEF = re.compile(r"^def ", re.MULTILINE)
_IMPORT = re.compile(r"^(?:import|from)[ \t]+[\w.]{1,80}(?:[ \t][^\n]*)?$", re.MULTILINE)


def view(row: Row) -> View:
    """A row. The prompt shows the asserts that are run."""
    tests = list(row["test_list"])
    check = {"tests": tests, "setup": row.get("test_setup_code") or ""}
    return View({"text": row["text"], "tests": "\n".join(tests)}, check, f"```python\n{row['code']}\n```")


def code(reply: str, doc: Doc) -> str | None:
    """The block, closed or not, that defines most of the names that the tests take from it; the largest of several.

    A reply may begin inside the block, as under lm-eval's own prompt. Without a block that defines such a name, the
    largest one counts; without a fence, the text from the first `def`, with the imports before it.
    """
    asked = foreign_names("\n".join([doc.check["setup"], *doc.check["tests"]]))[1]
    found = candidates(reply)
    texts = [text for block in found if defines(block.text, asked) and (text := _text(block)) is not None]
    named = [(defines(text, asked), len(text), text) for text in texts]
    if named and max(named)[0]:
        return max(named)[2]
    return largest(found) or _unfenced(reply)


def _text(block: Block) -> str | None:
    """The text of a block. What precedes the first fence must be Python: it may as well be prose."""
    return block.text if block.opened else valid_prefix(block.text, lambda _: True)


def _unfenced(reply: str) -> str | None:
    found = _DEF.search(reply)
    if found is None:
        return None
    before = [line for line in _IMPORT.findall(reply[: found.start()]) if not isinstance(parse(line), SyntaxError)]
    return "".join(f"{line}\n" for line in before) + reply[found.start() :]


BENCH = spec_bench("mbpp", each(view), check_asserts, extract_for=code, scorer=2, needs=require_sandbox)
