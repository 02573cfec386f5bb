"""Benches without Python code: the `[answer]` table of a TOML file describes extraction and comparison.

Suited to answers that a reply states: a number, a letter, a word. Code, constraints and rules that depend on the row
need a Python file beside the spec (`rows.spec_bench`). The scorer's version is a hash of the table, so stored replies
are judged again when the table changes.
Invariants: every row's reference reply passes, or the bench is refused when its rows are read.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import to_builtins

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.bench.patterns import Pattern, SlowPattern
from trimoe.bench.rows import Row, View, render, spec_bench
from trimoe.bench.spec import Answer, BenchSpec
from trimoe.bench.spec_file import parse_spec, with_variants
from trimoe.errors import BenchError
from trimoe.io.canonical import canonical_json, sha256_bytes

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def open_bench(path: Path) -> Bench:
    """The bench of a user's own file. Local data are read from below `--data`, or from beside the file.

    `BenchError` for a file that is missing or invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BenchError(
            f"bench file {path} cannot be read",
            expected="a TOML file",
            actual=str(exc),
            remedy="see docs/howto/add-a-bench.md",
        ) from exc
    return declared_bench(parse_spec(text, path.name), path.resolve().parent)


def declared_bench(spec: BenchSpec, folder: Path | None = None) -> Bench:
    """The bench of a spec with an `[answer]` table; `folder` holds its local data unless `--data` is given."""
    rule = spec.answer
    if rule is None:
        raise BenchError(
            f"bench {spec.name} has no rule for answers",
            expected="a table [answer]",
            remedy="see docs/howto/add-a-bench.md",
        ) from None
    changed = [name for name in spec.variant if with_variants(spec, [name]).answer != rule]
    if changed:
        raise BenchError(
            f"bench {spec.name}: variant {changed[0]} changes [answer]",
            expected="one [answer] table for all variants",
            remedy="make the variant a bench of its own",
        )
    find, normal = finder(rule), normalizer(rule)

    def shot(row: Row) -> dict[str, str]:
        made = view(rule, find, normal, row, f"bench {spec.name}, an example")
        return made.fields | {"gold": made.check["gold"]}

    return spec_bench(
        spec,
        lambda rows, _: [
            view(rule, find, normal, row, f"bench {spec.name}, row {place}") for place, row in enumerate(rows)
        ],
        scorer_of(normal),
        extract=find,
        scorer=int(sha256_bytes(canonical_json(to_builtins(rule)))[:7], 16),
        folder=folder,
        shot=shot,
    )


def finder(rule: Answer) -> Callable[[str], str | None]:
    """Extraction: the last match of the first pattern that matches. Of a match, its first non-empty group, or all of it
    if the pattern has no groups."""
    patterns = [Pattern(pattern) for pattern in rule.find]

    def find(reply: str) -> str | None:
        for pattern in patterns:
            if filled := [text for text in pattern.texts(reply) if text]:
                return filled[-1]
        return None

    return find


def normalizer(rule: Answer) -> Callable[[str], str]:
    """The form of an answer that is compared: matches of `ignore` removed, lower case if `ignore_case`."""
    patterns = [Pattern(pattern) for pattern in rule.ignore]

    def normal(answer: str) -> str:
        for pattern in patterns:
            answer = pattern.remove(answer)
        return answer.lower() if rule.ignore_case else answer

    return normal


def scorer_of(normal: Callable[[str], str]) -> Callable[[Sequence[tuple[str, Doc]]], list[Verdict]]:
    """Correct if answer and gold answer have the same normal form."""

    def verdict(answer: str, doc: Doc) -> Verdict:
        try:
            right = normal(answer) == normal(doc.check["gold"])
        except SlowPattern as exc:
            return Verdict(None, "harness error", answer, exc.subject)
        return Verdict(right, "correct" if right else "wrong", answer)

    return lambda pairs: [verdict(answer, doc) for answer, doc in pairs]


def view(rule: Answer, find: Callable[[str], str | None], normal: Callable[[str], str], row: Row, where: str) -> View:
    """The fields of a row as text, its options as lettered lines, and its gold answer.

    A template that names a list, an object or a null is refused. So is a gold answer that is neither text nor a whole
    number, because 18.0 or True would be compared as text.
    """
    options = _options(rule, row, where)
    fields = _Fields({k: str(v) for k, v in row.items() if isinstance(v, str | int | float)}, where)
    if options:
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
        fields[rule.options] = "\n".join(lines)
    exact_fields = {k: str(v) for k, v in row.items() if isinstance(v, str | int) and not isinstance(v, bool)}
    gold = render(rule.gold, _Fields(exact_fields, f"{where}, for its gold answer,"))
    if options:
        gold = _letter(rule, gold, options, where)
    if not normal(gold).strip():
        raise BenchError(
            f"{where}: the gold answer is empty",
            expected="some text after removing the matches of `ignore`",
            actual=repr(gold[:200]),
            remedy="correct `ignore` in [answer], or the data",
        )
    reference = render(rule.reference, fields | {"gold": gold})
    found = find(reference)
    if found is None or normal(found) != normal(gold):
        raise BenchError(
            f"{where}: the reference reply does not pass",
            expected=f"the answer {gold[:200]!r}",
            actual=f"{found!r} found in {reference[:200]!r}",
            remedy="correct `find`, `ignore` or `reference` in [answer]",
        )
    return View(fields, {"gold": gold}, reference)


def _options(rule: Answer, row: Row, where: str) -> list[str]:
    if not rule.options:
        return []
    options = row.get(rule.options)
    texts = [str(option) for option in options] if isinstance(options, list) else []
    if not 2 <= len(texts) <= len(LETTERS) or len(set(texts)) < len(texts):
        raise BenchError(
            f"{where}: {rule.options} is not a list of options",
            expected=f"2 to {len(LETTERS)} different texts",
            actual=repr(options)[:200],
            remedy="correct `options` in [answer], or the data",
        )
    return texts


def _letter(rule: Answer, gold: str, options: Sequence[str], where: str) -> str:
    """The gold answer as a letter."""
    letters = list(LETTERS[: len(options)])
    names = {"place": [str(i) for i in range(len(options))], "letter": letters, "text": options}[rule.gold_is or "text"]
    if gold not in names:
        raise BenchError(
            f"{where}: the gold answer is not one of the options",
            expected=f"a {rule.gold_is} of {len(options)}",
            actual=gold[:200],
            remedy="correct `gold` or `gold_is` in [answer]",
        )
    return letters[list(names).index(gold)]


class _Fields(dict[str, str]):
    """A row's fields. A missing one raises `BenchError` with its name."""

    def __init__(self, fields: Mapping[str, str], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def __or__(self, other: Mapping[str, str]) -> "_Fields":  # type: ignore[override]
        return _Fields({**self, **other}, self.where)

    def __missing__(self, key: str) -> str:
        raise BenchError(
            f"{self.where} has no field {key} that is a text or a number",
            expected=", ".join(sorted(self)),
            actual=key,
            remedy="correct the template, or the data",
        )
