"""The leak check and the guard against MultiPL-E, on real benches and against a naive oracle."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.calibrate.text import multipl_e
from trimoe.calibrate.text.leaks import BenchTexts, SetText, check, own_limit, read_benches
from trimoe.calibrate.text.sources.prompts import builtin_prompts
from trimoe.calibrate.text.word_ngrams import grams, words
from trimoe.errors import BadInput, Refused


def bench(*texts: str) -> BenchTexts:
    return BenchTexts("b", tuple((str(i), (t,)) for i, t in enumerate(texts)))


def report(texts: list[str], of: BenchTexts, declared: set[int] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    documents = [SetText("a", t, i in declared) for i, t in enumerate(texts)]
    found: dict[str, Any] = check(documents, [of])["benches"]["b"]
    return found


SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def test_words_are_letters_and_digits_in_any_case() -> None:
    assert words("Has_Close-Elements(x1, 2.5) STRASSE straße ΑΒ") == [
        "has",
        "close",
        "elements",
        "x1",
        "2",
        "5",
        "strasse",
        "strasse",
        "αβ",
    ]


def test_thirteen_words_in_a_row() -> None:
    of = bench(SENTENCE)
    twelve = " ".join(SENTENCE.split()[:12])
    assert report([f"x {twelve} y"], of)["overlapping"] == []
    thirteen = " ".join(SENTENCE.split()[1:14])
    assert report([f"x {thirteen.upper().replace(' ', ', ')} y"], of)["overlapping"] == ["0"]
    assert report([thirteen.replace("seven", "sieben")], of)["overlapping"] == []


def test_short_items_as_a_whole_and_very_short_ones_not() -> None:
    of = bench("a b c d e f g", "a b c d e f g h", SENTENCE)
    found = report(["x a b c d e f g h y"], of)
    assert found["overlapping"] == ["1"]
    assert (found["items"], found["unchecked"]) == (3, 1)


def test_boilerplate_of_a_bench_is_told_apart() -> None:
    preamble = "answer the following question with one of the letters given below and explain it briefly"
    own = [f"{preamble} {' '.join(f'w{i}x{j}' for j in range(13))}" for i in range(20)]
    found = report([preamble], bench(*own))
    assert (found["overlapping"], found["undeclared"]) == ([], [])
    assert found["boilerplate"] == [str(i) for i in range(20)]
    found = report([preamble, own[7], "so: " + own[9][-80:]], bench(*own))
    assert found["overlapping"] == ["7", "9"]
    assert found["boilerplate"] == [str(i) for i in range(20) if i not in (7, 9)]


def test_words_of_few_items_of_a_large_bench_are_still_their_own() -> None:
    """A passage that 1 % of the items ask about is content, whatever 1 % and more of them share is a pattern."""
    passage = " ".join(f"p{i}" for i in range(20))
    filler = [" ".join(f"w{i}x{j}" for j in range(13)) for i in range(500)]
    for size, sharing, counted in ((500, 4, 4), (500, 5, 0), (100, 1, 1), (100, 2, 0)):
        items = [f"{passage} {f}" for f in filler[:sharing]] + filler[sharing:size]
        found = report([passage], bench(*items))
        assert (len(found["overlapping"]), len(found["boilerplate"])) == (counted, sharing - counted)


def test_a_question_made_of_patterns_alone_is_found_as_a_whole() -> None:
    head, tail = "write a function that returns the list of all", "numbers in the given list in their order"
    items = [f"{head} {a} {tail}" for a in ("odd", "even", "prime", "odd", "even", "prime")]
    found = report([items[0] + " and then some"], bench(*items))
    assert found["overlapping"] == ["0", "3"]
    assert found["boilerplate"] == []
    found = report([f"{head} odd numbers in the given list"], bench(*items))
    assert (found["overlapping"], found["boilerplate"]) == ([], ["0", "3"])


def test_declared_items_are_told_apart() -> None:
    of = bench(SENTENCE, "other " + SENTENCE[::-1])
    found = report([SENTENCE, "x"], of, declared={0})
    assert (found["overlapping"], found["undeclared"]) == (["0"], [])
    found = report([SENTENCE, "again " + SENTENCE], of, declared={0})
    assert (found["overlapping"], found["undeclared"]) == (["0"], ["0"])
    assert found["documents"] == {"a": 2}


def naive(texts: list[str], items: list[str]) -> tuple[list[str], list[str]]:
    """The definition, with sets of tuples."""

    def tuples(text: str, n: int) -> set[tuple[str, ...]]:
        w = words(text)
        return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}

    eights = [tuples(t, 8) for t in items]
    overlapping, boilerplate = [], []
    for i, item in enumerate(items):
        n = min(13, len(words(item)))
        shared = (tuples(item, n) if n >= 8 else set()) & set().union(*(tuples(t, n) for t in texts))
        mine = any(
            sum(g[k : k + 8] in e for e in eights) <= own_limit(len(items)) for g in shared for k in range(n - 7)
        )
        whole = n >= 8 and any(tuples(item, len(words(item))) <= tuples(t, len(words(item))) for t in texts)
        if mine or whole:
            overlapping.append(str(i))
        elif shared:
            boilerplate.append(str(i))
    return overlapping, boilerplate


@st.composite
def sets_and_items(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Texts, and bench items of which most are stretches of the texts: random words alone never overlap."""
    word = st.sampled_from("abcdefgh")
    texts = draw(st.lists(st.lists(word, min_size=12, max_size=30), min_size=1, max_size=4))
    common = draw(st.sampled_from(texts))[:16]  # in several items it is boilerplate

    def item() -> list[str]:
        text, at = draw(st.sampled_from(texts)), draw(st.integers(0, 8))
        stretch = draw(st.sampled_from([text[at : at + 16], text[at:], common, common[1:], []]))
        return draw(st.lists(word, max_size=3)) + stretch + draw(st.lists(word, max_size=3))

    items = [item() for _ in range(draw(st.integers(1, 15)))]
    return [" ".join(text) for text in texts], [" ".join(words) for words in items]


