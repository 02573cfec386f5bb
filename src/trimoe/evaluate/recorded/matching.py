"""Compares recorded samples with the pinned rows of a bench.

Invariants: a sample counts as a row of the bench only if nothing contradicts it: a question that the bench does not
ask, another answer to it, two samples of one row, or an id that the bench does not have is refused. What cannot be
compared (a withheld question, a record without its row) is counted, and the run is marked. Where a question is known,
it decides which row a sample is, and the recorded id does not.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimoe.bench.bench import Bench, Doc
from trimoe.bench.pinned import UNKNOWN, Content, Pinned, base_of, content_of, question_hash
from trimoe.errors import BenchError
from trimoe.evaluate.recorded.record import Recorded

_FEW = 5


@dataclass(frozen=True)
class Matched:
    """The samples under the ids of the bench's rows, and how sure that is.

    Of the `rows`, `compared` have the question and answer of the bench, `answers` only the answer, the others only an
    id. `renamed` samples had another id in the file; `left_out` are rows of the file that the bench does not ask;
    `other_prompts` are samples whose recorded prompt lacks the bench's question.
    """

    samples: tuple[Recorded, ...]
    rows: int
    compared: int
    answers: int
    renamed: int
    left_out: int
    other_prompts: int

    def as_dict(self) -> dict[str, int]:
        """For the log."""
        return {
            "rows": self.rows,
            "compared": self.compared,
            "only_answers_compared": self.answers,
            "renamed": self.renamed,
            "left_out": self.left_out,
            "other_prompts": self.other_prompts,
        }


def matched(
    samples: Sequence[Recorded], bench: Bench, pinned: Pinned | None, file: Path, *, matching_rows: bool = False
) -> Matched:
    """The samples as rows of the bench. `BenchError` for what contradicts it.

    `matching_rows` leaves out rows that the bench does not ask, instead of refusing the file.
    """
    return _Match(samples, bench, pinned, file, matching_rows).result()


class _Match:
    def __init__(
        self, samples: Sequence[Recorded], bench: Bench, pinned: Pinned | None, file: Path, lenient: bool
    ) -> None:
        self.samples, self.bench, self.pinned, self.file, self.lenient = samples, bench, pinned, file, lenient
        self.base = base_of(bench)
        self.placeholder = bench.protocol.placeholder if bench.protocol else ""
        self.asked = frozenset(pinned.asked) if pinned else frozenset()
        self.how = Counter[str]()

    def result(self) -> Matched:
        kept: list[Recorded] = []
        foreign: list[str] = []
        ids: dict[str, str | None] = {}  # recorded id -> the row's id, None for a row that is not asked
        for one in self.samples:
            if one.doc_id not in ids:
                ids[one.doc_id] = self._row(one)
            row = ids[one.doc_id]
            if row is None:
                foreign.append(one.doc_id)
            else:
                self.how["renamed"] += row != one.doc_id
                self.how["other prompts"] += self._other_prompt(one)
                kept.append(replace(one, doc_id=row))
        foreign = list(dict.fromkeys(foreign))
        if foreign and (not self.lenient or not kept):
            self._refuse_foreign(foreign, len(ids))
        self._require_once({old: new for old, new in ids.items() if new is not None})
        per = len(kept) // max(1, len(ids) - len(foreign))
        self._require_few(len(kept) // max(1, per))
        return Matched(
            tuple(kept),
            len(kept) // max(1, per),
            self.how["compared"],
            self.how["answers"],
            self.how["renamed"],
            len(foreign),
            self.how["other prompts"],
        )

    def _row(self, one: Recorded) -> str | None:
        """The id of the row that a sample answers; None if the bench does not ask it."""
        if self.pinned is None:
            return one.doc_id
        content = self._content(one)
        if content.question == UNKNOWN:
            return self._by_id(one, content)
        rows = self.pinned.by_question.get(content.question, [])
        if not rows:
            # A prompt without its row may be in other words; a row of the data set may not.
            return self._by_id(one, content) if one.doc is None or self._withheld(one) else None
        asked = [row for row in rows if row in self.asked]
        row = one.doc_id if one.doc_id in asked else asked[0] if asked else rows[0]
        self._require_answer(one, row, content)
        self.how["compared"] += 1
        self.how["of the data set"] += row not in self.asked
        return row if row in self.asked else None

    def _by_id(self, one: Recorded, content: Content) -> str | None:
        assert self.pinned is not None
        own = self.base.own_id(one.doc) if one.doc is not None and self.base.own_id else one.doc_id
        if own not in self.pinned.rows:
            return None
        if content.answer != UNKNOWN and self.pinned.rows[own].answer != UNKNOWN:
            self._require_answer(one, own, content)
            self.how["answers"] += 1
        # The recorded id stays: recordings number these rows in their own order.
        return one.doc_id if own in self.asked else None

    def _withheld(self, one: Recorded) -> bool:
        assert self.pinned is not None
        own = self.base.own_id(one.doc) if one.doc is not None and self.base.own_id else one.doc_id
        return own in self.pinned.rows and self.pinned.rows[own].question == UNKNOWN

    def _content(self, one: Recorded) -> Content:
        """Hashes of the recorded row, or of the last turn of the prompt if the row is not recorded."""
        if one.doc is not None and self.base.record is not None:
            return content_of(self._doc(one), self.placeholder)
        turn = last_turn(one.prompt)
        return Content(UNKNOWN if turn is None else question_hash(turn))

    def _doc(self, one: Recorded) -> Doc:
        assert one.doc is not None
        return recorded_row(self.base, one.doc_id, one.doc, self.file)

    def _other_prompt(self, one: Recorded) -> bool:
        """Whether a prompt was recorded that does not contain the bench's own question."""
        if one.prompt is None or one.doc is None or self.bench.record is None:
            return False
        doc = recorded_row(self.bench, one.doc_id, one.doc, self.file)
        return doc.prompt.strip() not in (last_turn(one.prompt) or "")

    def _require_answer(self, one: Recorded, row: str, content: Content) -> None:
        assert self.pinned is not None
        if UNKNOWN not in (content.answer, self.pinned.rows[row].answer) and (
            content.answer != self.pinned.rows[row].answer
        ):
            raise BenchError(
                f"{self.file}: document {one.doc_id} has another answer than row {row} of {self.bench.name}",
                expected=f"the answer or tests of the pinned row (hash {self.pinned.rows[row].answer})",
                actual=f"others (hash {content.answer}) to the same question",
                remedy="the file was recorded on a changed copy of the data set: record it again on the pinned one",
            )

    def _refuse_foreign(self, foreign: Sequence[str], total: int) -> None:
        few = ", ".join(foreign[:_FEW]) + (f" and {len(foreign) - _FEW} more" if len(foreign) > _FEW else "")
        protocol = self.bench.protocol
        more = self.how["of the data set"] == len(foreign) and ":" not in self.bench.name
        known = ":all" if more and protocol is not None and "all" in protocol.variant else ""
        some = len(foreign) < total
        whole = f"import all rows as --bench {self.bench.name}{known}" if known else ""
        part = f"import only the {total - len(foreign)} that are, with --matching-rows" if some else ""
        raise BenchError(
            f"{self.file}: {len(foreign)} of {total} documents are not rows of {self.bench.name}",
            expected=f"the {len(self.asked)} rows of the bench",
            actual=f"documents {few} hold other questions, or ids that it does not have",
            remedy=", or ".join(filter(None, (part, whole))) or "check --bench and the file",
        )

    def _require_once(self, ids: Mapping[str, str]) -> None:
        for row, count in Counter(ids.values()).items():
            if count > 1:
                twice = [old for old, new in ids.items() if new == row]
                raise BenchError(
                    f"{self.file}: documents {' and '.join(twice[:2])} are one row of {self.bench.name}",
                    expected="every row once",
                    actual=f"row {row} {count} times",
                    remedy="remove the surplus documents, or record repeats as several replies to one document",
                )

    def _require_few(self, found: int) -> None:
        if found > self.bench.rows:
            raise BenchError(
                f"{self.file} holds more rows than {self.bench.name} has",
                expected=f"at most {self.bench.rows}",
                actual=str(found),
                remedy="check --bench and the file",
            )


def recorded_row(bench: Bench, doc_id: str, row: Mapping[str, object], file: Path) -> Doc:
    """A recorded row of a data set as a row of the bench. `BenchError` if it lacks the bench's columns."""
    assert bench.record is not None
    try:
        return bench.record(doc_id, row)
    except (BenchError, KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise BenchError(
            f"{file}: document {doc_id} is not a row of {bench.name}",
            expected="the columns of that bench's data set",
            actual=f"{type(exc).__name__}: {exc}",
            remedy="check --bench",
        ) from exc


def last_turn(prompt: str | None) -> str | None:
    """The question in a recorded prompt: the last turn of a conversation stored as JSON, else the whole text."""
    if prompt is None or not prompt.lstrip().startswith("["):
        return prompt
    try:
        turns = json.loads(prompt)
        text = turns[-1]["content"]
    except (ValueError, TypeError, KeyError, IndexError):
        return prompt
    return text if isinstance(text, str) else prompt
