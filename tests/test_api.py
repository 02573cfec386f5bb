"""The public Python API: names, import cost, callable packages, and the example of the documentation."""

import doctest
import importlib
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

import trimoe
from helpers.gguf_models import write_model
from helpers.llamacpp import llamacpp
from trimoe import errors
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model import tiny
from trimoe.public import FUNCTIONS, CallablePackage

__all__ = ["llamacpp"]

PACKAGES = sorted(
    name for name in trimoe.__all__ if name in FUNCTIONS and FUNCTIONS[name].startswith(f"trimoe.{name}.")
)


def python(code: str) -> str:
    """Standard output of `code` in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_names_exist_and_are_sorted() -> None:
    assert trimoe.__all__ == sorted(trimoe.__all__, key=str)
    assert set(trimoe.__all__) <= set(dir(trimoe))
    for name in trimoe.__all__:
        assert getattr(trimoe, name) is getattr(trimoe, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trimoe.nonsense


def test_every_error_class_is_public() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
    }
    assert kinds <= set(trimoe.__all__)
    assert all(getattr(trimoe, name) is getattr(errors, name) for name in kinds)


def test_type_checkers_see_every_public_name() -> None:
    source = Path(trimoe.__file__).read_text()
    for name in set(trimoe.__all__) - {"__version__"}:
        assert f" as {name}\n" in source, name


def test_import_loads_nothing_but_trimoe() -> None:
    code = "import sys; before = set(sys.modules); import trimoe; print(*sorted(set(sys.modules) - before))"
    assert python(code) == "trimoe"


def test_import_costs_less_than_40_milliseconds() -> None:
    """The smallest difference of several pairs: other work on the machine only adds to a run."""

    def seconds(code: str) -> float:
        begin = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
        return perf_counter() - begin

    pairs = [(seconds("pass"), seconds("import trimoe")) for _ in range(8)]
    assert min(loaded for _, loaded in pairs) - min(empty for empty, _ in pairs) < 0.040


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(
    "before",
    ["import trimoe", "import trimoe.{module}", "from trimoe.{module} import {function}", "from trimoe import {name}"],
)
def test_a_name_shared_with_a_package_is_callable_in_any_order_of_import(name: str, before: str) -> None:
    module, _, function = FUNCTIONS[name].removeprefix("trimoe.").partition(":")
    code = (
        f"{before.format(name=name, module=module, function=function)}\n"
        f"import trimoe, trimoe.{module} as inner\nfrom trimoe import {name} as named\n"
        f"assert named is trimoe.{name} and callable(named) and trimoe.{module} is inner\n"
        "try:\n    named()\nexcept TypeError as exc:\n    print(exc)"
    )
    assert python(code).startswith(f"{function}() missing")


@pytest.mark.parametrize("name", [name for name in trimoe.__all__ if name in FUNCTIONS])
def test_public_functions_have_the_signature_of_the_function_and_can_be_pickled(name: str) -> None:
    public = getattr(trimoe, name)
    module, _, attribute = FUNCTIONS[name].partition(":")
    assert inspect.signature(public) == inspect.signature(getattr(importlib.import_module(module), attribute))
    assert pickle.loads(pickle.dumps(public)) is public
    assert isinstance(public, CallablePackage) == (name in PACKAGES)


def test_a_public_function_reports_to_the_callback_that_it_gets(tmp_path: Path) -> None:
    model, told = trimoe.open(tiny.path()), list[tuple[int, int, str]]()
    drop = trimoe.DropMap(dict.fromkeys(range(model.num_layers), (0, 1)))
    trimoe.prune(model, drop, tmp_path / "small", progress=lambda *state: told.append(state))
    done, total, _ = told[-1]
    assert done == total > 0


def test_open_takes_a_directory_or_a_downloaded_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trimoe.open(str(tiny.path()))
    assert repr(model) == "Checkpoint('checkpoint', gemma4, 4 layers, 32 experts, top-4, 9.2 MB)"
    assert os.fspath(model) == str(tiny.path())
    assert trimoe.open(model).path == model.path
    folder = tmp_path / "hub" / "models--me--tiny"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / "abc").symlink_to(tiny.path())
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc\n")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert trimoe.open("me/tiny").fingerprint == model.fingerprint
    with pytest.raises(trimoe.CheckpointError) as caught:
        trimoe.open("me/other")
    assert "hf download me/other" in caught.value.remedy
    with pytest.raises(trimoe.CheckpointError, match="is not a checkpoint directory"):
        trimoe.open(tmp_path / "nothing")


EXAMPLES = sorted(set(trimoe.__all__) - {"__version__"})
# Examples use what earlier ones made: the order of the workflow, then results, then errors.
ORDER = (
    *FUNCTIONS,
    *(name for name in EXAMPLES if inspect.isclass(getattr(trimoe, name)) and not name.endswith("Error")),
)


def documented(name: str) -> object:
    """The object whose docstring documents a public name."""
    module, _, attribute = FUNCTIONS.get(name, "trimoe:" + name).partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_public_name_has_an_example(name: str) -> None:
    assert doctest.DocTestParser().get_examples(documented(name).__doc__ or "")


@pytest.mark.slow
def test_examples_of_the_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tasks.yaml").write_text(
        "name: tasks\nwindow: 512\nclasses:\n  generic_code: [{kind: tiny, domain: code, count: 4}]\n"
    )
    write_model(Path("model.gguf"))
    flags = doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS
    names: dict[str, object] = {"trimoe": trimoe, "tiny": tiny}
    failed = []
    for name in (*ORDER, *(name for name in EXAMPLES if name not in ORDER)):
        text, said = documented(name).__doc__ or "", list[str]()
        case = doctest.DocTestParser().get_doctest(text, names, name, None, None)
        doctest.DocTestRunner(optionflags=flags, verbose=False).run(case, out=said.append, clear_globs=False)
        names = case.globs
        failed += said
    assert not failed, "".join(failed)


CALIBRATION = "name: my-work\nwindow: 512\nclasses:\n  targeted_code: [{kind: tiny, domain: code, count: 8}]\n"
EXAMPLE = """
import trimoe