def test_equals_the_definition() -> None:
    outcomes = Counter[str]()

    @given(sets_and_items())
    @settings(max_examples=150, deadline=None, database=None)
    def each(drawn: tuple[list[str], list[str]]) -> None:
        texts, items = drawn
        found = report(texts, bench(*items))
        assert (found["overlapping"], found["boilerplate"]) == naive(texts, items)
        outcomes.update({name: len(found[name]) for name in ("overlapping", "boilerplate")})

    each()
    assert min(outcomes["overlapping"], outcomes["boilerplate"]) > 20, outcomes


def test_hashes_do_not_depend_on_the_process() -> None:
    assert grams(["a", "b", "c"], 2).tolist() == [17600707320206839748, 18286342832848802827]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes())
    yield from json.loads(data) if data[:1] == b"[" else (json.loads(x) for x in data.split(b"\n") if x)


class TestRealBenches:
    def test_a_set_of_other_texts_has_no_overlap_with_any_bench(self, shared: Path) -> None:
        folder = shared / "benchmarks"
        texts = [r["text"] for r in rows(folder / "calibration" / "math.jsonl.gz")][:300]
        texts += [p for several in builtin_prompts().values() for p in several]
        documents = [SetText("a", t, False) for t in texts]
        names = ("aime24", "arc_challenge", "humaneval", "humaneval_plus", "ifeval", "math500", "mbpp", "multipl_e")
        benches = [b for name in names for b in read_benches(folder / name)]
        benches += read_benches(folder / "gsm8k" / "test.jsonl.gz")
        found = check(documents, benches)["benches"]
        assert len(found) >= 12
        assert {name: r["overlapping"] for name, r in found.items() if r["overlapping"]} == {}
        assert found["HumanEval"]["items"] == 164
        assert found["HumanEval"]["unchecked"] == 0

    def test_every_item_of_a_bench_finds_itself(self, shared: Path) -> None:
        path = shared / "benchmarks" / "humaneval" / "HumanEval.jsonl.gz"
        texts = [SetText("a", r["prompt"], False) for r in rows(path)]
        found = check(texts, read_benches(path))["benches"]["HumanEval"]
        assert found["overlapping"] == [f"HumanEval/{i}" for i in range(164)]

    def test_train_rows_are_found_by_their_number(self, shared: Path) -> None:
        """The calibration texts are rows of the train split that say which; 'Question:' and 'Answer:' were put in."""
        folder, first = shared / "benchmarks", 900
        numbers = {r["id"].rpartition("-")[2]: r["text"] for r in rows(folder / "calibration" / "math.jsonl.gz")}
        chosen = {n: t for n, t in numbers.items() if int(n) < first}
        whole = read_benches(folder / "gsm8k" / "train.jsonl.gz")[0]
        train = BenchTexts("train", whole.items[:first])
        found = check([SetText("a", t, False) for t in chosen.values()], [train])["benches"]["train"]
        assert len(chosen) > 100
        # a train item of fewer than eight words, or one that shares a sentence with another, may differ
        assert len(set(found["overlapping"]) ^ set(chosen)) <= 0.03 * len(chosen)


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"{", b'{"a": 1}\n{', b"\x1f\x8b\x08\x00", gzip.compress(b"x", mtime=0)[:-5]]
)
def test_benches_that_cannot_be_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(BadInput, match="cannot read bench"):
        read_benches(tmp_path / "x.jsonl")


