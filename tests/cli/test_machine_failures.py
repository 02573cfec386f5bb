"""Ordinary failures of the machine never look like a defect of trimoe: every verb is walked with a failing disk.

A clean run of each command counts its calls of the operating system on its own files; then one of these calls fails.
"""

import builtins
import errno
import io
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimoe.cli.main import VERBS, main
from trimoe.errors import BadInput, MissingPrerequisite, TrimoeError, machine_failure
from trimoe.model import tiny

SET = """
name: small
window: 64
classes:
  generic_code: [{kind: tiny, domain: code, count: 2}]
  targeted_math: [{kind: tiny, domain: math, count: 2}]
"""
MODEL = str(tiny.path())
# Each verb's command in the workspace. {out} is a new path, {log} a copy of the log; both are removed afterwards.
COMMANDS: dict[str, list[str]] = {
    "inspect": ["inspect", MODEL],
    "calibrate": ["calibrate", MODEL, "--set", "set.yaml", "-o", "{out}"],
    "stats": ["stats", "merge", "stats", "stats", "-o", "{out}"],
    "map": ["map", "stats", "--recipe", "reap", "--keep", "24", "-o", "{out}"],
    "prune": ["prune", MODEL, "map.json", "-o", "{out}"],
    "heal": ["heal", MODEL, "small", "--method", "router", "--set", "set.yaml", "-o", "{out}"],
    "certify": ["certify", MODEL, "small", "--map", "map.json", "--no-logits"],
    "infer-map": ["infer-map", MODEL, "small", "-o", "{out}"],
    "llamacpp": ["llamacpp", "where"],
    "quantize": ["quantize", "small", "--tiers", "NVFP4A16", "-o", "{out}"],
    "plan": ["plan", MODEL],
    "kld": ["kld", "none.gguf", "other.gguf", "--text", "set.yaml"],
    "serve": ["serve", MODEL, "--engine", "vllm", "--print"],
    "eval": ["eval", MODEL, "--bench", "tiny-choice", "--limit", "2", "--log", "{out}", "--name", "m"],
    "log": ["log", "export", "{log}", "--format", "lm-eval", "-o", "{out}"],
    "rescore": ["rescore", "{log}"],
    "audit": ["audit", "{log}"],
    "compare": ["compare", "{log}"],
    "attribute": ["attribute", "{log}", "--chain", "base,small"],
    "ladder": ["ladder", "scores.csv", "{log}", "--bench", "tiny-choice", "--plot", "{out}.svg"],
    "report": ["report", "{log}", "-o", "{out}.html"],
    "view": ["view", "none.db"],
    "card": [
        *("card", "small", "--log", "{log}", "--base", "base", "--run", "small", "--base-model", "a/b"),
        *("--licence", "mit", "-o", "{out}.md"),
    ],
    "publish": ["publish", "small", "--to", "hub", "--repo", "me/x", "--dry-run", "--allow-uncertified"],
    "demo": ["demo", "--out", "{out}", "--limit", "1", "--methods", "reap"],
    "doctor": ["doctor"],
}
FURTHER: dict[str, list[str]] = {
    "log verify": ["log", "verify", "{log}"],
    "log merge": ["log", "merge", "{log}", "other.db", "-o", "{out}"],
    "log recover": ["log", "recover", "{log}", "-o", "{out}"],
    "log import": ["log", "import", "samples.jsonl", "--bench", "tiny-choice", "--log", "{out}"],
}
SLOW = {
    "demo": 1,
    "calibrate": 5,
    "heal": 4,
    "eval": 6,
    "quantize": 6,
    "publish": 2,
}  # failures that are tried; 12 of the others
NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EMFILE, errno.ENOENT, 0)
# Codes that say what happened: a finding, usage, bad input, missing, refused, interrupted. Never 70.
ALLOWED = {0, 1, 2, 3, 4, 5, 6}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one artifact of each kind, which is also the current folder."""
    folder, before = tmp_path_factory.mktemp("failures"), Path.cwd()
    os.chdir(folder)
    try:
        Path("set.yaml").write_text(SET)
        for command in (
            ["calibrate", MODEL, "--set", "set.yaml", "-o", "stats"],
            ["map", "stats", "--recipe", "reap", "--keep", "24", "-o", "map.json"],
            ["prune", MODEL, "map.json", "-o", "small"],
            ["eval", MODEL, "--bench", "tiny-choice", "--limit", "2", "--log", "runs.db", "--name", "base"],
            ["eval", "small", "--bench", "tiny-choice", "--limit", "2", "--log", "runs.db", "--name", "small"],
            ["eval", MODEL, "--bench", "tiny-choice", "--limit", "1", "--log", "other.db", "--name", "third"],
            ["log", "export", "runs.db", "--format", "lm-eval", "-o", "exported"],
        ):
            assert main(command) == 0, command
        shutil.copy("exported/samples_tiny-choice_base.jsonl", "samples.jsonl")
        Path("scores.csv").write_text("model,tier,size_gb,run\na,big,2,base\na,small,1,small\n")
        yield folder
    finally:
        os.chdir(before)


class Failing:
    """Replaces calls of the operating system; the call number `at` on a path in `folder` raises the error."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, at: int | None, number: int) -> None:
        self.folder, self.at, self.number, self.calls = str(folder), at, number, 0
        for owner, name in (
            (builtins, "open"),
            (io, "open"),
            (os, "open"),
            (os, "replace"),
            (os, "rename"),
            (os, "mkdir"),
            (os, "unlink"),
            (os, "listdir"),
            (os, "scandir"),
            (os, "truncate"),
            (tempfile, "mkdtemp"),
        ):
            patch.setattr(owner, name, self._wrapped(getattr(owner, name), of_paths=name != "mkdtemp"))
        for name in ("write", "fsync"):
            patch.setattr(os, name, self._wrapped(getattr(os, name), of_paths=False))

    def _wrapped(self, call: Callable[..., Any], of_paths: bool) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if not of_paths or (args and self._ours(args[0])):
                self.calls += 1
                if self.calls == self.at:
                    raise OSError(self.number, os.strerror(self.number)) if self.number else OSError("5 of 9 written")
            return call(*args, **kwargs)

        return failing

    def _ours(self, path: Any) -> bool:
        if not isinstance(path, str | Path):
            return False
        return os.path.abspath(path).startswith(self.folder)


