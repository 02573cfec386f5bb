"""Sources of passing traces (tier B of the protocol): replies that a scorer accepted, from run logs or lm-eval samples.

A run log is read from the JSON lines that `trimoe log export` writes, not from its SQLite file: the export is the
documented, versioned interface, the tables are internal to the evaluation.
Invariants: only replies scored as correct are used; the raw reply follows the opened turn unchanged; an item that the
model named by `against` got wrong has a higher weight. Not guaranteed: that the scorer was right.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trimoe.calibrate.text.leaks import identify
from trimoe.calibrate.text.multipl_e import refuse_name, refuse_row
from trimoe.calibrate.text.records import Message, Record, checked, messages_of, read_records
from trimoe.calibrate.text.sources.base import PathSource, Positive, RawReply, SourceText, user
from trimoe.errors import CalibrationError
from trimoe.io.paths import Place


@dataclass(frozen=True)
class Trace:
    """One scored reply. `key` is equal for the same item of two models, `item` is BENCH/ID; `passed` is None if the
    reply was not scored."""

    key: str
    item: str
    passed: bool | None
    record: Record


class TraceSource(PathSource, frozen=True, kw_only=True):
    """Common part of both kinds of traces."""

    lost_weight: Positive = 3.0
    """Weight of an item that this model passes and the model named by `against` fails; all others have weight 1."""

    def _traces(self) -> Iterator[Trace]:
        """Every judged reply of the source."""
        raise NotImplementedError

    def _others(self) -> dict[str, bool | None] | None:
        """Key of an item -> whether the model named by `against` passes it; None without `against`."""
        raise NotImplementedError

    def _question(self, record: Record) -> list[Message]:
        """The prompt."""
        raise NotImplementedError

    def _reply(self, record: Record) -> RawReply:
        """The raw reply."""
        raise NotImplementedError

    def _items(self) -> Iterator[SourceText]:
        other = self._others()
        if other is not None and not any(trace.key in other for trace in self._traces()):
            raise CalibrationError(
                f"source {self.label} has no item in common with `against`",
                expected="replies of two models to the same bench",
                actual=f"{len(other)} other items",
                remedy="correct `against`",
            )
        seen: set[str] = set()
        for trace in self._traces():
            refuse_row(trace.record.row, trace.record.where)
            if trace.key in seen:
                raise CalibrationError(
                    f"{trace.record.where} repeats {trace.item}",
                    expected="one reply per item",
                    remedy="give the samples of one run",
                )
            seen.add(trace.key)
            if trace.passed is True:
                lost = other is not None and other.get(trace.key) is False
                question, reply = self._question(trace.record), self._reply(trace.record)
                weight = self.lost_weight if lost else 1.0
                yield self.chat(question, trace.record.where, reply=reply, weight=weight, item=trace.item)


class RunLogSource(TraceSource, frozen=True, kw_only=True, tag="run-log"):
    """Passing replies of one model from the JSON lines that `trimoe log export` writes."""

    model: str
    """The run's name in the log (column `name`)."""
    benches: list[str] | None = None
    """Only these benches; if absent, all of the model's."""
    against: str | None = None
    """Name of another model in the same log."""

    def _traces(self) -> Iterator[Trace]:
        names: set[str] = set()
        for record in read_records(self.path):
            name, bench = self._text(record, "name"), self._text(record, "bench")
            names.add(name)
            if name == self.model and (self.benches is None or bench in self.benches):
                refuse_name(bench, record.where)
                item = f"{bench}/{self._text(record, 'doc_id')}"
                yield Trace(item, item, self._verdict(record), record)
        if self.model not in names:
            raise CalibrationError(
                f"{self.path} has no run named {self.model}",
                expected=", ".join(sorted(names)),
                actual=self.model,
                remedy="correct `model` of this source",
            )

    def _others(self) -> dict[str, bool | None] | None:
        if self.against is None:
            return None
        return {
            f"{self._text(record, 'bench')}/{self._text(record, 'doc_id')}": self._verdict(record)
            for record in read_records(self.path)
            if self._text(record, "name") == self.against
        }

    def _question(self, record: Record) -> list[Message]:
        """The prompt; a log stores a conversation of several turns as JSON in the same column."""
        what = f"field 'prompt' of {record.where}"
        prompt = checked(record.row.get("prompt"), what)
        try:
            turns = json.loads(prompt) if prompt.startswith('[{"') else None
            several = turns is not None and all(turn.keys() == {"role", "content"} for turn in turns)
        except (ValueError, AttributeError, RecursionError):  # a question that only begins like JSON
            several = False
        return messages_of(turns, what) if several else [user(prompt)]

    def _reply(self, record: Record) -> RawReply:
        text = checked(record.row.get("reply"), f"field 'reply' of {record.where}")
        return RawReply(text, record.row.get("finish_reason") == "stop")

    @staticmethod
    def _text(record: Record, name: str) -> str:
        return checked(record.row.get(name), f"field {name!r} of {record.where}")

    @staticmethod
    def _verdict(record: Record) -> bool | None:
        verdict = record.row.get("correct")
        if verdict is not None and not isinstance(verdict, bool):
            raise CalibrationError(
                f"field 'correct' of {record.where} is not a verdict",
                expected="true, false or null",
                actual=repr(verdict)[:50],
            )
        return verdict


