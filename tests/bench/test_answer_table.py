"""Benches from one TOML file: prompts, extraction and gold answers follow its tables; invalid ones are refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trimoe.bench.answer_table import open_bench
from trimoe.bench.catalog import benches, find
from trimoe.cli.eval import eval_
from trimoe.cli.main import main
from trimoe.cli.rescore import rescore_
from trimoe.errors import BenchError, MissingPrerequisite, TrimoeError
from trimoe.evaluate.log.run_log import RunLog
from trimoe.model.tiny import path as bundled

BENCH = """
name = "tickets"
version = 1
about = "Which team a support ticket goes to."
licence = "ours"
metric = "exact_match"
[[dataset]]
local = "tickets.jsonl"
rows = 3
[prompt]
user = '''{text}
Which team? One of {teams}. End with "Team: NAME".'''
[answer]
gold = "{team}"
find = ['(?i)team: *"?(\\w+)', '\\b(billing|shipping)\\b']
ignore = ['s$']
ignore_case = true
reference = "Team: {gold}"
[generation]
max_new_tokens = 64
thinking = "off"
[serving.llamacpp]
reasoning = "off"
[variant_about]
smoke = "The first two rows."
[variant.smoke]
rows = { first = 2 }
"""
ROWS = [
    {"text": "I paid {twice}", "teams": "billing, shipping", "team": "billing"},
    {"text": "Where is it?", "teams": "billing, shipping", "team": "shipping"},
    {"text": "Broken", "teams": "returns, shipping", "team": "Returns"},
]


def written(folder: Path, text: str = BENCH, rows: list[dict[str, object]] | None = None) -> Path:
    (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows or ROWS)))
    (folder / "tickets.toml").write_text(text)
    return folder / "tickets.toml"


def test_a_bench_of_one_file(tmp_path: Path) -> None:
    bench = open_bench(written(tmp_path))
    docs = bench.docs()
    assert [doc.doc_id for doc in docs] == ["0", "1", "2"]
    assert docs[0].prompt == 'I paid {twice}\nWhich team? One of billing, shipping. End with "Team: NAME".'
    assert docs[2].reference == "Team: Returns"
    replies = ["So. TEAM: Billing", "to shipping, I say: to shipping", "Team: shipping. No! Team: return", "", "who?"]
    verdicts = bench.judge([(text, "stop", docs[min(i, 2)]) for i, text in enumerate(replies)])
    assert [v.correct for v in verdicts] == [True, True, True, False, False]
    assert [v.cause for v in verdicts[3:]] == ["empty", "extraction failed"]
    assert bench.variant(["smoke"]).docs() == docs[:2]
    other = tmp_path / "data"
    other.mkdir()
    (other / "tickets.jsonl").write_text("".join(json.dumps(row | {"text": "x"}) + "\n" for row in ROWS))
    assert bench.docs(other)[0].prompt.startswith("x\n")


def test_the_how_to_shows_this_bench() -> None:
    assert f"```toml{BENCH}```" in (Path(__file__).parents[2] / "docs" / "howto" / "add-a-bench.md").read_text()


@pytest.mark.parametrize(
    ("kind", "options", "gold", "letter"),
    [
        ("text", ["left", "right", "A"], "A", "C"),
        ("letter", ["B", "A", "AB"], "A", "A"),
        ("place", ["8", "2", "24"], 2, "C"),
        ("text", ["8", "2", "24"], 2, "B"),
        ("place", ["a", "b"], 2, None),
        ("letter", ["a", "b"], "C", None),
        ("text", ["a", "b"], "c", None),
        ("text", ["1", "1", "3"], "1", None),
        ("text", "ab", "a", None),
        ("text", [], "a", None),
    ],
)
def test_options_become_letters(tmp_path: Path, kind: str, options: object, gold: object, letter: str | None) -> None:
    """`gold_is` says how the gold answer names its option; it is never guessed from the options."""
    text = BENCH.replace("teams}", "pick}").replace(
        """gold = "{team}"\n""", f"""gold = "{{right}}"\noptions = "pick"\ngold_is = "{kind}"\n"""
    )
    bench = open_bench(written(tmp_path, text, [{"text": "q", "pick": options, "right": gold}] * 3))
    if letter is None:
        with pytest.raises(BenchError, match=r"not one of the options|not a list of options"):
            bench.docs()
        return
    doc = bench.docs()[0]
    assert isinstance(options, list)
    assert f"One of A. {options[0]}\nB. {options[1]}" in doc.prompt
    assert doc.check == {"gold": letter}
    assert doc.reference == f"Team: {letter}"


@pytest.mark.parametrize("team", [None, 18.0, True, ["billing"], {"a": 1}, "s", ""])
def test_a_gold_answer_is_a_text_or_a_whole_number(tmp_path: Path, team: object) -> None:
    """Null would become "None", 18.0 would make 18 wrong, and a gold that is ignored entirely would accept anything."""
    file = written(tmp_path, rows=[ROWS[0], ROWS[1], {**ROWS[2], "team": team}])
    with pytest.raises(BenchError, match=r"row 2.* (has no field team|gold answer is empty|does not pass)"):
        open_bench(file).docs()
    ok = written(tmp_path, rows=[ROWS[0], ROWS[1], {**ROWS[2], "team": 18}])
    assert open_bench(ok).docs()[2].check == {"gold": "18"}


def test_examples_are_shown_as_questions_are(tmp_path: Path) -> None:
    shots = """assistant = "It is {gold}."
