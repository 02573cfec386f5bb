"""The description of a language for the sandbox: how to find its toolchain, build, run and read failures."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trimoe.bench.code.languages._scan import Syntax


@dataclass(frozen=True)
class Toolchain:
    """An installed compiler or runtime: the commands that build and run `file`, and their folders and environment."""

    version: str
    steps: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})


@dataclass(frozen=True)
class Language:
    """One language. `with_end(tests, token)` makes the tests print the token after the last test has passed.

    `syntax` tells how to read its source. `defines(source, name)`: whether source without comments and literals defines
    a function. `complete(block, prompt, name)`: a reply's own program up to where the tests continue it, without its
    main and usage, or None if the block does not define the function where the tests can call it. `failed_test`
    recognises a failed assertion in a program's standard error, `out_of_memory` a runtime without memory. `commands` is
    the number of steps; `extra` are harness files beside the program.
    """

    key: str
    name: str
    file: str
    commands: int
    needs: str
    install: str
    find: Callable[[], Toolchain | None]
    with_end: Callable[[str, str], str]
    failed_test: re.Pattern[str]
    out_of_memory: re.Pattern[str]
    syntax: Syntax
    defines: Callable[[str, str], bool]
    complete: Callable[[str, str, str], str | None]
    extra: Mapping[str, str] = field(default_factory=dict)

    def toolchain(self) -> Toolchain | None:
        """The installed toolchain; None if a part is missing."""
        return self.find()


def real(name: str) -> str | None:
    """The path of a command with links resolved; None if it is not on PATH."""
    path = shutil.which(name)
    return os.path.realpath(path) if path else None


def asked(*command: str) -> str | None:
    """The output of a command; None if it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (answer.stdout or answer.stderr).strip()


def before_last(text: str, mark: str, count: int, line: str) -> str:
    """`text` with `line` inserted before the `count`-th `mark` from the end."""
    at = len(text)
    for _ in range(count):
        at = text.rindex(mark, 0, at)
    return f"{text[:at]}{line}\n{text[at:]}"
