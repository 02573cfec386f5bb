"""Builds a bench from a spec and raw rows: selects rows and renders their prompts.

Invariants: the rule that picks rows (`spec.Rows`) applies to the order of their source. Local files whose rendered rows
do not have the pinned hash are refused, because a shifted selection gives a score that looks plausible.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from random import Random
from typing import Any

from trimoe.bench.bench import Bench, Doc, Opinion, Verdict, rows_sha256
from trimoe.bench.row_sources import Row as Row
from trimoe.bench.row_sources import iter_rows
from trimoe.bench.spec import BenchSpec, Dataset, Rows
from trimoe.bench.spec_file import load_spec, with_variants
from trimoe.errors import BenchError


@dataclass(frozen=True)
class View:
    """A row as a bench uses it: the fields of its templates, the scorer's data, and a reply that passes."""

    fields: dict[str, str]
    check: dict[str, Any]
    reference: str


@dataclass(frozen=True)
class Stated:
    """The stricter rule of a bench: only a reply's final statement counts. Without `extract_for`, the whole reply is
    passed to `score`."""

    score: Callable[[Sequence[tuple[str, Doc]]], list[Verdict]]
    extract_for: Callable[[str, Doc], str | None] | None = None


Views = Callable[[Sequence[Row], BenchSpec], list[View]]
Prepare = Callable[[Iterable[Row], BenchSpec], Iterable[Row]]


def each(view: Callable[[Row], View]) -> Views:
    """Views of rows that are independent of each other."""
    return lambda rows, _spec: [view(row) for row in rows]


def spec_bench(
    source: str | BenchSpec,
    views: Views,
    score: Callable[[Sequence[tuple[str, Doc]]], list[Verdict]],
    *,
    extract: Callable[[str], str | None] | None = None,
    extract_for: Callable[[str, Doc], str | None] | None = None,
    scorer: int = 1,
    prepare: Prepare | None = None,
    row_id: Callable[[Row], str] | None = None,
    needs: Callable[[], None] | None = None,
    opinion: Opinion | None = None,
    stated: Stated | None = None,
    folder: Path | None = None,
    shot: Callable[[Row], Mapping[str, str]] = lambda row: row,
) -> Bench:
    """The bench of a spec, or of a shipped spec file by its name, with its variants.

    `prepare` filters the raw rows before rows are chosen; `row_id` gives a row's id; `needs` raises if the scorer
    cannot work here; `opinion` tells where a reply's final statement disagrees with its verdict, and `stated` is the
    rule that takes only this statement, for variants with the option `rule = "stated"`; `folder` holds the local data
    if no other folder is given; `shot` makes the fields of a few-shot example.
    """
    spec = load_spec(source) if isinstance(source, str) else source

    def build(variants: Sequence[str]) -> Bench:
        chosen = with_variants(spec, variants) if variants else spec
        strict = stated if chosen.options.get("rule") == "stated" else None
        return Bench(
            name=":".join([spec.name, *variants]),
            version=chosen.version,
            rows=sum(_count(part, chosen.rows) for part in chosen.dataset),
            max_new_tokens=chosen.generation.max_new_tokens,
            load=lambda _rows, data: _docs(chosen, views, (data, folder), prepare, row_id, shot),
            extract=extract or (lambda _reply: None),
            score=strict.score if strict else score,
            scorer=scorer,
            needs=needs,
            extract_for=strict.extract_for if strict else extract_for,
            opinion=None if strict else opinion,
            protocol=chosen,
            own_id=row_id,
            record=lambda doc_id, row: _doc(chosen, doc_id, row, views([row], chosen)[0], (), ""),
            build=build,
        )

    return build(())


def asked_ids(spec: BenchSpec, ids: Sequence[str]) -> tuple[str, ...]:
    """The ids that the spec's rule takes from all ids of its data sets, which are in the order of the data."""
    if spec.rows.ids:
        return spec.rows.ids
    parts: dict[str, list[str]] = {}
    for doc_id in ids:
        parts.setdefault(doc_id.partition("::")[0] if len(spec.dataset) > 1 else "", []).append(doc_id)
    return tuple(doc_id for part in parts.values() for doc_id in part[:: spec.rows.stride or 1][: spec.rows.first])