[few_shot]
k = 1
rule = "random"
[few_shot.dataset]
local = "train.jsonl"
rows = 2
[answer]
options = "pick"
gold_is = "place"
"""
    text = BENCH.replace("teams}", "pick}").replace("[answer]\n", shots)
    rows = [{"text": f"q{i}", "pick": ["yes", "no"], "team": i % 2} for i in range(3)]
    file = written(tmp_path, text, rows)
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({**r, "text": "t" + str(r["text"])}) + "\n" for r in rows[:2])
    )
    history = open_bench(file).docs()[0].history
    assert "One of A. yes\nB. no." in history[0][1]
    assert history[1][1] in ("It is A.", "It is B.")
    (tmp_path / "tickets.toml").write_text(text.replace("train.jsonl", "tickets.jsonl").replace("rows = 2", "rows = 3"))
    with pytest.raises(BenchError, match="from the rows that are asked"):
        open_bench(tmp_path / "tickets.toml")
    (tmp_path / "tickets.toml").write_text(text.replace("k = 1", "k = 3"))
    with pytest.raises(BenchError, match="too few rows"):
        open_bench(tmp_path / "tickets.toml").docs()


def test_a_pattern_whose_group_is_empty_finds_nothing(tmp_path: Path) -> None:
    bench = open_bench(written(tmp_path, BENCH.replace('team: *"?(\\w+)', 'team: *"?(\\w*)')))
    assert bench.extract("Team: ") is None
    assert bench.extract("Team: . Team: b. Team: ") == "b"


def test_any_reply_is_read() -> None:
    """An answer is a part of the reply; random text alone would seldom hold one."""
    pieces = st.sampled_from(["#### ", "12", "-3.5", "1,000", "$", " is ", ".", "\n", "é", "The answer"])
    extract, seen = find(["gsm8k-100"])[0].extract, {"found": 0, "none": 0}

    @given(st.text(max_size=60) | st.lists(pieces, max_size=8).map("".join))
    def check(reply: str) -> None:
        found = extract(reply)
        assert found is None or found in reply
        seen["none" if found is None else "found"] += 1

    check()
    assert min(seen.values()) >= 10, seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[answer]", "[answers]"), "answers"),
        (("find = [", "find = ['(', "), "not a regular expression"),
        (("find = [", "seek = ["), "answer"),
        (("rows = 3", "split = 'x'"), "number of `rows`"),
        (("local =", 'revision = "' + 40 * "0" + '"\nlocal ='), "needs a `revision`"),
        (("reference = ", "reference = 'Group: {gold}' #"), "does not pass"),
        (("{text}\n", "{body}\n"), "no field body"),
        (("rows = 3", "rows = 4"), "another number of rows"),
        (('name = "tickets"', 'name = "gsm8k-100"'), "already"),
        (("{text}\n", "{text\n"), "field name"),
        (("{text}\n", "{}\n"), "not a plain field name"),
        (("{text}\n", "{text.upper}\n"), "not a plain field name"),
        (("{text}\n", "{text:d}\n"), "not a plain field name"),
        (("rows = 3", "rows = 3\nwhere = { size = [1, 2] }"), "cannot be chosen"),
        (("rows = 3", "rows = 3\nwhere = { text = [1, 2] }"), "cannot be chosen"),
        (("licence =", "id_field = 'number'\nlicence ="), "has no field number"),
        (("licence =", "id_field = 'teams'\nlicence ="), "two rows have the id"),
        (('local = "tickets', 'local = "/tickets'), "below the data folder"),
        (('local = "tickets', 'local = "../tickets'), "below the data folder"),
        (("[variant.smoke]\n", "[variant.smoke]\nwithout = 3\n"), "list of keys"),
        (("smoke]\nrows", "'a:b']\nrows"), "variant_about"),
        (("ignore_case = true", "ignore_case = true\noptions = 'teams'"), "need each other"),
        (("[variant.smoke]", "[variant.smoke.answer]\nignore = []\n[variant.smoke]"), "changes \\[answer\\]"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in BENCH
    file = written(tmp_path, BENCH.replace(*change, 1))
    with pytest.raises(BenchError, match=message):
        find([str(file)])[0].docs()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        find([str(tmp_path / "none.toml")])
    file = written(tmp_path)
    (tmp_path / "tickets.jsonl").unlink()
    with pytest.raises(BenchError, match=r"tickets\.jsonl not found"):
        find([str(file)])[0].docs()
    assert main(["eval", "x", "--bench", str(tmp_path / "none.toml"), "--dry-run"]) == 3
    text = BENCH.replace("[answer]\n", "[other]\n")
    with pytest.raises(TrimoeError):
        open_bench(written(tmp_path, text))


def test_rows_that_are_not_objects(tmp_path: Path) -> None:
    file = written(tmp_path)
    for text in ("[1, 2]\n" * 3, '"x"\n' * 3, "3\n" * 3):
        (tmp_path / "tickets.jsonl").write_text(text)
        with pytest.raises(BenchError, match="not readable"):
            find([str(file)])[0].docs()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, two = str(written(tmp_path)), str(written(tmp_path / "other"))
    with pytest.raises(BenchError, match="another file also has a bench named tickets"):
        find([one, two])
    with pytest.raises(BenchError, match="another file also has a bench named tickets"):
        find([one, f"{two}:smoke"])
    assert [bench.name for bench in find([one, one, f"{one}:smoke"])] == ["tickets", "tickets:smoke"]


def test_the_latest_verdict_counts(tmp_path: Path) -> None:
    """Two rules whose hashes have no order, back and forth: eval and rescore always apply the file's rule."""
    log, rows = tmp_path / "runs.db", [{**row, "team": "x"} for row in ROWS]
    rule = BENCH[BENCH.index("find = ") : BENCH.index("[generation]")]
    rules = {
        "first": "find = ['(?s)^(.)']\nignore_case = true\n",
        "last": "find = ['(?s)(.)$']\nignore_case = true\n",
    }
    command = [str(bundled()), "--bench", str(tmp_path / "tickets.toml"), "--log", str(log), "--ignore-guard", "zero"]
    seen: dict[str, list[str | None]] = {}
    for text, how in [("first", eval_), ("last", eval_), ("first", eval_), ("last", rescore_), ("first", rescore_)]:
        file = written(tmp_path, BENCH.replace(rule, rules[text]), rows)
        # the second eval covers one row only, yet all verdicts of the run are by one rule
        asked = [*command, "--limit", "1" if seen else "3"] if how is eval_ else [str(log), "--bench", str(file)]
        assert CliRunner().invoke(how, asked).exit_code == 0
        with RunLog(log) as opened:
            (run,) = opened.runs()
            found = [s.verdict.extracted for s in opened.samples(run)]
            assert opened.verify() == []
            assert len(opened.scored_by(run, find([str(file)])[0].scorer)) == 3
        assert seen.setdefault(text, found) == found
    assert seen["first"] != seen["last"]


