"""Evaluates a model on benches: a checkpoint in this process, a model served by an engine, or a running server."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trimoe.bench.bench import SMOKE, Bench
from trimoe.bench.catalog import SUITES, find
from trimoe.errors import UsageError
from trimoe.evaluate import run, served
from trimoe.evaluate.asking import Show
from trimoe.evaluate.client import Patience
from trimoe.evaluate.log.summary import RunSummary
from trimoe.io.progress import Progress
from trimoe.sandbox import Policy

IN_PROCESS = "trimoe"  # the engine name of this process


class HasPath(Protocol):
    """Anything with the path of a model, such as a `Checkpoint`."""

    @property
    def path(self) -> Path:
        """Directory or .gguf file."""


@dataclass(frozen=True)
class Evaluation:
    """The runs of one call, in the order of the benches, and the log that holds their samples."""

    log: Path
    runs: tuple[RunSummary, ...]

    @property
    def scores(self) -> dict[str, float | None]:
        """Score in [0, 1] by bench; None while rows are not scored."""
        return {run.bench: run.score for run in self.runs}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"log": str(self.log), "runs": [run.as_dict() for run in self.runs]}


def evaluate(
    model: str | Path | HasPath,
    *,
    bench: str | Bench | Sequence[str | Bench] | None = None,
    suite: str | None = None,
    log: str | Path,
    name: str | None = None,
    engine: str | None = None,
    limit: int | None = None,
    data: str | Path | None = None,
    smoke: bool = False,
    batch_size: int = 128,
    device: str = "cpu",
    server: Mapping[str, Any] | None = None,
    patience: Patience | None = None,
    preflight: bool = True,
    sandbox: Policy | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
    progress: Progress | None = None,
    show: Show | None = None,
) -> Evaluation:
    """Generate, score and store what is missing of each bench. The same call resumes an interrupted run."""
    target: str | Path = model if isinstance(model, str | Path) else model.path
    wanted = chosen_benches(bench, suite, smoke=smoke)
    common: dict[str, Any] = {
        "limit": limit,
        "name": name,
        "data": Path(data) if data is not None else None,
        "sandbox": sandbox,
        "ignore_guards": tuple(ignore_guards),
        "exclude_errors": exclude_errors,
    }
    if is_served(target, engine):
        runs = served.evaluate_served(
            target,
            wanted,
            log,
            engine=engine,
            options=dict(server or {}),
            patience=patience,
            preflight=preflight,
            show=show,
            **common,
        )
    else:
        runs = run.evaluate(target, wanted, log, progress=progress, batch_size=batch_size, device=device, **common)
    return Evaluation(Path(log), tuple(runs))


def is_served(model: str | Path, engine: str | None) -> bool:
    """Whether the model is asked over HTTP; a checkpoint without a named engine runs in this process."""
    if "://" in str(model) or str(model).endswith(".gguf"):
        if engine == IN_PROCESS:
            raise UsageError(f"{model} does not run in this process", expected="a checkpoint directory")
        return True
    return engine not in (None, IN_PROCESS)


def chosen_benches(
    bench: str | Bench | Sequence[str | Bench] | None, suite: str | None, *, smoke: bool = False
) -> list[Bench]:
    """The benches of a comma-separated string, a list, or a suite; `smoke` takes a few rows of each."""
    if (bench is None) == (suite is None):
        raise UsageError(
            "which benches?", expected="bench or suite, one of them", actual="both" if bench else "neither"
        )
    if suite is not None and suite not in SUITES:
        raise UsageError(f"unknown suite {suite}", expected=", ".join(SUITES))
    names: Sequence[str | Bench] = SUITES[suite] if suite else [bench] if isinstance(bench, Bench) else bench or ()
    if isinstance(names, str):
        names = [part.strip() for part in names.split(",") if part.strip()]
    if smoke:
        names = [n if isinstance(n, Bench) or SMOKE in n.split(":") else f"{n}:{SMOKE}" for n in names]
    return find(names)
