"""MultiPL-E: completes the reply's own program with the row's tests, and runs it."""

import re
from collections.abc import Sequence

from trimoe.bench.bench import Doc
from trimoe.bench.code.languages import Syntax, bare, language_of
from trimoe.bench.code_tests import check_program
from trimoe.bench.fences import candidates, largest
from trimoe.bench.rows import Row, View, spec_bench
from trimoe.bench.spec import BenchSpec
from trimoe.sandbox import require_sandbox

NAMES = {"rs": "Rust", "java": "Java", "js": "JavaScript"}
TAGS = {"rs": "rust", "java": "java", "js": "javascript"}


def views(rows: Sequence[Row], _spec: BenchSpec) -> list[View]:
    """Views of rows. The tests contain the closing braces that the stop tokens name."""
    return [_view(row) for row in rows]


def _view(row: Row) -> View:
    language = row["language"]
    check = {key: row[key] for key in ("name", "language", "prompt", "tests", "stop_tokens")}
    fields = {"language": NAMES[language], "tag": TAGS[language], "prompt": row["prompt"]}
    return View(fields, check, "")


def program(reply: str, doc: Doc) -> str | None:
    """The whole program up to the tests, then the tests. None if the reply has no block.

    Of several blocks, those that define the asked function count, and of these the largest. Such a block keeps its
    imports and helpers and loses its main. Another block is the function's body, after the prompt.
    """
    check, language = doc.check, language_of(doc.check["language"])
    name = asked_name(check["prompt"])
    found = candidates(reply)
    own = [block for block in found if name and language.defines(bare(block.text, language.syntax), name)]
    if own:
        block = max(own, key=lambda block: (block.opened, block.closed, len(block.text))).text
        if (complete := language.complete(block, check["prompt"], name)) is not None:
            return f"{complete.rstrip()}\n{check['tests']}"
    else:
        closed = largest([block for block in found if block.closed])
        if closed is None:
            return None
        block = closed
    text = body(block, check["prompt"])
    if any(stop.strip() == "}" for stop in check["stop_tokens"]):
        text = without_closing_braces(text, language.syntax)
    return f"{check['prompt']}{text}\n{check['tests']}"


def asked_name(prompt: str) -> str:
    """The name of the function that the prompt's last line begins; empty if there is none."""
    named = re.search(r"(\w+)\s*(?:<[^(]*>)?\s*\(", _signature(prompt))
    return named.group(1) if named else ""


def _signature(prompt: str) -> str:
    return next((line for line in reversed(prompt.split("\n")) if line.strip()), "")


def body(block: str, prompt: str) -> str:
    """The text after the signature if the block repeats it, else the whole block.

    The signature is the prompt's last non-blank line, ignoring white space, or else the function's name with any
    parameters. The last match counts.
    """
    signature = _signature(prompt)
    words = [re.escape(word) for word in re.findall(r"\w+|[^\w\s]", signature)]
    patterns = [r"\s*".join(words)] if words else []
    if name := asked_name(prompt):
        patterns.append(rf"\b{name}\s{{0,9}}(?:<[^(]{{0,200}}>)?\s{{0,9}}\([^)]{{0,500}}\)[^{{}};]{{0,200}}\{{")
    for pattern in patterns:
        if found := list(re.finditer(pattern, block)):
            return block[found[-1].end() :].lstrip("\n")
    return block


def without_closing_braces(text: str, syntax: Syntax) -> str:
    """The text without the final closing braces that it did not open, because the tests contain them.

    Removing all final braces, as in the reference, would break a body that ends in an `if` or `for`.
    """
    code = bare(text, syntax)
    surplus = code.count("}") - code.count("{")
    text = text.rstrip()
    while surplus > 0 and text.endswith("}"):
        text = text[:-1].rstrip()
        surplus -= 1
    return text


BENCH = spec_bench("multipl_e_100", views, check_program, extract_for=program, scorer=2, needs=require_sandbox)
