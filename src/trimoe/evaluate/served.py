"""Starts the server that each bench needs, checks it, and runs the benches on it.

Invariants: benches that need the same server share one, in the order asked for; nothing is asked before the server has
passed its preflight, unless that was switched off, which is recorded and shown with every result.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench
from trimoe.bench.catalog import find
from trimoe.evaluate.asking import Show
from trimoe.evaluate.client import Patience
from trimoe.evaluate.guards import require_known
from trimoe.evaluate.log.summary import RunSummary
from trimoe.evaluate.preflight import check
from trimoe.evaluate.run import evaluate_endpoint
from trimoe.sandbox import Policy
from trimoe.serve import open_server
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.wanted import wanted_for


def evaluate_served(
    target: Path | str,
    benches: Sequence[str | Bench],
    log_path: Path | str,
    *,
    engine: str | None = None,
    options: dict[str, Any] | None = None,
    limit: int | None = None,
    name: str | None = None,
    patience: Patience | None = None,
    data: Path | None = None,
    sandbox: Policy | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
    preflight: bool = True,
    show: Show | None = None,
) -> list[RunSummary]:
    """As `evaluate_endpoint`, for a model that has to be served first, or an address.

    `engine` and `options` are those of `open_server`. Raises what it, `preflight.check` and `evaluate_endpoint` raise.
    """
    ignored = tuple(ignore_guards)
    require_known(ignored)
    label = name or (Path(target).stem if "://" not in str(target) else None)
    results = []
    for group in _by_server(find(benches), "://" in str(target)):
        with open_server(target, engine=engine, spec=group[0].protocol, **(options or {})) as served:
            checked = _checked(served, group, limit, target, data, Path(log_path)) if preflight else [(served, None)]
            for bench, (endpoint, report) in zip(group, checked if preflight else checked * len(group), strict=True):
                results += evaluate_endpoint(
                    endpoint,
                    [bench],
                    log_path,
                    limit=limit,
                    name=label,
                    patience=patience,
                    data=data,
                    sandbox=sandbox,
                    ignore_guards=ignored,
                    exclude_errors=exclude_errors,
                    preflight=report,
                    show=show,
                )
    return results


def _by_server(benches: Sequence[Bench], running: bool) -> Iterator[list[Bench]]:
    """Neighbours that need the same server; a running one is what it is."""
    for _, group in groupby(benches, key=lambda bench: None if running else wanted_for(bench.protocol)):
        yield list(group)


def _checked(
    served: Endpoint, group: Sequence[Bench], limit: int | None, target: Path | str, data: Path | None, log_path: Path
) -> list[tuple[Endpoint, dict[str, Any] | None]]:
    """Every bench's preflight before the first one is run."""
    model = None if "://" in str(target) else Path(target)
    found: list[tuple[Endpoint, dict[str, Any] | None]] = []
    for bench in group:
        report = check(
            served,
            bench.protocol,
            max_new_tokens=bench.max_new_tokens,
            rows=min(bench.rows, limit or bench.rows),
            model=model,
            data=data,
            log_path=log_path,
        )
        # the context is part of a run's identity: it is what the server told, with or without this check
        found.append((replace(report.endpoint, context=served.context or report.endpoint.context), report.as_dict()))
    return found
