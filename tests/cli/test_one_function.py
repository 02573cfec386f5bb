"""Each command calls one public function: it parses its options, calls the function, and prints the result.

The functions that a module of `trimoe.cli` calls are read from its source: names imported from another package than
`errors`, `io` and `cli`. Classes are not counted (options become typed values), nor functions that only format text.
Several functions are allowed where the module is a group of commands, or for a reason given here.
"""

import ast
from pathlib import Path

import pytest

import trimoe.cli
from trimoe.cli.main import VERBS

FOLDER = Path(trimoe.cli.__file__).parent
PLAIN = ("trimoe.errors", "trimoe.io", "trimoe.cli")
FORMATTING = (
    "trimoe.judge.text.",
    "trimoe.report.story.",
    "trimoe.judge.frontier.points.gigabytes",
    "trimoe.model.gguf.imatrix.note_on",
)
# module: (functions it may call beside the first, why)
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "stats": (7, "a group of commands: show, import, export and merge"),
    "log": (8, "a group of commands: verify, recover, import, export (in three formats) and merge"),
    "llamacpp": (1, "a group of commands: install and where"),
    "eval": (1, "--dry-run plans the evaluation and calls nothing else"),
    "calibrate": (9, "--status and --dry-run are functions of their own, for GGUF too; --leak-check reads benches"),
    "map": (1, "prints the notes of the statistics"),
    "serve": (2, "--print plans the server and starts none"),
    "doctor": (4, "asks every package what it needs; it has no result of its own"),
    "report": (5, "draws heatmaps and ladders, which are optional inputs, beside the scoreboard"),
    "certify": (1, "prints where the certificate is"),
    "infer_map": (1, "prints the keep count of the map"),
    "heal": (1, "parses --factors"),
    "quantize": (1, "the name of the NVFP4 tier decides which part of the result is printed"),
    "attribute": (1, "counts causes for the text"),
    "ladder": (1, "--plot draws the result"),
}


def called(module: str) -> set[str]:
    """Full names of the functions that a module calls, apart from those that format text."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimoe.")
        for alias in node.names
        if not (node.module or "").startswith(PLAIN)
    }
    found = {
        names[node.func.id]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    }
    return {name for name in found if name.rpartition(".")[2].islower() and not name.startswith(FORMATTING)}


@pytest.mark.parametrize("module", sorted({verb.module for verb in VERBS.values()}))
def test_a_command_calls_one_public_function(module: str) -> None:
    more, _ = EXCEPTIONS.get(module, (0, ""))
    functions = called(module)
    assert 1 <= len(functions) <= 1 + more, sorted(functions)


def test_every_exception_is_needed() -> None:
    assert not [module for module in EXCEPTIONS if len(called(module)) == 1]
