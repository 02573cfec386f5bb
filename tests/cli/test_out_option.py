"""`--out` and `--output` are one option, in every verb that writes where it is told."""

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from trimoe.cli.main import cli


def options(command: click.Command, path: str) -> Iterator[tuple[str, set[str]]]:
    """(command, names of one option), through all groups."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from options(inner, f"{path} {name}")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield path, set(parameter.opts)


def test_both_names_everywhere() -> None:
    found = [(path, names) for path, names in options(cli, "trimoe") if names & {"--out", "--output"}]
    assert len(found) >= 15
    for path, names in found:
        assert names == {"-o", "--out", "--output"}, path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    made = subprocess.run(
        [sys.executable, "-c", "from trimoe.cli.main import cli; cli(prog_name='trimoe')"],
        env={**os.environ, "_TRIMOE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    if "not supported" in made.stderr or "Couldn't detect Bash" in made.stderr:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0
    assert f"_TRIMOE_COMPLETE={shell}_complete" in made.stdout
