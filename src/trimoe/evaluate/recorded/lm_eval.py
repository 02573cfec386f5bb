"""Samples files of lm-eval, from `--log_samples`, in its old layout (`arguments` a list) and its new one (an object).

Invariants: only generated replies are taken in. Log-likelihood samples have no replies, so they are refused with what
can be done instead. lm-eval writes a document once per filter; these rows must hold the same replies.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from trimoe.bench.bench import Bench
from trimoe.errors import BenchError
from trimoe.evaluate.recorded.record import Place, Recorded, counted

LAYOUT = "lm-eval's samples file (doc_id, doc, arguments, resps)"


class _Ours(msgspec.Struct):
    """The column `trimoe` of files that `trimoe log export --format lm-eval` wrote."""

    finish_reason: str | None = None
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    reasoning: str | None = None
    reasoning_field: str | None = None
    reasoning_tokens: int | None = None


class _Row(msgspec.Struct):
    doc_id: int | str
    resps: list[Any]
    doc: dict[str, Any] | None
    arguments: dict[str, Any] | list[Any] = msgspec.field(default_factory=dict)
    filter: str | None = None
    trimoe: _Ours | None = None


def read(rows: Iterable[tuple[Place, Any]], bench: Bench) -> Iterator[Recorded]:
    """The replies of a samples file, in its order."""
    metric, _, wanted = (bench.protocol.metric if bench.protocol else "").partition(",")
    found: dict[str, list[Recorded]] = {}
    for place, row in rows:
        replies = _replies(place, place.typed(row, _Row, LAYOUT), row, (metric, wanted))
        doc_id = replies[0].doc_id
        before = found.setdefault(doc_id, replies)
        if [one.reply for one in before] != [one.reply for one in replies]:
            raise BenchError(
                f"{place.file} {place.at} holds two different replies to document {doc_id}",
                expected="the samples of one run; repeats of a document stand in one row, in `resps`",
                actual="another row of this document has other replies",
                remedy="split the file by run",
            )
        if before[0].verdict is None and replies[0].verdict is not None:
            found[doc_id] = replies
    for replies in found.values():
        yield from replies


def _replies(place: Place, row: _Row, whole: Mapping[str, Any], metric: tuple[str, str]) -> list[Recorded]:
    prompt, how = _asked(place, row)
    texts = _texts(place, row)
    ours = row.trimoe or _Ours()
    one = Recorded(
        str(row.doc_id),
        texts[0],
        row.doc,
        prompt,
        ours.finish_reason or "",
        counted(ours.prompt_tokens),
        counted(ours.reply_tokens),
        _verdict(place, row, whole, metric) if len(texts) == 1 else None,  # else it judges all replies together
        how,
        ours.reasoning or "",
        ours.reasoning_field or "",
        counted(ours.reasoning_tokens),
    )
    return [one, *(replace(one, reply=text, epoch=epoch) for epoch, text in enumerate(texts[1:], 2))]


def _asked(place: Place, row: _Row) -> tuple[str | None, Mapping[str, Any]]:
    """The prompt and the generation settings of the first request, from either layout."""
    if isinstance(row.arguments, dict):
        first = row.arguments.get("gen_args_0", {})
        if not isinstance(first, dict):
            place.refuse(LAYOUT, f"field arguments.gen_args_0: {_kind(first)} instead of an object")
        parts = [first[key] for key in sorted(first)]
    else:
        parts = row.arguments[0] if row.arguments else []
        if not isinstance(parts, list):
            place.refuse(LAYOUT, f"field arguments[0]: {_kind(parts)} instead of a list")
    if len(parts) > 1 and isinstance(parts[1], str):
        _refuse_likelihoods(place)
    if len(parts) > 1 and not isinstance(parts[1], dict):
        place.refuse(LAYOUT, f"field arguments: {_kind(parts[1])} instead of generation settings")
    prompt = parts[0] if parts else None
    if isinstance(prompt, list):  # lm-eval stores the turns of a chat as JSON text in a list
        prompt = prompt[0] if prompt else None
    return (None if prompt is None else str(prompt)), (parts[1] if len(parts) > 1 else {})


def _texts(place: Place, row: _Row) -> list[str]:
    """The replies to the document: one, or several with `repeats`."""
    if len(row.resps) > 1 and all(isinstance(one, list) for one in row.resps):
        if any(_likelihood(one) for one in row.resps):
            _refuse_likelihoods(place)
        place.refuse(LAYOUT, f"field resps: {len(row.resps)} requests for one document, where a reply needs one")
    replies = row.resps[0] if row.resps and isinstance(row.resps[0], list) else row.resps
    if _likelihood(replies) or any(_likelihood(one) for one in replies):
        _refuse_likelihoods(place)
    for number, one in enumerate(replies):
        if one is not None and not isinstance(one, str):
            place.refuse(LAYOUT, f"field resps[0][{number}]: {_kind(one)} instead of a text")
    return [one or "" for one in replies] or [""]


def _likelihood(value: Any) -> bool:
    """Whether a response is a log-likelihood: [number, is greedy], perhaps nested, or one number."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return _likelihood(value[0])
    if not isinstance(value, list):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return len(value) == 2 and str(value[1]) in ("True", "False") and _number(value[0])


def _number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) <= 0
    except (TypeError, ValueError):
        return False


def _refuse_likelihoods(place: Place) -> None:
    place.refuse(
        LAYOUT + " of a task that generates replies",
        "log-likelihoods of given continuations (output_type loglikelihood or multiple_choice), which are no replies",
        "there is nothing to judge again: keep lm-eval's own score, or run the task's generating variant "
        "(for ARC: arc_challenge_chat) with --log_samples",
    )


def _verdict(place: Place, row: _Row, whole: Mapping[str, Any], metric: tuple[str, str]) -> bool | None:
    name, wanted = metric
    if name not in whole or not (not wanted or row.filter in (None, "none", wanted)):
        return None
    value = whole[name]
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        place.refuse(LAYOUT, f"field {name}: {value!r} instead of 0 or 1"[:200])
    return bool(value)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
