"""Packages import only from packages that come before them in the order of the data, and no imports form a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import trimoe

SOURCE = Path(trimoe.__file__).parent
# The order in which data flow: a room imports only from itself and from rooms before it.
ROOMS = (
    "io",
    "sandbox",
    "model",
    "llamacpp",
    "calibrate",
    "choose",
    "cut",
    "heal",
    "certify",
    "quantize",
    "bench",
    "serve",
    "evaluate",
    "judge",
    "report",
    "view",
    "publish",
)
ORDER = ("errors", ROOMS[0], "public", *ROOMS[1:], "pipeline", "demo", "cli")
HEAVY = {
    *("torch", "transformers", "tokenizers", "safetensors", "matplotlib"),
    *("lm_eval", "math_verify", "nltk", "langdetect", "datasets", "huggingface_hub", "punkt", "pyarrow"),
    *("starlette", "uvicorn"),
}


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem not in ("__init__", "__main__"))


def room_of(parts: tuple[str, ...]) -> str:
    return Path(parts[0]).stem


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Full names of everything imported anywhere in a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*package[: len(package) - node.level + 1], node.module or "")) if node.level else node.module
            )
            # `from trimoe import errors` imports trimoe.errors, so the names count as well
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def test_every_module_is_in_a_room() -> None:
    strays = [str(p) for p in modules() if room_of(p.relative_to(SOURCE).parts) not in ORDER]
    assert not strays


def test_rooms_import_only_from_rooms_above() -> None:
    wrong = []
    for path in modules():
        parts = path.relative_to(SOURCE).parts
        own = ORDER.index(room_of(parts))
        for name, line in imports(ast.parse(path.read_text()), ("trimoe", *parts[:-1])):
            words = name.split(".")
            if words[0] != "trimoe" or len(words) < 2 or words[1] not in ORDER:
                continue
            if ORDER.index(words[1]) > own:
                wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_an_extra_at_its_top() -> None:
    """The base install is torch-free: extras are imported inside the function that needs them."""
    wrong = []
    for path in modules():
        top = ast.Module(
            body=[n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        )
        for name, line in imports(top, ("trimoe", *path.relative_to(SOURCE).parts[:-1])):
            if name.split(".")[0] in HEAVY:
                wrong.append(f"{path.relative_to(SOURCE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_room_says_what_it_is() -> None:
    for room in ROOMS:
        package = SOURCE / room / "__init__.py"
        assert package.is_file(), f"{room} has no __init__.py"
        assert ast.get_docstring(ast.parse(package.read_text())), f"{package} has no docstring"


def test_every_module_has_a_docstring() -> None:
    bare = [str(p.relative_to(SOURCE)) for p in modules() if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not bare


def test_no_imports_form_a_circle() -> None:
    """Between modules, imports inside functions included; a package's `__init__` counts as a module."""
    names = {".".join(("trimoe", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in modules()}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        package = ("trimoe", *path.relative_to(SOURCE).parts[:-1])
        found = {full for full, _ in imports(ast.parse(path.read_text()), package)}
        known = {full if full in names else full.rpartition(".")[0] for full in found}
        graph[name] = {other for other in known if other in names and other != name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