model = trimoe.open("{model}")
stats = trimoe.calibrate(model, "my-work.yaml", out="stats.safetensors")
drop = trimoe.choose(stats, keep=24, recipe="reap", class_weights={{"*": 1.0}})
small = trimoe.prune(model, drop, out="small")
proof = trimoe.certify(model, small)
base = trimoe.evaluate(model, bench="tiny-code", log="runs.db", name="base", limit=8)
run = trimoe.evaluate(small, bench="tiny-code", log="runs.db", name="small", limit=8)
comparison = trimoe.compare("runs.db", base="base")
"""


@pytest.mark.slow
def test_the_example_of_the_documentation_runs_from_str_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-work.yaml").write_text(CALIBRATION)
    code = EXAMPLE.format(model=tiny.path())
    assert len(code.strip().splitlines()) < 30
    made: dict[str, Any] = {}
    exec(compile(code, "example", "exec"), made)
    assert made["proof"].proven
    assert made["small"].experts_after == 24
    assert made["base"].scores["tiny-code"] is not None
    assert [row.name for row in made["comparison"].rows] == ["base", "small"]
    for table in (made["stats"], made["drop"], made["comparison"]):
        assert len(table.to_pandas()) > 0
        assert "<" in table._repr_html_()
        assert table.as_dict()
        assert len(repr(table)) < 120


@pytest.mark.slow
def test_the_quantizing_step_of_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llamacpp: LlamaCpp
) -> None:
    monkeypatch.chdir(tmp_path)
    model = trimoe.open(str(tiny.path()))
    trimoe.prune(model, trimoe.DropMap(dict.fromkeys(range(4), (0, 1))), out="small")
    files = trimoe.quantize("small", tiers=["Q8_0"], out="ladder", allow_unchecked=True)
    assert [path.name for path in files.paths] == ["small-Q8_0.gguf"]
    assert trimoe.open(files.paths[0]).num_experts == 30
