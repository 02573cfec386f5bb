"""A bench that is data alone: one TOML file with an `[answer]` table says where the answer stands and what is right.

For what is stated in a reply: a number, a letter, a word. Code, checked constraints and rules that need the row take a
Python file beside the spec (`rows.spec_bench`). The scorer's version is a hash of the table, so replies are scored
again when the table changes. Invariants: a row's own reference reply passes, or the bench is refused when it is read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trimoe.artifact import canonical_json, sha256_bytes
from trimoe.errors import BenchError
from trimoe.evaluate.bench import Bench, exact
from trimoe.evaluate.rows import Row, View, Views, build_bench, render
from trimoe.evaluate.spec import Answer, BenchSpec, parse_spec, with_variants

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def open_bench(path: Path) -> Bench:
    """The bench of a user's own file. Local data are looked for below `--data`, else beside the file.

    `BenchError` for a file that is missing or says something impossible.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BenchError(f"bench file {path} cannot be read", expected="a TOML file", actual=str(exc),
                         remedy="see docs/howto/add-a-bench.md") from exc  # fmt: skip
    return declared_bench(parse_spec(text, path.name), path.resolve().parent)


def declared_bench(spec: BenchSpec, folder: Path | None = None) -> Bench:
    """The bench of a spec with an `[answer]` table; `folder` is where its local data are unless told otherwise."""
    rule = spec.answer
    if rule is None:
        raise BenchError(f"bench {spec.name} does not say what an answer is", expected="a table [answer]",
                         remedy="see docs/howto/add-a-bench.md") from None  # fmt: skip
    changed = [name for name in spec.variant if with_variants(spec, [name]).answer != rule]
    if changed:
        raise BenchError(f"bench {spec.name}: variant {changed[0]} changes [answer]",
                         expected="the same answers in all variants", remedy="make it a bench of its own")  # fmt: skip
    find = finder(rule)
    return build_bench(
        spec,
        _views(rule, find),
        exact(lambda answer, check: normal(rule, answer) == check["answer"]),
        extract=find,
        scorer=int(sha256_bytes(canonical_json(rule.model_dump(mode="json")))[:7], 16),
        folder=None if any(part.hub for part in spec.dataset) else folder,
    )


def finder(rule: Answer) -> Callable[[str], str | None]:
    """Extraction: the last match of the first pattern that matches at all; its first filled group, or all of it."""
    patterns = [re.compile(pattern) for pattern in rule.find]

    def find(reply: str) -> str | None:
        for pattern in patterns:
            matches = list(pattern.finditer(reply))
            if matches:
                return next((group for group in matches[-1].groups() if group), matches[-1].group()).strip()
        return None

    return find


def normal(rule: Answer, answer: str) -> str:
    """What is compared: without what is ignored, in lower case if case is."""
    for pattern in rule.ignore:
        answer = re.sub(pattern, "", answer)
    return answer.lower() if rule.ignore_case else answer


def _views(rule: Answer, find: Callable[[str], str | None]) -> Views:
    def views(rows: Sequence[Row], spec: BenchSpec) -> list[View]:
        return [view(rule, find, row, f"bench {spec.name}, row {place}") for place, row in enumerate(rows)]

    return views


def view(rule: Answer, find: Callable[[str], str | None], row: Row, where: str) -> View:
    """The fields of a row as text, its options as lettered lines, and its gold answer as it is compared."""
    options = _options(rule, row, where)
    fields = _Fields({key: str(value) for key, value in row.items()}, where)
    if options:
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
        fields[rule.options] = "\n".join(lines)
    gold = render(rule.gold, fields)
    if options:
        gold = _letter(gold, options, where)
    reference = render(rule.reference, fields | {"gold": gold})
    gold = normal(rule, gold)
    found = find(reference)
    if found is None or normal(rule, found) != gold:
        raise BenchError(f"{where}: its own reference reply does not pass", expected=f"the answer {gold!r}",
                         actual=f"{found!r} found in {reference[:200]!r}",
                         remedy="correct `find`, `ignore` or `reference` in [answer]")  # fmt: skip
    return View(fields, {"answer": gold}, reference)


def _options(rule: Answer, row: Row, where: str) -> list[str]:
    if not rule.options:
        return []
    options = row.get(rule.options)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise BenchError(f"{where}: {rule.options} is no list of options", expected=f"2 to {len(LETTERS)} texts",
                         actual=repr(options)[:200])  # fmt: skip
    return [str(option) for option in options]


def _letter(gold: str, options: Sequence[str], where: str) -> str:
    """A place from 0, a letter, or the text of one option, as a letter."""
    letters = LETTERS[: len(options)]
    if options.count(gold) == 1:
        return letters[options.index(gold)]
    if len(gold) == 1 and gold in letters:
        return gold
    if gold.isdecimal() and int(gold) < len(options):
        return letters[int(gold)]
    raise BenchError(
        f"{where}: the gold answer is none of the options",
        expected=f"a place from 0 to {len(options) - 1}, a letter to {letters[-1]}, or an option's text",
        actual=gold[:200],
    )


class _Fields(dict[str, str]):
    """A row's fields; one that is missing is an error that names it."""

    def __init__(self, fields: Mapping[str, str], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def __or__(self, other: Mapping[str, str]) -> "_Fields":  # type: ignore[override]
        return _Fields({**self, **other}, self.where)

    def __missing__(self, key: str) -> str:
        raise BenchError(f"{self.where} has no field {key}", expected=", ".join(sorted(self)), actual=key,
                         remedy="correct the template, or the data")  # fmt: skip
