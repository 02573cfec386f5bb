"""The command line as a user sees it: help, errors, exit codes, and a base install without torch."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from trimoe.cli import doctor, main
from trimoe.cli.parts import common
from trimoe.errors import BadInput, Interrupted, MissingPrerequisite, Refused, TrimoeError, UsageError

CONTRACT = ("inspect", "calibrate", "stats", "map", "prune", "certify", "eval", "compare", "demo", "doctor")
EXTRAS = ("torch", "transformers", "safetensors", "tokenizers", "matplotlib", "datasets")
BLOCK = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"


def run(*arguments: str, torch: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, by default with every extra blocked."""
    code = ("" if torch else BLOCK) + "from trimoe.cli.main import main\nimport sys\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Lets `trimoe doctor` raise what the list holds."""
    raised: list[BaseException] = []

    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(doctor, "examine", fail)
    return raised


def test_every_verb_of_the_contract_exists() -> None:
    assert set(CONTRACT) <= set(main.VERBS)
    context = click.Context(main.cli)
    for verb in CONTRACT:
        command = main.cli.get_command(context, verb)
        assert command is not None
        assert command.name == verb


def test_every_command_of_a_cli_module_is_a_verb() -> None:
    for module in {verb.module for verb in main.VERBS.values()}:
        offered = {command.name for command in importlib.import_module(f"trimoe.cli.{module}").COMMANDS}
        assert offered == {name for name, verb in main.VERBS.items() if verb.module == module}


@pytest.mark.parametrize("verb", main.VERBS)
def test_summary_is_the_first_line_of_the_command_help(verb: str) -> None:
    command = main.cli.get_command(click.Context(main.cli), verb)
    assert command is not None
    assert (command.help or "").splitlines()[0] == main.VERBS[verb].summary + "."


