"""HumanEval: runs the last fenced block with a complete function against the row's tests."""

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
    """Source to run: the row's prompt (for its imports) and the reply's code, or None if it has none.

    The last closed block whose longest parsing prefix has a function with a body counts, cut to that prefix. Without
    one, the reply after an opening fence and up to the next one is read as a continuation of the prompt, cut to what
    parses.
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
    """The text after an opening fence at the start of the reply, or the whole reply if it starts otherwise."""
    first, _, rest = reply.lstrip().partition("\n")
    return rest if first.startswith(FENCE) else reply.lstrip("\n")


BENCH = spec_bench("humaneval", each(view), check_function, extract_for=candidate, needs=require_sandbox)
