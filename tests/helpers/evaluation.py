"""Evaluations in one line: a model or an endpoint, benches and a log in, the summaries of the runs out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench
from trimoe.evaluate.evaluate import evaluate
from trimoe.evaluate.log.summary import RunSummary
from trimoe.evaluate.rescore import rescore
from trimoe.serve.endpoint import Endpoint


def run_model(model: Path | str, benches: Sequence[str | Bench], log: Path, **options: Any) -> list[RunSummary]:
    """Summaries of the runs of a model, in this process unless the options name an engine."""
    return list(evaluate(model, bench=benches, log=log, **options).runs)


def run_endpoint(endpoint: Endpoint, benches: Sequence[str | Bench], log: Path, **options: Any) -> list[RunSummary]:
    """Summaries of the runs on a server, without a preflight unless the options ask for one."""
    return list(evaluate(endpoint, bench=benches, log=log, **{"preflight": False, **options}).runs)


def rescored(log: Path, data: Path | None = None) -> list[RunSummary]:
    """Summaries after judging every stored reply again."""
    return list(rescore(log, data=data).runs)
