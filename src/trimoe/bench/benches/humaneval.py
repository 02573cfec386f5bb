"""HumanEval: the last fenced block that holds a finished function, run against the row's tests."""

import ast

from trimoe.bench.bench import Doc
from trimoe.bench.code_tests import check_function
from trimoe.bench.extract import FENCE, complete_blocks, functions, has_body, valid_prefix
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.sandbox import require_sandbox


def view(row: Row) -> View:
    """The tests call `check(entry_point)`."""
    check = {"prompt": row["prompt"], "entry_point": row["entry_point"], "test": row["test"]}
    solution = f"```python\n{row['prompt']}{row['canonical_solution']}\n```"
    return View({"prompt": row["prompt"]}, check, solution)


def candidate(reply: str, doc: Doc) -> str | None:
    """Source to run: the row's prompt (for its imports) and the reply's code, or None when it has none.

    From each closed block the longest prefix of lines that parses and holds a function with a body; the last block with
    one counts. Without any: the reply after an opening fence, up to the next fence, read as a continuation of the
    prompt and cut back to what parses.
    """
    prompt = doc.check["prompt"]
    before = prompt if prompt.endswith("\n") else prompt + "\n"
    for block in reversed(complete_blocks(reply)):
        if (code := valid_prefix(block, _finished)) is not None:
            return str(before + code)
    rest = _after_fence(reply).partition(FENCE)[0]

    def continues(tree: ast.Module) -> bool:
        return any(node.name == doc.check["entry_point"] and has_body(node) for node in functions(tree))

    code = valid_prefix(rest, continues, before)
    return str(before + code) if code is not None else None


def _finished(tree: ast.Module) -> bool:
    return any(has_body(node) for node in functions(tree))


def _after_fence(reply: str) -> str:
    """What follows an opening fence that the reply begins with; the reply itself where it begins otherwise."""
    first, _, rest = reply.lstrip().partition("\n")
    return rest if first.startswith(FENCE) else reply.lstrip("\n")


BENCH = spec_bench("humaneval", each(view), check_function, extract_for=candidate, needs=require_sandbox)
