"""A bench that is data alone: one TOML file with an `[answer]` table says where the answer stands and what is right.

For what is stated in a reply: a number, a letter, a word. Code, checked constraints and rules that need the row take a
Python file beside the spec (`rows.spec_bench`). The scorer's version is a hash of the table, so replies are scored
again when the table changes. Invariants: a row's own reference reply passes, or the bench is refused when it is read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trimoe.bench.bench import Bench, exact
from trimoe.bench.rows import Row, View, render, spec_bench
from trimoe.bench.spec import Answer, BenchSpec, parse_spec, with_variants
from trimoe.errors import BenchError
from trimoe.io.canonical import canonical_json, sha256_bytes

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def open_bench(path: Path) -> Bench:
    """The bench of a user's own file. Local data are looked for below `--data`, else beside the file.

    `BenchError` for a file that is missing or says something impossible.
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
    """The bench of a spec with an `[answer]` table; `folder` is where its local data are unless told otherwise."""
    rule = spec.answer
    if rule is None:
        raise BenchError(
            f"bench {spec.name} does not say what an answer is",
            expected="a table [answer]",
            remedy="see docs/howto/add-a-bench.md",
        ) from None
    changed = [name for name in spec.variant if with_variants(spec, [name]).answer != rule]
    if changed:
        raise BenchError(
            f"bench {spec.name}: variant {changed[0]} changes [answer]",
            expected="the same answers in all variants",
            remedy="make it a bench of its own",
        )
    find = finder(rule)

    def shot(row: Row) -> dict[str, str]:
        made = view(rule, find, row, f"bench {spec.name}, an example")
        return made.fields | {"gold": made.check["gold"]}

    return spec_bench(
        spec,
        lambda rows, _: [view(rule, find, row, f"bench {spec.name}, row {place}") for place, row in enumerate(rows)],
        exact(lambda answer, check: normal(rule, answer) == normal(rule, check["gold"])),
        extract=find,
        scorer=int(sha256_bytes(canonical_json(rule.model_dump(mode="json")))[:7], 16),
        folder=folder,
        shot=shot,
    )


def finder(rule: Answer) -> Callable[[str], str | None]:
    """Extraction: the last match of the first pattern that has one; its first filled group, or all of it if the pattern
    has no groups."""
    patterns = [re.compile(pattern) for pattern in rule.find]

    def find(reply: str) -> str | None:
        for pattern in patterns:
            texts = [
                next(filter(None, m.groups()), "") if pattern.groups else m.group() for m in pattern.finditer(reply)
            ]
            if filled := [text.strip() for text in texts if text.strip()]:
                return filled[-1]
        return None

    return find


def normal(rule: Answer, answer: str) -> str:
    """What is compared: without what is ignored, in lower case if case is."""
    for pattern in rule.ignore:
        answer = re.sub(pattern, "", answer)
    return answer.lower() if rule.ignore_case else answer


def view(rule: Answer, find: Callable[[str], str | None], row: Row, where: str) -> View:
    """The fields of a row as text, its options as lettered lines, and its gold answer.

    Fields that are lists, objects or missing values (null) are no text: a template that names one is refused. A gold
    that is no text and no whole number is refused too: 18.0 or True would be compared letter by letter.
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
    if not normal(rule, gold).strip():
        raise BenchError(
            f"{where}: nothing is left of its gold answer",
            expected="some text",
            actual=repr(gold[:200]),
            remedy="correct `ignore` in [answer], or the data",
        )
    reference = render(rule.reference, fields | {"gold": gold})
    found = find(reference)
    if found is None or normal(rule, found) != normal(rule, gold):
        raise BenchError(
            f"{where}: its own reference reply does not pass",
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
            f"{where}: {rule.options} is no list of options",
            expected=f"2 to {len(LETTERS)} texts, each once",
            actual=repr(options)[:200],
        )
    return texts


def _letter(rule: Answer, gold: str, options: Sequence[str], where: str) -> str:
    """The gold answer as a letter."""
    letters = list(LETTERS[: len(options)])
    names = {"place": [str(i) for i in range(len(options))], "letter": letters, "text": options}[rule.gold_is or "text"]
    if gold not in names:
        raise BenchError(
            f"{where}: the gold answer is none of the options",
            actual=gold[:200],
            expected=f"a {rule.gold_is} of {len(options)}",
            remedy="correct `gold` or `gold_is` in [answer]",
        )
    return letters[list(names).index(gold)]


class _Fields(dict[str, str]):
    """A row's fields; one that is missing is an error that names it."""

    def __init__(self, fields: Mapping[str, str], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def __or__(self, other: Mapping[str, str]) -> "_Fields":  # type: ignore[override]
        return _Fields({**self, **other}, self.where)

    def __missing__(self, key: str) -> str:
        raise BenchError(
            f"{self.where} has no field {key} that is a text or a number",
            actual=key,
            expected=", ".join(sorted(self)),
            remedy="correct the template, or the data",
        )