def run(work: Path, command: list[str], at: int | None, number: int) -> tuple[int, int]:
    """(exit code, number of calls) of a command whose call `at` fails."""
    shutil.copy("runs.db", "copy.db")
    filled = [word.format(out=str(work / "out"), log=str(work / "copy.db")) for word in command]
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(work, patch, at, number)
        code = main(filled)
    for leftover in [*work.glob("out*"), *work.glob(".out*"), *work.glob("copy.db*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    (work / "small" / "certificate.json").unlink(missing_ok=True)
    return code, failing.calls


def test_every_verb_is_walked() -> None:
    assert set(COMMANDS) == set(VERBS)


@pytest.mark.parametrize("name", [*COMMANDS, *FURTHER])
def test_a_failing_disk_is_never_a_defect(name: str, work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = {**COMMANDS, **FURTHER}[name]
    calls = 1 if name == "demo" else run(work, command, None, 0)[1]
    capfd.readouterr()

    @settings(
        max_examples=SLOW.get(name, 12),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(at=st.integers(1, max(1, calls)), number=st.sampled_from(NUMBERS))
    def walk(at: int, number: int) -> None:
        code, _ = run(work, command, at, number)
        shown = capfd.readouterr().err
        assert code in ALLOWED, (at, number, shown)
        assert "Traceback" not in shown, (at, number, shown)
        if code not in (0, 1):
            assert "remedy:" in shown or "Usage:" in shown, shown

    walk()


@pytest.mark.parametrize("where", ["execute", "COMMIT"])
@pytest.mark.parametrize("name", ["eval", "log import", "rescore", "log merge", "compare", "audit"])
def test_a_full_disk_under_a_run_log_is_never_a_defect(
    name: str, where: str, work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from trimoe.evaluate.log import connection

    original = connection.LogConnection.execute

    def failing(self: Any, sql: str, parameters: Any = ()) -> Any:
        if sql.startswith("INSERT" if where == "execute" else "COMMIT"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise connection.log_error(self.path, error) from error
        return original(self, sql, parameters)

    monkeypatch.setattr(connection.LogConnection, "execute", failing)
    code, _ = run(work, {**COMMANDS, **FURTHER}[name], None, 0)
    shown = capfd.readouterr().err
    assert code in (0, 4), shown
    assert "Traceback" not in shown
    assert (code == 4) == ("free some space" in shown)


def test_a_template_that_the_sandbox_refuses_is_bad_input(
    work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, text in enumerate(
        ("{{ ''.__class__.__mro__ }}", "{{ 1 // 0 }}", "{{ messages[7].content }}", "{{ messages.x }}")
    ):
        model = tmp_path / f"m{number}"
        shutil.copytree(MODEL, model)
        (model / "chat_template.jinja").write_text(text)
        command = ["eval", str(model), "--bench", "tiny-choice", "--limit", "1", "--log", str(tmp_path / "r.db")]
        assert main(command) == 3, text
        assert "chat template cannot render" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("exc", "kind", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out"),
            MissingPrerequisite,
            "no space left on the disk: out",
        ),
        (OSError(errno.EROFS, "Read-only file system", "out"), BadInput, "the file system is read-only: out"),
        (OSError("27563 requested and 16352 written"), MissingPrerequisite, "27563 requested"),
        (MemoryError(), MissingPrerequisite, "not enough memory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), MissingPrerequisite, "no space left"),
        (ValueError("Os { code: 30, kind: ReadOnlyFilesystem }"), BadInput, "read-only"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9), BadInput, "cannot hold this name"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), MissingPrerequisite, "network connection"),
    ],
)
def test_what_failures_of_the_machine_mean(exc: Exception, kind: type[TrimoeError], words: str) -> None:
    found = machine_failure(exc)
    assert type(found) is kind
    assert words in str(found)
    assert found is not None
    assert found.remedy


def test_a_bug_is_still_a_bug() -> None:
    for exc in (ValueError("x"), KeyError("y"), AssertionError("code 28")):
        assert machine_failure(exc) is None
    while_handled = KeyError("a defect while an error was handled")
    while_handled.__context__ = OSError(errno.ENOENT, "no such file")
    assert machine_failure(while_handled) is None
