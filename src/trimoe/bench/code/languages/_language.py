"""What a language is to the sandbox."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Toolchain:
    """An installed compiler or runtime: commands to build and run `file`, folders they need, their environment."""

    version: str
    steps: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})


@dataclass(frozen=True)
class Language:
    """One language. `with_end(tests, token)` makes the tests print the token when the last of them has passed.

    `failed_test` recognises a failed assertion in what a program wrote to standard error, `out_of_memory` a runtime
    that got no memory. `commands` is the number of steps, `extra` are files of ours beside the program.
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
    extra: Mapping[str, str] = field(default_factory=dict)

    def toolchain(self) -> Toolchain | None:
        """What is installed here; None when something is missing."""
        return self.find()


def real(name: str) -> str | None:
    """The file behind a command's name and its links."""
    path = shutil.which(name)
    return os.path.realpath(path) if path else None


def asked(*command: str) -> str | None:
    """What a tool of the toolchain prints; None if it does not work."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (answer.stdout or answer.stderr).strip()


def before_last(text: str, mark: str, count: int, line: str) -> str:
    """`line` put before the `count`-th `mark` from the end."""
    at = len(text)
    for _ in range(count):
        at = text.rindex(mark, 0, at)
    return f"{text[:at]}{line}\n{text[at:]}"
