"""The `trimoe` command: finds the verb, runs it, turns errors into messages and exit codes.

Invariants: a verb's module is imported only when the verb (or the list of verbs) is asked for, and none of them imports
torch at its top; with `--json` an error too is one JSON document on standard output.
Exit codes: 0 done, 1 a finding, 2 usage, 3 bad input, 4 missing prerequisite, 5 refused by a guard, 6 interrupted
(the same command resumes), 70 a defect of trimoe (a traceback is printed).
"""

import errno
import importlib
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from trimoe import __version__
from trimoe.cli.parts.common import EXTRAS, install_command
from trimoe.errors import BadInput, Interrupted, MissingPrerequisite, TrimoeError, UsageError

# verb -> module of trimoe.cli that holds it in its COMMANDS. The order is the order of the work, and of `--help`.
VERBS: dict[str, str] = {
    "inspect": "inspect",
    "calibrate": "calibrate",
    "stats": "stats",
    "map": "map",
    "prune": "prune",
    "heal": "heal",
    "certify": "certify",
    "infer-map": "certify",
    "llamacpp": "llamacpp",
    "quantize": "quantize",
    "plan": "plan",
    "kld": "kld",
    "serve": "serve",
    "eval": "eval",
    "log": "log",
    "rescore": "eval",
    "audit": "audit",
    "compare": "compare",
    "attribute": "attribute",
    "ladder": "ladder",
    "report": "report",
    "view": "view",
    "card": "card",
    "publish": "publish",
    "demo": "demo",
    "doctor": "doctor",
}

# Read by OpenMP when torch is loaded. Threads that spin while they wait starve each other on a machine that does
# anything else: a calibration of 12 seconds then takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # what a shell reports for a process ended by SIGPIPE


class ReaderGone(Exception):
    """Nobody reads standard output any more (head, less)."""


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is used."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A closed pipe is told apart here because click would end with 1, which here means a finding."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as exc:
            raise ReaderGone from exc

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb; None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"trimoe.cli.{VERBS[cmd_name]}")
        commands: dict[str | None, click.Command] = {command.name: command for command in module.COMMANDS}
        return commands[cmd_name]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Verbs in the order of the work, not of the alphabet."""
        with formatter.section("Verbs"):
            rows = [(name, self._short(ctx, name)) for name in VERBS]
            formatter.write_dl(rows)

    def _short(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str(90) if command else ""


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trimoe")
def cli() -> None:
    """Makes Mixture-of-Experts language models smaller and proves what that cost.

    \b
    The way through, one artifact per verb:
      trimoe calibrate MODEL --set SET.yaml -o stats.safetensors
      trimoe map stats.safetensors --recipe v5-coder -o map.json
      trimoe prune MODEL map.json -o SMALLER
      trimoe certify MODEL SMALLER --map map.json
      trimoe eval SMALLER --bench tiny-code,tiny-math --log runs.db
      trimoe compare runs.db

    `trimoe demo` does all of it on the bundled model.

    \b
    Exit codes: 0 done, 1 a finding (e.g. not certified), 2 usage, 3 bad input, 4 missing
    prerequisite, 5 refused by a guard, 6 interrupted (the same command resumes), 70 a defect.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Prints errors, raises none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # After `--` everything is an argument, so a file named --json is not the option.
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    _terminate_like_interrupt()
    try:
        result: Any = cli.main(args=arguments, prog_name="trimoe", standalone_mode=False)
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return 2
    except click.ClickException as exc:
        return _click_error(exc, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _report(Interrupted("interrupted", remedy="run the same command again to go on"), as_json)
    except TrimoeError as exc:
        return _report(exc, as_json)
    except ReaderGone:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as exc:  # noqa: BLE001 the outermost frame: whatever is left is reported as a defect
        known = _known(exc)
        return _report(known, as_json) if known else _defect(exc, as_json)


def _click_error(exc: click.ClickException, as_json: bool) -> int:
    if as_json:
        return _report(UsageError(exc.format_message(), remedy="see --help"), as_json)
    exc.show()
    return UsageError.exit_code if isinstance(exc, click.UsageError) else BadInput.exit_code


def _report(error: TrimoeError, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(error.as_dict(), indent=1, ensure_ascii=False))
    else:
        click.echo(f"trimoe: {error}", err=True)
    return error.exit_code


def _known(exc: Exception) -> TrimoeError | None:
    """Failures of the machine that any verb can meet: a missing extra, a full disk, a path that cannot be used."""
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        for extra, (packages, purpose) in EXTRAS.items():
            if exc.name.partition(".")[0] in packages:
                return MissingPrerequisite(
                    f"this needs the extra '{extra}' ({purpose})",
                    expected=", ".join(packages),
                    actual=f"{exc.name} is not installed",
                    remedy=install_command(extra),
                )
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return MissingPrerequisite("no space left on the disk", actual=str(exc), remedy="free some space and run again")
    if isinstance(exc, PermissionError | IsADirectoryError | NotADirectoryError | FileNotFoundError) and exc.filename:
        return BadInput(
            f"cannot use {exc.filename}", actual=str(exc.strerror), remedy="check the path and its permissions"
        )
    return None


def _defect(exc: Exception, as_json: bool) -> int:
    traceback.print_exception(exc)
    hint = (
        f"please report it with this traceback, the command, and the output of `trimoe doctor` (trimoe {__version__})"
    )
    click.echo(f"trimoe: this is a defect of trimoe, not of your input: {hint}", err=True)
    if as_json:
        body = {"error": type(exc).__name__, "subject": str(exc), "remedy": hint, "exit_code": INTERNAL_ERROR}
        click.echo(json.dumps(body, indent=1, ensure_ascii=False))
    return INTERNAL_ERROR


def _terminate_like_interrupt() -> None:
    """SIGTERM unwinds like Ctrl-C, so that temporary files are removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: someone else owns the signals
        return


if __name__ == "__main__":
    sys.exit(main())
