"""MultiPL-E: puts the function body from the largest fenced block between prompt and tests, and runs the program."""

import re
from collections.abc import Sequence

from trimoe.bench.bench import Doc
from trimoe.bench.code_tests import check_program
from trimoe.bench.fences import blocks, largest
from trimoe.bench.rows import Row, View, spec_bench
from trimoe.bench.spec import BenchSpec
from trimoe.sandbox import require_sandbox

NAMES = {"rs": "Rust", "java": "Java", "js": "JavaScript"}
TAGS = {"rs": "rust", "java": "java", "js": "javascript"}
# Comments, raw strings, strings and character literals (not Rust's lifetimes): their braces do not count.
_NO_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|r(#*)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\[^']*|[^'\\])'""", re.DOTALL)


def views(rows: Sequence[Row], _spec: BenchSpec) -> list[View]:
    """Views of rows. The tests contain the closing braces that the stop tokens name."""
    return [_view(row) for row in rows]


def _view(row: Row) -> View:
    language = row["language"]
    check = {key: row[key] for key in ("name", "language", "prompt", "tests", "stop_tokens")}
    fields = {"language": NAMES[language], "tag": TAGS[language], "prompt": row["prompt"]}
    return View(fields, check, "")


def program(reply: str, doc: Doc) -> str | None:
    """The whole program: prompt, body, tests. None if the reply has no closed block."""
    block = largest([block for block in blocks(reply) if block.closed and block.text.strip()])
    if block is None:
        return None
    check = doc.check
    text = body(block, check["prompt"])
    if any(stop.strip() == "}" for stop in check["stop_tokens"]):
        text = without_closing_braces(text)
    return f"{check['prompt']}{text}\n{check['tests']}"


def body(block: str, prompt: str) -> str:
    """The text after the signature if the block repeats it, else the whole block.

    The signature is the prompt's last non-blank line, ignoring white space, or else the function's name with any
    parameters. The last match counts.
    """
    signature = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
    words = [re.escape(word) for word in re.findall(r"\w+|[^\w\s]", signature)]
    named = re.search(r"(\w+)\s*(?:<[^(]*>)?\s*\(", signature)
    patterns = [r"\s*".join(words)] if words else []
    if named:
        patterns.append(rf"\b{named.group(1)}\s*(?:<[^(]*>)?\s*\([^)]*\)[^{{}};]*\{{")
    for pattern in patterns:
        if found := list(re.finditer(pattern, block)):
            return block[found[-1].end() :].lstrip("\n")
    return block


def without_closing_braces(text: str) -> str:
    """The text without the final closing braces that it did not open, because the tests contain them.

    Removing all final braces, as in the reference, would break a body that ends in an `if` or `for`.
    """
    code = _NO_CODE.sub("", text)
    surplus = code.count("}") - code.count("{")
    text = text.rstrip()
    while surplus > 0 and text.endswith("}"):
        text = text[:-1].rstrip()
        surplus -= 1
    return text


BENCH = spec_bench("multipl_e_100", views, check_program, extract_for=program, needs=require_sandbox)
