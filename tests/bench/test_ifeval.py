"""IFEval: our loop over Google's checkers equals lm-eval's and is deterministic."""

import random
from pathlib import Path
from typing import Any

import pytest

from trimoe.bench import punkt
from trimoe.bench.bench import Doc
from trimoe.bench.benches import ifeval_100
from trimoe.bench.benches.ifeval_100 import obedience
from trimoe.bench.catalog import find
from trimoe.bench.row_sources import read_file

REPLIES = (
    "*One* sentence here. Another one, with a comma!\n\n***\n\nP.S. The end",
    "<<A Title>>\n\nSECTION 1\n* point\n* point\n\nall lower case words only",
    '"QUOTED CAPITALS. MORE OF THEM."',
    '```json\n{"a": [1]}\n```',
    "Ceci est une phrase en français. En voici une autre.",
)


def check(instruction: str, **arguments: Any) -> dict[str, Any]:
    return {"key": 1, "prompt": "p", "instructions": [instruction], "kwargs": [arguments]}


@pytest.mark.slow
def test_every_row_is_judged_as_lm_eval_does(shared: Path) -> None:
    """Every third of the 541 rows, each with one reply, without the two rows with a random letter."""
    from langdetect import DetectorFactory
    from lm_eval.tasks.ifeval import utils

    for place, row in enumerate(read_file(shared / "benchmarks" / "ifeval" / "input_data.jsonl.gz")):
        if place % 3:
            continue
        assert row["key"] not in (1122, 1129)
        reply = REPLIES[place // 3 % len(REPLIES)]
        DetectorFactory.seed = 0
        theirs = utils.process_results({k: row[k] for k in ("key", "prompt", "instruction_id_list", "kwargs")}, [reply])
        ours = obedience(reply, ifeval_100.view(row).check)
        assert list(ours.strict) == theirs["inst_level_strict_acc"], row["key"]
        assert list(ours.loose) == theirs["inst_level_loose_acc"], row["key"]


@pytest.mark.parametrize(("reply", "followed"), [("# a # b # c #", True), ("# a # b # c", False), ("e" * 40, False)])
def test_a_character_that_is_not_a_letter_is_counted(reply: str, followed: bool) -> None:
    asked = check("keywords:letter_frequency", letter="#", let_frequency=4, let_relation="at least")
    for seed in range(20):  # lm-eval's checker draws a letter here
        random.seed(seed)
        assert obedience(reply, asked).strict == (followed,)


def test_verdicts_do_not_depend_on_what_ran_before() -> None:
    asked = check("language:response_language", language="fr")
    mixed = "oui no ja si da " * 3
    found = set()
    for seed in range(10):
        random.seed(seed)
        before = random.getstate()
        found.add(obedience(mixed, asked))
        assert random.getstate() == before
    assert len(found) == 1


def test_the_detail_says_what_was_not_followed() -> None:
    bench = find(["ifeval-100"])[0]
    asked = {
        "key": 1,
        "prompt": "p",
        "instructions": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{}, {"end_phrase": "The end"}],
    }
    doc = Doc("0", "p", "", asked)
    good, bad, trimmed = bench.judge(
        [("All good. The end", "", doc), ("a, b", "", doc), ("*All good. The end*\n\nok", "", doc)]
    )
    assert (good.correct, good.cause) == (True, "correct")
    assert bad.detail == "not followed: punctuation:no_comma, startend:end_checker"
    assert trimmed.detail == "not followed: startend:end_checker (followed once the reply is trimmed)"


def test_ends_of_a_reply_are_not_touched() -> None:
    bench = find(["ifeval-100"])[0]
    assert bench.extract("  a \n") == "  a \n"


def test_sentence_data_comes_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk
    from nltk.tokenize.punkt import PunktTokenizer

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("TRIMOE_CACHE", str(tmp_path))
    assert punkt.provide()
    assert nltk.data.path == [str(tmp_path / "nltk_data")]
    tokenizer = PunktTokenizer("english")
    assert tokenizer.tokenize("Dr. Smith went to Washington, D.C. on Monday. He slept.") == [
        "Dr. Smith went to Washington, D.C. on Monday.",
        "He slept.",
    ]
    sizes = [len(getattr(tokenizer._params, name)) for name in ("abbrev_types", "collocations", "sent_starters")]
    assert (sizes, len(tokenizer._params.ortho_context)) == ([156, 37, 39], 20366)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.t*")}
    assert punkt.provide()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.t*")}


def test_rows_that_need_missing_data_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval_100, "has_punkt", lambda: False)
    bench = find(["ifeval-100"])[0]
    counted = check("length_constraints:number_sentences", num_sentences=2, relation="at least")
    plain = check("punctuation:no_comma")
    first, second = bench.judge([("A. B.", "", Doc("0", "", "", counted)), ("A. B.", "", Doc("1", "", "", plain))])
    assert (first.correct, first.cause, second.correct) == (None, "harness error", True)
    assert "trimoe[eval]" in first.detail