def _count(part: Dataset, rule: Rows) -> int:
    """Number of rows that the rule takes from a data set."""
    if rule.ids:
        return len(rule.ids)
    strided = -(-(part.rows or 0) // (rule.stride or 1))
    return min(strided, rule.first or strided)


def _docs(
    spec: BenchSpec,
    views: Views,
    places: tuple[Path | None, Path | None],
    prepare: Prepare | None,
    row_id: Callable[[Row], str] | None,
    shot: Callable[[Row], Mapping[str, str]],
) -> list[Doc]:
    parts: list[list[Doc]] = []
    for part in spec.dataset:
        source = iter_rows(part, *places)
        chosen = choose(prepare(source, spec) if prepare else source, part, spec, row_id)
        rows = [row for _, row in chosen]
        shots = few_shot(spec, len(rows), *places, shot)
        parts.append(
            [
                _doc(spec, f"{part.part}::{doc_id}" if part.part else doc_id, row, view, history, part.part)
                for (doc_id, row), view, history in zip(chosen, views(rows, spec), shots, strict=True)
            ]
        )
    # Interleaved, so that the first n rows of a bench in parts cover all parts.
    docs = [doc for turn in zip_longest(*parts) for doc in turn if doc is not None]
    twice = [name for name, count in Counter(doc.doc_id for doc in docs).items() if count > 1]
    if twice:
        raise BenchError(
            f"bench {spec.name}: two rows have the id {twice[0]}",
            expected="a different id for every row",
            remedy="correct the data or `id_field`; without `id_field`, rows are numbered",
        )
    found, data = rows_sha256(docs), places[0] or places[1]
    if data is not None and spec.dataset_sha256 and found != spec.dataset_sha256:
        raise BenchError(
            f"bench {spec.name}: the rows below {data} are not the pinned rows",
            expected=f"rows with hash {spec.dataset_sha256[:16]}",
            actual=f"{found[:16]} of {len(docs)} rows",
            remedy="use the data set named in docs/reference/benches.md, unchanged and in its original order",
        )
    return docs


def _doc(spec: BenchSpec, doc_id: str, row: Row, view: View, history: tuple[tuple[str, str], ...], part: str) -> Doc:
    return Doc(doc_id, render(spec.prompt.user, view.fields), view.reference, view.check, history, part)


def render(template: str, fields: Mapping[str, str]) -> str:
    """A template with its `{fields}` substituted once: braces inside a field's text are kept."""
    try:
        return template.format_map(fields)
    except KeyError as exc:
        raise BenchError(
            f"a row has no field {exc.args[0]} for the template {template[:60]!r}",
            expected=", ".join(sorted(fields)),
            remedy="correct the template, or the data",
        ) from exc


def few_shot(
    spec: BenchSpec,
    count: int,
    data: Path | None,
    folder: Path | None = None,
    shot: Callable[[Row], Mapping[str, str]] = lambda row: row,
) -> list[tuple[tuple[str, str], ...]]:
    """The turns before each of `count` questions, in order.

    As in lm-eval (`ContextSampler`), one generator draws the examples of all questions, so those of the tenth question
    depend on the nine draws before it.
    """
    shots = spec.few_shot
    if shots is None:
        return [()] * count
    if shots.dataset is None:
        return [_turns(spec, shots.examples)] * count
    pool = list(iter_rows(shots.dataset, data, folder))
    _require_count(shots.dataset, len(pool), spec)
    if len(pool) < shots.k:
        raise BenchError(
            f"bench {spec.name}: too few rows for the few-shot examples",
            expected=f"{shots.k} or more",
            actual=str(len(pool)),
            remedy="add rows, or lower few_shot.k",
        )
    draw = Random(shots.seed)
    return [_turns(spec, [shot(row) for row in draw.sample(pool, shots.k)]) for _ in range(count)]


def _turns(spec: BenchSpec, examples: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    turns: list[tuple[str, str]] = []
    for example in examples:
        turns.append(("user", render(spec.prompt.user, example)))
        turns.append(("assistant", render(spec.prompt.assistant, example)))
    return tuple(turns)


def choose(
    rows: Iterable[Row], part: Dataset, spec: BenchSpec, row_id: Callable[[Row], str] | None
) -> list[tuple[str, Row]]:
    """The chosen rows, each with its id: from `row_id`, the spec's id field, or the position in the data set."""

    def name(place: int, row: Row) -> str:
        if row_id is None and spec.id_field and spec.id_field not in row:
            raise BenchError(
                f"bench {spec.name}, row {place} has no field {spec.id_field}",
                expected=", ".join(sorted(map(str, row))),
                remedy="correct `id_field`",
            )
        return row_id(row) if row_id else str(row[spec.id_field]) if spec.id_field else str(place)

    if spec.rows.ids:
        wanted = set(spec.rows.ids)
        found: dict[str, Row] = {}
        for place, row in enumerate(rows):
            if (doc_id := name(place, row)) in wanted:
                found.setdefault(doc_id, row)
        if missing := [i for i in spec.rows.ids if i not in found]:
            raise BenchError(
                f"bench {spec.name}: {len(missing)} of {len(wanted)} pinned rows are not in the data set",
                expected=", ".join(missing[:5]),
                remedy="use all files of the pinned revision",
            )
        return [(i, found[i]) for i in spec.rows.ids]
    everything = [(name(place, row), row) for place, row in enumerate(rows)]
    _require_count(part, len(everything), spec)
    return list(islice(everything[:: spec.rows.stride or 1], spec.rows.first))


def _require_count(part: Dataset, found: int, spec: BenchSpec) -> None:
    if part.rows is not None and found != part.rows:
        raise BenchError(
            f"bench {spec.name}: {part.hub or part.local} has another number of rows than the spec",
            expected=f"{part.rows} rows",
            actual=f"{found}",
            remedy="use the complete, unchanged file of the pinned revision",
        )
