"""The plan of an evaluation: first prompts, number of rows, estimated tokens. Loads no model and writes nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench, rows_sha256
from trimoe.bench.catalog import chosen_benches
from trimoe.errors import TrimoeError

CHARS_PER_TOKEN = 4  # a rule of thumb for English; the plan is made without a tokenizer


@dataclass(frozen=True)
class BenchPlan:
    """What an evaluation would ask of one bench. `error` is set if its data cannot be had, as `TrimoeError.as_dict`.

    `dataset_sha256` is the hash of all rows, whatever the limit. `note` says why a run would be refused.
    """

    bench: str
    rows: int
    dataset_sha256: str | None
    max_new_tokens: int
    stops: list[str]
    prompt_tokens_estimate: int
    most_reply_tokens: int
    first_prompts: list[str]
    first_chat: list[dict[str, str]]
    history_turns: int
    note: str
    error: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def plan_evaluation(
    *,
    bench: str | Bench | Sequence[str | Bench] | None = None,
    suite: str | None = None,
    smoke: bool = False,
    limit: int | None = None,
    data: str | Path | None = None,
) -> list[BenchPlan]:
    """The plan of each bench. Options as for `evaluate`. A bench whose data cannot be had does not stop the others."""
    folder = Path(data) if data is not None else None
    return [_plan(one, limit, folder) for one in chosen_benches(bench, suite, smoke=smoke)]


def _plan(bench: Bench, limit: int | None, data: Path | None) -> BenchPlan:
    error, note = None, ""
    try:
        everything = bench.docs(data)
    except TrimoeError as exc:
        everything, error = [], exc.as_dict()
    docs = everything[:limit]
    try:
        bench.require_statements(docs)
    except TrimoeError as exc:
        note = f"a run would be refused: {exc.subject}"
    chars = sum(len(turn["content"]) for doc in docs for turn in doc.chat())
    return BenchPlan(
        bench=bench.name,
        rows=len(docs),
        dataset_sha256=rows_sha256(everything) if everything else None,
        max_new_tokens=bench.max_new_tokens,
        stops=list(bench.stops),
        prompt_tokens_estimate=chars // CHARS_PER_TOKEN,
        most_reply_tokens=len(docs) * bench.max_new_tokens,
        first_prompts=[doc.prompt for doc in docs[:2]],
        first_chat=docs[0].chat() if docs else [],
        history_turns=len(docs[0].history) if docs else 0,
        note=note,
        error=error,
    )