def test_folders_of_benches(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no bench in"):
        read_benches(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_text('{"id": "q1", "question": {"stem": "s"}, "test": "t"}\n')
    (tmp_path / "a.json").write_text('["id-1", {"other": ["x", {"y": "z"}]}]')
    assert read_benches(tmp_path) == [
        BenchTexts("a", (("0", ("id-1",)), ("1", ("x", "z")))),
        BenchTexts("sub/b", (("q1", ("s",)),)),
    ]


class TestMultiplE:
    @staticmethod
    def folder(shared: Path) -> Path:
        return shared / "benchmarks"

    def test_the_shipped_sketch_is_made_from_the_data_set(self, shared: Path) -> None:
        folder = self.folder(shared)
        data = [
            r
            for language in ("java", "js", "rs")
            for r in rows(folder / "multipl_e" / f"humaneval-{language}-reworded.json.gz")
        ]
        elsewhere = [
            r["prompt"] + "\n" + r["canonical_solution"]
            for name in ("humaneval/HumanEval", "humaneval_plus/HumanEvalPlus")
            for r in rows(folder / f"{name}.jsonl.gz")
        ]
        shipped = Path(multipl_e.__file__).with_suffix(".tsv").read_text()
        assert multipl_e.dump(multipl_e.sketch(data, elsewhere)) == shipped

    def test_every_prompt_is_refused_also_inside_a_chat(self, shared: Path) -> None:
        data = [r for path in sorted((self.folder(shared) / "multipl_e").glob("*.gz")) for r in rows(path)]
        assert len(data) == 475
        for row in data:
            for text in (row["prompt"], f"Complete this:\n```\n{row['prompt']}\n```\nSure, here it is ..."):
                with pytest.raises(Refused):
                    multipl_e.refuse_text(text, "a document")

    def test_nothing_else_is_refused(self, shared: Path) -> None:
        """Least of all the Python problems it was translated from, which a set may hold on purpose."""
        folder, count = self.folder(shared), 0
        for name in (
            "humaneval/HumanEval",
            "humaneval_plus/HumanEvalPlus",
            "mbpp/mbpp",
            "math500/test",
            "calibration/code",
        ):
            for row in rows(folder / f"{name}.jsonl.gz"):
                text = "\n".join(
                    str(row[k])
                    for k in ("prompt", "text", "problem", "canonical_solution", "code", "solution")
                    if k in row
                )
                multipl_e.refuse_text(text, name)
                count += 1
        assert count > 1800

    @pytest.mark.parametrize(
        ("name", "is_it"),
        [
            ("nuprl/MultiPL-E", True),
            ("multipl-e-100", True),
            ("multipl_e", True),
            ("humaneval-rs", True),
            ("openai/humaneval-java", True),
            ("mbpp-js", True),
            ("multiple-rs", True),
            ("MultiPL-E/humaneval-cpp", True),
            ("humaneval", False),
            ("humaneval-plus", False),
            ("humaneval-100", False),
            ("multiple-choice", False),
            ("mbpp", False),
            ("mbpp-sanitized", False),
            ("humaneval-chat", False),
            ("rs-humaneval", False),
        ],
    )
    def test_names(self, name: str, is_it: bool) -> None:
        if is_it:
            with pytest.raises(Refused):
                multipl_e.refuse_name(name, "it")
        else:
            multipl_e.refuse_name(name, "it")

    def test_rows_by_layout(self, shared: Path) -> None:
        for path in sorted((self.folder(shared) / "multipl_e").glob("*.gz")):
            for row in rows(path):
                with pytest.raises(Refused):
                    multipl_e.refuse_row(row, "a row")
        multipl_e.refuse_row({"name": "HumanEval_3_x"}, "no language, no stop tokens")
        multipl_e.refuse_row({"name": "base", "language": "en"}, "another row")


def test_the_note_on_the_demo_calibration_set() -> None:
    """No held-out prompt is a prompt of the set; the sentence on the page has the leak check's own numbers."""
    from trimoe.demo import calibration_note
    from trimoe.model.tiny import tasks

    train = tasks.generate("code", "train", 48) + tasks.generate("code", "train", 96, seed=1)
    held = tasks.generate("code", "heldout", 200, seed=7)
    assert not {item.prompt for item in held} & {item.prompt for item in train}
    texts = [SetText("code", f"{item.prompt}\n{item.answer}", False) for item in train]
    of = BenchTexts("code", tuple((item.item_id, (item.prompt, item.answer)) for item in held))
    report = check(texts, [of])
    row = report["benches"]["code"]
    assert 0 < len(row["overlapping"]) < len(row["boilerplate"])  # made-up tasks: most share patterns alone
    said = calibration_note(report)
    assert f"{len(row['overlapping'])} of 200 held-out items share 13 words of their own" in said
    assert f"{len(row['boilerplate'])} others" in said
    assert "Leak check" not in calibration_note(None)
    # and an item that really is in the set is counted
    leaked = check([*texts, SetText("code", f"Somebody wrote: {held[5].prompt} Nice.", False)], [of])
    assert held[5].item_id in leaked["benches"]["code"]["undeclared"]