class LmEvalSource(TraceSource, frozen=True, kw_only=True, tag="lm-eval"):
    """Passing replies from a samples file of lm-evaluation-harness (`--log_samples`)."""

    bench: str
    """Name of the bench, for the record of items used on purpose."""
    metric: str | None = None
    """The metric whose value 1 means that a reply passed; required if there are several."""
    filter: str | None = None
    """The filter whose rows are used; required if there are several."""
    against: Path | None = None
    """Samples of another model on the same bench, relative to the set file."""
    end_of_turn: bool = False
    """Append the token that ends the turn: samples do not record whether the model wrote it."""

    def resolve(self, place: Place) -> "LmEvalSource":
        """See `BaseSource.resolve`."""
        against = place(self.against) if self.against else None
        return msgspec.structs.replace(self, path=place(self.path), against=against)

    def _traces(self) -> Iterator[Trace]:
        refuse_name(self.bench, f"source {self.label}")
        yield from self._read(self.path)

    def _others(self) -> dict[str, bool | None] | None:
        return {t.key: t.passed for t in self._read(self.against)} if self.against else None

    def _read(self, path: Path) -> Iterator[Trace]:
        """Rows of the chosen filter; lm-eval writes one row per item and filter."""
        chosen, seen = self.filter, set[str]()
        for record in read_records(path):
            doc, name = record.row.get("doc"), record.row.get("filter")
            if not isinstance(doc, dict) or not isinstance(name, str):
                found = ", ".join(sorted(record.row))[:200]
                raise CalibrationError(
                    f"{record.where} is not a sample of lm-eval", expected="doc, resps, filter, metrics", actual=found
                )
            refuse_row(doc, record.where)
            seen.add(name)
            if self.filter is None and len(seen) > 1:
                raise CalibrationError(
                    f"{path} has several filters",
                    expected="`filter` in this source",
                    actual=", ".join(sorted(seen)),
                    remedy="name the one to use",
                )
            if chosen is None or name == chosen:
                number = record.row.get("doc_id")
                number = number if isinstance(number, int) else record.number
                # The row number identifies an item in both files; the hash distinguishes versions of a bench.
                key = f"{number}/{record.row.get('doc_hash', '')}"
                yield Trace(key, f"{self.bench}/{identify(doc, number)}", self._passed(record), record)
        if self.filter is not None and self.filter not in seen:
            raise CalibrationError(
                f"{path} has no filter {self.filter}",
                expected=", ".join(sorted(seen)),
                actual=self.filter,
                remedy="correct `filter` of this source",
            )

    def _passed(self, record: Record) -> bool:
        metrics = record.row.get("metrics")
        names = [m for m in metrics if isinstance(m, str)] if isinstance(metrics, list) else []
        if self.metric is None and len(names) != 1:
            raise CalibrationError(
                f"{record.where} has several metrics",
                expected="`metric` in this source",
                actual=", ".join(names) or "none",
                remedy="name the one to use",
            )
        name = self.metric or names[0]
        value = record.row.get(name)
        if not isinstance(value, bool | int | float):
            raise CalibrationError(
                f"metric {name!r} of {record.where} is not a number",
                expected="0 or 1",
                actual=repr(value)[:100],
                remedy=f"there are {', '.join(names)}",
            )
        return value == 1

    def _question(self, record: Record) -> list[Message]:
        """The prompt as it was sent: a chat in JSON, or plain text (taken as the user's turn)."""
        arguments: Any = record.row.get("arguments")
        try:
            sent = arguments["gen_args_0"]["arg_0"]
        except (KeyError, TypeError) as exc:
            raise CalibrationError(
                f"{record.where} does not contain its prompt",
                expected="arguments.gen_args_0.arg_0",
                actual=", ".join(sorted(record.row))[:200],
                remedy="run lm-eval with --log_samples and keep `arguments`",
            ) from exc
        what = f"the prompt of {record.where}"
        if isinstance(sent, str):
            return [user(checked(sent, what))]
        try:
            return messages_of(json.loads(sent[0]), what)
        except (IndexError, KeyError, TypeError, ValueError) as exc:
            raise CalibrationError(
                f"{what} is not a chat", expected="a JSON list of messages", actual=repr(sent)[:100]
            ) from exc

    def _reply(self, record: Record) -> RawReply:
        replies = record.row.get("resps")
        if not (
            isinstance(replies, list) and len(replies) == 1 and isinstance(replies[0], list) and len(replies[0]) == 1
        ):
            raise CalibrationError(
                f"{record.where} does not have one reply", expected="resps: [[text]]", actual=repr(replies)[:100]
            )
        return RawReply(checked(replies[0][0], f"the reply of {record.where}"), self.end_of_turn)
