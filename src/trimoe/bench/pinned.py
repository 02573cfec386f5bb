"""The pinned rows of a bench as short hashes, so that recorded samples can be compared with them without the data set.

A shipped bench has a table `benches/NAME.tsv` with every row of its data set: the row's id and the first 16 hexadecimal
digits of two sha256 sums, of the question (its prompt) and of the answer (what the scorer compares with). A question
that the copy of the data withholds is `-`. Benches without a table are compared with their rows, where these are local.
`python -m trimoe.bench.pinned DATA` writes the tables again from a folder with the data sets.
Not guaranteed: the hashes protect against mistakes, not against an attacker who searches for two rows with one hash.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from trimoe.bench.bench import Bench, Doc
from trimoe.bench.rows import asked_ids
from trimoe.io.canonical import canonical_json, sha256_bytes

UNKNOWN = "-"
_DIGITS = 16


@dataclass(frozen=True)
class Content:
    """Hashes of a row's question and answer; `UNKNOWN` for a part that is not known."""

    question: str = UNKNOWN
    answer: str = UNKNOWN


@dataclass(frozen=True)
class Pinned:
    """The rows of a bench: those of its whole data set, and the ids that the bench asks, in its order."""

    rows: Mapping[str, Content]
    asked: tuple[str, ...]

    @cached_property
    def by_question(self) -> dict[str, list[str]]:
        """Ids of the rows with a question of this hash."""
        found: dict[str, list[str]] = {}
        for doc_id, content in self.rows.items():
            if content.question != UNKNOWN:
                found.setdefault(content.question, []).append(doc_id)
        return found


def question_hash(prompt: str) -> str:
    """Hash of a prompt as in the tables."""
    return sha256_bytes(prompt.encode())[:_DIGITS]


def content_of(doc: Doc, placeholder: str = "") -> Content:
    """The hashes of a row. A prompt with the placeholder of a withheld question counts as unknown."""
    withheld = bool(placeholder) and placeholder in doc.prompt
    answer = sha256_bytes(canonical_json(doc.check))[:_DIGITS]
    return Content(UNKNOWN if withheld else question_hash(doc.prompt), answer)


def base_of(bench: Bench) -> Bench:
    """The bench without its variants, whose wording the tables hash."""
    return bench.build(()) if bench.build else bench


def pinned_rows(bench: Bench, data: Path | None) -> Pinned | None:
    """The pinned rows of a bench: from its table, else from its rows if these are local, else the ids of its spec.

    None if nothing is pinned (a data set of the hub without a table).
    """
    spec = bench.protocol
    if spec is not None and (rows := _table(spec.name)):
        return Pinned(rows, asked_ids(spec, list(rows)))
    if spec is None or data is not None or not any(part.hub for part in spec.dataset):
        placeholder = spec.placeholder if spec else ""
        found = {doc.doc_id: content_of(doc, placeholder) for doc in bench.docs(data)}
        return Pinned(found, tuple(found))
    if spec.rows.ids:
        return Pinned({doc_id: Content() for doc_id in spec.rows.ids}, spec.rows.ids)
    return None


def _table(name: str) -> dict[str, Content]:
    file = resources.files("trimoe.bench") / "benches" / f"{name.replace('-', '_')}.tsv"
    if not file.is_file():
        return {}
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    return {doc_id: Content(question, answer) for doc_id, question, answer in lines}


def table_text(name: str, data: Path) -> str:
    """The table of a shipped bench as text, from its local data set below `data`."""
    from trimoe.bench.catalog import find

    base = find([name])[0]
    spec = base.protocol
    whole = base.variant(["all"]) if spec is not None and "all" in spec.variant else base
    rows = {doc.doc_id: content_of(doc, spec.placeholder if spec else "") for doc in whole.docs(data)}
    parts = [part.part for part in spec.dataset] if spec else [""]
    ordered = sorted(rows, key=lambda doc_id: parts.index(doc_id.partition("::")[0]) if len(parts) > 1 else 0)
    return "".join(f"{doc_id}\t{rows[doc_id].question}\t{rows[doc_id].answer}\n" for doc_id in ordered)


if __name__ == "__main__":
    for table in sorted((Path(__file__).parent / "benches").glob("*.tsv")):
        table.write_text(table_text(table.stem.replace("_", "-"), Path(sys.argv[1])), encoding="utf-8")