def test_verdicts_of_other_rows_are_refused(tmp_path: Path) -> None:
    file, log = written(tmp_path), tmp_path / "runs.db"
    command = [str(bundled()), "--bench", f"{file}:smoke", "--log", str(log), "--ignore-guard", "zero"]
    assert CliRunner().invoke(eval_, command).exit_code == 0
    assert CliRunner().invoke(rescore_, [str(log), "--bench", f"{file}:smoke"]).exit_code == 0
    written(tmp_path, rows=[ROWS[1], ROWS[0], ROWS[2]])
    assert main(["rescore", str(log), "--bench", str(file)]) == 3
    with RunLog(log) as opened:
        assert len([kind for kind, _ in opened.events(opened.runs()[0]) if kind == "rescoring"]) == 1


def test_the_scorer_s_version_is_what_it_says(tmp_path: Path) -> None:
    one = open_bench(written(tmp_path))
    two = open_bench(written(tmp_path, BENCH.replace("ignore_case = true", "ignore_case = false")))
    assert one.scorer == open_bench(written(tmp_path)).scorer
    assert one.scorer != two.scorer
    assert one.spec(one.docs()) == two.spec(two.docs()), "the questions and their answers are the same"


def test_a_run_of_it_is_resumed_scored_again_and_kept_apart(tmp_path: Path) -> None:
    """The bundled model on a bench of three rows: its log can be rescored only with the file."""
    file, log = written(tmp_path), tmp_path / "runs.db"
    command = [str(bundled()), "--bench", str(file), "--log", str(log), "--json", "--ignore-guard", "zero"]
    for _ in range(2):
        done = CliRunner().invoke(eval_, command)
        assert done.exit_code == 0, done.output
        (run,) = json.loads(done.stdout)["runs"]
        assert (run["bench"], run["n"]) == ("tickets", 3)
    again = CliRunner().invoke(rescore_, [str(log), "--bench", str(file), "--json"])
    assert json.loads(again.stdout)["runs"][0]["n"] == 3
    assert main(["rescore", str(log)]) == 2
    file.write_text(BENCH.replace("reference =", "reference = 'team: {gold}' #"))
    with RunLog(log) as opened:
        before = [s.sample.reply for s in opened.samples(opened.runs()[0])]
    assert CliRunner().invoke(eval_, command).exit_code == 0
    with RunLog(log) as opened:
        assert len(opened.runs()) == 1, "the same questions and answers are the same bench"
        assert [s.sample.reply for s in opened.samples(opened.runs()[0])] == before


