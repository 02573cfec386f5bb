"""Attributes lost items to the steps of a chain of runs, and to the experts that a prune dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.errors import UsageError
from trimoe.io.atomic import publish_file, require_absent
from trimoe.judge.chain import Chain, attribute_chain
from trimoe.judge.lost_experts import Suggestion, force_keep, measured, suggest, write_traces


@dataclass(frozen=True)
class KeepSuggestion:
    """Dropped experts to keep, written as a force-keep file; measured on `lost` lost and `kept` surviving items."""

    suggestion: Suggestion
    lost: int
    kept: int
    force_keep: Path


@dataclass(frozen=True)
class Attribution:
    """Where items were lost; `keep` is set if experts were to be suggested."""

    chain: Chain
    keep: KeepSuggestion | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values: the output of `trimoe attribute --json`."""
        body = self.chain.as_dict()
        if self.keep is None:
            return body
        found = self.keep
        return body | {
            "suggestion": found.suggestion.as_dict(),
            "lost": found.lost,
            "kept": found.kept,
            "force_keep": str(found.force_keep),
        }


def attribute(
    logs: Path | str | Sequence[Path | str],
    chain: str | Sequence[str],
    *,
    benches: Sequence[str] | None = None,
    model: Path | str | None = None,
    drop_map: Path | str | None = None,
    out: Path | str | None = None,
    work: Path | str | None = None,
    most: int = 32,
) -> Attribution:
    """Find the step of `chain` (run names in order, or one comma-separated string) at which each item was lost.

    With the base checkpoint `model` and the `drop_map` of the first step, the base is also measured on its right
    replies to the lost items (this needs torch), and at most `most` dropped experts that it used there are written to
    `out`, a file for `trimoe map --force-keep`. `work` is the folder for the measured texts, by default OUT.traces.
    Raises `UsageError` for unknown names or options that need each other, `Refused` for runs that answered different
    items.
    """
    if len({model is None, drop_map is None, out is None}) > 1:
        raise UsageError(
            "--model, --map and -o need each other",
            expected="all three, or none",
            actual="some of them",
            remedy="give all three, or none",
        )
    names = [name.strip() for name in chain.split(",")] if isinstance(chain, str) else list(chain)
    paths = [logs] if isinstance(logs, Path | str) else list(logs)
    made, runs = attribute_chain(paths, names, benches)
    if model is None or drop_map is None or out is None:
        return Attribution(made)
    target = Path(out)
    require_absent(target)
    gone = DropMap.load(Path(drop_map))
    chosen, lost, kept = write_traces(made, runs, Path(work or target.with_name(target.name + ".traces")))
    found = suggest(measured(Path(model), chosen), gone, most)
    with publish_file(target) as temporary:
        temporary.write_text(force_keep(found, names), encoding="utf-8")
    return Attribution(made, KeepSuggestion(found, lost, kept, target))
