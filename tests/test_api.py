"""The public Python API: names, import cost, callable packages, and the example of the documentation."""

import importlib
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

import trimoe
from trimoe import errors
from trimoe.model import tiny
from trimoe.public import FUNCTIONS, CallablePackage

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