def test_shipped_benches_of_one_file_have_no_python_beside_them() -> None:
    alone = [bench for bench in benches().values() if bench.protocol is not None and bench.protocol.answer is not None]
    assert [bench.name for bench in alone] == ["gsm8k-100"]


def test_without_data_and_hub_it_says_so(tmp_path: Path) -> None:
    from trimoe.bench.answer_table import declared_bench
    from trimoe.bench.spec_file import parse_spec

    with pytest.raises(MissingPrerequisite, match="not on the hub"):
        declared_bench(parse_spec(BENCH, "x")).docs()


SLOW = r"(?:\s*\n)+Team: (\w+)"  # quadratic or worse in line breaks


@pytest.mark.parametrize(
    ("find", "ignore"), [(f"'{SLOW}', '(?i)team: (\\w+)'", "'s$'"), ("'(?is)team: (.+)'", f"'s$', '{SLOW}'")]
)
def test_a_slow_pattern_leaves_its_sample_unscored(
    find: str, ignore: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pattern is at fault, not the model; the other samples of the batch are scored."""
    given = {"find": f"find = [{find}]", "ignore": f"ignore = [{ignore}]"}
    text = "\n".join(given.get(line.partition(" =")[0], line) for line in BENCH.split("\n"))
    bench = open_bench(written(tmp_path, text))
    doc = bench.docs()[0]
    monkeypatch.setattr("trimoe.bench.patterns.SECONDS", 0.05)
    replies = ["Team: billing", "Team: a" + "\n" * 20_000 + "b", "who?"]
    good, slow, last = bench.judge([(reply, "stop", doc) for reply in replies])
    assert (good.correct, last.cause) == (True, "extraction failed")
    assert (slow.correct, slow.cause) == (None, "harness error")
    assert "took too long" in slow.detail
