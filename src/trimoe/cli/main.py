"""The `trimoe` command: runs a verb and turns errors into messages and exit codes.

Invariants: a verb's module is imported only when that verb runs, so `trimoe --help` imports none of them; no verb
imports torch at module level; with `--json`, an error is one JSON document on standard output, like a result.
Exit codes: 0 done, 1 a finding, 2 usage, 3 bad input, 4 missing prerequisite, 5 refused by a guard, 6 interrupted
(the same command resumes), 70 a bug in trimoe (a traceback is printed).
"""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from types import FrameType
from typing import Any, NamedTuple

import click

from trimoe import __version__
from trimoe.cli.parts.common import EXTRAS, install_command
from trimoe.errors import BadInput, Interrupted, MissingPrerequisite, TrimoeError, UsageError, machine_failure


class Verb(NamedTuple):
    """Where a verb is defined, and its line in `trimoe --help`."""

    module: str
    """Module of `trimoe.cli` that has the command in its COMMANDS."""
    summary: str
    """First line of the command's own help, without the full stop."""


# In workflow order, which is the order of `--help`. The summaries are repeated here so that `--help` need not import
# every verb; a test compares them with the commands.
VERBS: dict[str, Verb] = {
    "inspect": Verb("inspect", "Show a model's family, layers, experts, layout and sizes"),
    "calibrate": Verb("calibrate", "Measure each expert's contribution on a calibration set"),
    "stats": Verb("stats", "Show, import, export and merge expert statistics"),
    "map": Verb("map", "Choose the experts to drop, or combine drop maps"),
    "prune": Verb("prune", "Remove the experts that MAP drops from MODEL"),
    "heal": Verb("heal", "Adjust PRUNED beyond expert removal to recover quality"),
    "certify": Verb("certify", "Prove that PRUNED is BASE minus the dropped experts"),
    "infer-map": Verb("infer_map", "Recover the drop map of a pruned model; list other changes"),
    "llamacpp": Verb("llamacpp", "Build llama.cpp, or show which programs are used"),
    "quantize": Verb("quantize", "Quantize MODEL to GGUF tiers or to NVFP4A16"),
    "plan": Verb("plan", "Predict file sizes and memory before quantizing"),
    "kld": Verb("kld", "Measure the KL divergence of quantized FILES from BASE"),
    "serve": Verb("serve", "Serve MODEL over the OpenAI API with the flags a bench needs"),
    "eval": Verb("eval", "Evaluate a checkpoint or a running server on benches"),
    "log": Verb("log", "Verify, recover, import, export and merge run logs"),
    "rescore": Verb("rescore", "Score stored replies again without generating"),
    "audit": Verb("audit", "Report whether each score is fit to publish"),
    "compare": Verb("compare", "Compare evaluated models with a base, item by item"),
    "attribute": Verb("attribute", "Show which step of pruning to serving lost each item"),
    "ladder": Verb("ladder", "Show quality against file size, with the Pareto front"),
    "report": Verb("report", "Write a self-contained HTML report over run logs"),
    "view": Verb("view", "Browse run logs in a local web page until Ctrl-C"),
    "card": Verb("card", "Write the model card of a pruned or quantized model"),
    "publish": Verb("publish", "Publish a model to the hub or to ollama"),
    "demo": Verb("demo", "Prune the bundled model seven ways and show what each cost"),
    "doctor": Verb("doctor", "Show what is installed and what each missing part enables"),
}

# Verbs of other tools, and words that people try, by the verb that does it here.
OTHER_WORDS = {
    "analyse": "inspect",
    "analyze": "inspect",
    "bench": "eval",
    "benchmark": "eval",
    "convert": "quantize",
    "cut": "prune",
    "diff": "compare",
    "export": "quantize",
    "finetune": "heal",
    "info": "inspect",
    "install": "llamacpp",
    "measure": "calibrate",
    "push": "publish",
    "select": "map",
    "show": "inspect",
    "size": "plan",
    "test": "eval",
    "upload": "publish",
    "verify": "certify",
}

# OpenMP reads this when torch is loaded. Threads that spin while waiting starve each other on a busy machine: a
# calibration of 12 seconds then takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # what a shell reports for a process ended by SIGPIPE


class ReaderGone(Exception):
    """The reader of standard output has closed it (head, less)."""


class Verbs(click.Group):
    """A group that imports a verb's module when the verb runs."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A closed pipe is caught here because click would exit with 1, which means a finding."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as exc:
            raise ReaderGone from exc

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs in workflow order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module; None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"trimoe.cli.{VERBS[cmd_name].module}")
        commands: dict[str | None, click.Command] = {command.name: command for command in module.COMMANDS}
        return commands[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; for an unknown one, suggest the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            word = args[0].lower()
            near = [OTHER_WORDS[word]] if word in OTHER_WORDS else get_close_matches(word, VERBS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " `trimoe --help` lists all commands."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs in workflow order, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trimoe")
def cli() -> None:
    """Make Mixture-of-Experts language models smaller, and prove what that cost.

    \b
    The full workflow:
      trimoe calibrate MODEL --set SET.yaml -o stats.safetensors
      trimoe map stats.safetensors --recipe v5-coder -o map.json
      trimoe prune MODEL map.json -o PRUNED
      trimoe certify MODEL PRUNED --map map.json
      trimoe eval MODEL --bench gsm8k-100 --log runs.db --name base
      trimoe eval PRUNED --bench gsm8k-100 --log runs.db --name pruned
      trimoe compare runs.db --base base
      trimoe quantize PRUNED --tiers Q4_K_M -o gguf

    `trimoe demo` runs it on the bundled model; `import trimoe` offers the same steps in Python.

    \b
    Exit codes: 0 done, 1 a finding (e.g. not certified), 2 usage, 3 bad input, 4 missing
    prerequisite, 5 refused by a guard, 6 interrupted (the same command resumes), 70 a bug in trimoe.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Errors are printed, not raised."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # After `--` every word is an argument, so a file named --json is not the option.
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
        return _report(Interrupted("interrupted", remedy="run the same command again to resume"), as_json)
    except TrimoeError as exc:
        return _report(exc, as_json)
    except ReaderGone:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as exc:  # noqa: BLE001 the outermost frame: anything else is reported as a bug
        known = _known(exc)
        return _report(known, as_json) if known else _bug(exc, as_json)


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
    """Failures of the environment that any verb can meet: a missing extra, a full disk, a file that may not be read."""
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        for extra, (packages, purpose) in EXTRAS.items():
            if exc.name.partition(".")[0] in packages:
                return MissingPrerequisite(
                    f"this needs the extra '{extra}' ({purpose})",
                    expected=", ".join(packages),
                    actual=f"{exc.name} is not installed",
                    remedy=install_command(extra),
                )
    return machine_failure(exc)


def _bug(exc: Exception, as_json: bool) -> int:
    traceback.print_exception(exc)
    hint = f"report it with this traceback, the command and the output of `trimoe doctor` (trimoe {__version__})"
    click.echo(f"trimoe: this is a bug in trimoe, not in your input: {hint}", err=True)
    if as_json:
        body = {"error": type(exc).__name__, "subject": str(exc), "remedy": hint, "exit_code": INTERNAL_ERROR}
        click.echo(json.dumps(body, indent=1, ensure_ascii=False))
    return INTERNAL_ERROR


def _terminate_like_interrupt() -> None:
    """Make SIGTERM unwind like Ctrl-C, so that temporary files are removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the host application owns the signals
        return


if __name__ == "__main__":
    sys.exit(main())
