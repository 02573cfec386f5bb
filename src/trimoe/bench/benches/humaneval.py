"""HumanEval: runs the last fenced block that defines the asked function against the row's tests."""

import ast

from trimoe.bench.bench import Doc
from trimoe.bench.code_tests import check_function
from trimoe.bench.extract import functions, has_body, valid_prefix
from trimoe.bench.fences import FENCE, candidates, defines, fence_of
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.sandbox import require_sandbox


def view(row: Row) -> View:
    """The tests call `check(entry_point)`."""
    check = {"prompt": row["prompt"], "entry_point": row["entry_point"], "test": row["test"]}
    solution = f"```python\n{row['prompt']}{row['canonical_solution']}\n```"
    return View({"prompt": row["prompt"]}, check, solution)


def candidate(reply: str, doc: Doc) -> str | None:
    """Source to run: the row's prompt (for its imports) and the reply's code, or None if it has none.

    A block counts if its longest parsing prefix has a function with a body, and is cut to that prefix. The last block
    with the asked function counts. Without one, the reply from its opening fence, if it starts with one, up to the next
    fence is read as a continuation of the prompt; without that, the last closed block counts.
    """
    prompt, entry = doc.check["prompt"], doc.check["entry_point"]
    before = prompt if prompt.endswith("\n") else prompt + "\n"

    def asked(tree: ast.Module) -> bool:
        return any(node.name == entry and has_body(node) for node in functions(tree))

    found = [block for block in candidates(reply) if "def" in block.text]
    for block in reversed(found):
        if defines(block.text, [entry]) and (code := valid_prefix(block.text, asked)) is not None:
            return str(before + code)
    if (code := valid_prefix(_after_fence(reply).partition(FENCE)[0], asked, before)) is not None:
        return str(before + code)
    for block in reversed(found):
        if block.opened and block.closed and (code := valid_prefix(block.text, _finished)) is not None:
            return str(before + code)
    return None


def _finished(tree: ast.Module) -> bool:
    return any(has_body(node) for node in functions(tree))


def _after_fence(reply: str) -> str:
    """The text after an opening fence at the start of the reply, or the whole reply if it starts otherwise."""
    first, _, rest = reply.lstrip().partition("\n")
    return rest if fence_of(first) else reply.lstrip("\n")


BENCH = spec_bench("humaneval", each(view), check_function, extract_for=candidate, scorer=2, needs=require_sandbox)