@pytest.mark.parametrize("verb", main.VERBS)
def test_help_of_every_verb_needs_no_extra(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: trimoe " + verb in done.stdout


def test_help_lists_each_verb_on_one_line_in_workflow_order() -> None:
    done = run("--help", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("Commands:\n")[1].splitlines()
    assert [line.split(None, 1) for line in lines] == [[name, verb.summary] for name, verb in main.VERBS.items()]
    assert max(map(len, lines)) <= 78


def test_help_shows_the_workflow_with_the_evaluation_of_the_base() -> None:
    help_text = main.cli.help or ""
    steps = ("calibrate", "map", "prune", "certify", "eval MODEL", "eval PRUNED", "compare", "quantize")
    positions = [help_text.index(f"trimoe {step} ") for step in steps]
    assert positions == sorted(positions)


def test_help_imports_no_verb() -> None:
    code = (
        "import sys\nfrom trimoe.cli.main import VERBS, main\nmain(['--help'])\n"
        "loaded = [v.module for v in VERBS.values() if f'trimoe.cli.{v.module}' in sys.modules]\n"
        "print('loaded:', loaded, 'numpy' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: [] False False"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("prunne", "Did you mean 'prune'?"),
        ("evaluate", "Did you mean 'eval'?"),
        ("Certify", "Did you mean 'certify'?"),
        ("xyzzy", "`trimoe --help` lists all commands."),
    ],
)
def test_an_unknown_verb_suggests_the_nearest(typed: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([typed]) == 2
    assert f"No such command '{typed}'. {answer}" in capsys.readouterr().err


def test_importing_the_command_line_imports_no_extra() -> None:
    code = (
        "import sys, click\nfrom trimoe.cli.main import VERBS, cli\nc = click.Context(cli)\n"
        "[cli.get_command(c, v) for v in VERBS]\n"
        f"print([m for m in {EXTRAS} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_no_arguments_shows_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("a file"), 3),
        (UsageError("x"), 2),
        (MissingPrerequisite("x"), 4),
        (Refused("x"), 5),
        (Interrupted("x"), 6),
        (KeyboardInterrupt(), 6),
        (click.Abort(), 6),
        (click.UsageError("x"), 2),
        (click.BadParameter("x"), 2),
        (ModuleNotFoundError("x", name="torch.nn"), 4),
        (OSError(28, "No space left on device", "out"), 4),
        (PermissionError(13, "Permission denied", "out"), 3),
        (ValueError("x"), 70),
        (ModuleNotFoundError("x", name="trimoe.nothing"), 70),
        (AssertionError("x"), 70),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, as_json: bool
) -> None:
    failing.append(error)
    assert main.main(["doctor", *(["--json"] if as_json else [])]) == code
    out, err = capsys.readouterr()
    if as_json:
        assert json.loads(out)["exit_code"] == code
    else:
        assert out == ""
        assert err.strip()
    assert ("Traceback" in err) == (code == 70)
    assert ("bug in trimoe" in err) == (code == 70)


def test_an_error_says_subject_expected_actual_remedy(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(BadInput("map.json", expected="30 layers", actual="29", remedy="make the map again"))
    assert main.main(["doctor"]) == 3
    err = capsys.readouterr().err
    for text in ("map.json", "expected: 30 layers", "actual: 29", "remedy: make the map again"):
        assert text in err


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["doctor", "extra"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage:" in err


def test_a_usage_error_with_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "--json", "extra"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"


def test_a_closed_pipe_is_not_reported_as_a_bug() -> None:
    code = "from trimoe.cli.main import main\nimport sys\nsys.exit(main(['doctor', '--json']))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    complaint = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(timeout=60) == main.BROKEN_PIPE
    assert complaint == ""


def test_doctor_without_extras_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda name: "1.0" if name in doctor.BASE else None)
    report = doctor.examine()
    assert set(report["extras"]) == set(common.EXTRAS)
    assert "pip install torch==2.13.0 && pip install 'trimoe[torch]'" in doctor.render(report)


def test_doctor_json_is_one_document_and_exits_0() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["cores"] >= 1
    assert report["memory_total"] > report["memory_available"] > 0
    assert report["base"]["numpy"]


def test_doctor_fails_when_the_base_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "numpy" else "1.0")
    assert main.main(["doctor"]) == 4


def test_doctor_and_pyproject_agree_on_dependencies() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    def bare(requirements: list[str]) -> list[str]:
        return [re.split(r"[\[<>=]", r)[0].replace("-", "_").lower() for r in requirements]

    assert bare(project["dependencies"]) == list(doctor.BASE)
    extras = project["optional-dependencies"]
    for extra, (packages, _) in common.EXTRAS.items():
        named = re.findall(r"trimoe\[(\w+)\]", " ".join(extras[extra]))  # an extra that takes another one in
        installed = bare([requirement for name in (extra, *named) for requirement in extras[name]])
        assert set(packages) <= set(installed), extra


def test_tool_version_of_a_program_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cmake"
    broken.write_text("not a program")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.tool_version("cmake", ("--version",)) == "found, but it does not start"
    assert doctor.tool_version("ninja", ("--version",)) is None


def test_require_extra_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    common.require_extra("dev", "this test")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPrerequisite) as caught:
        common.require_extra("torch", "calibrate")
    assert caught.value.actual == "not installed: torch"
    assert "trimoe[torch]" in caught.value.remedy


def test_progress_of_a_short_command_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with common.progress("work") as report:
        report(1, 2, "half")
        report(2, 2, "")
    assert capsys.readouterr() == ("", "")


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        common.emit({"score": float("nan")}, "", True)


def test_every_error_class_has_a_documented_exit_code() -> None:
    codes = {TrimoeError.exit_code} | {kind.exit_code for kind in TrimoeError.__subclasses__()}
    assert codes == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("word", "verb"), [("benchmark", "eval"), ("verify", "certify"), ("prun", "prune"), ("Upload", "publish")]
)
def test_a_word_of_another_tool_leads_to_the_verb(word: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([word]) == 2
    assert f"Did you mean '{verb}'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["certify", "infer-map"])
def test_out_and_output_are_one_option(verb: str) -> None:
    command = main.cli.get_command(click.Context(main.cli), verb)
    assert command is not None
    (out,) = [p for p in command.params if "-o" in p.opts]
    assert {"--out", "--output"} <= set(out.opts)
