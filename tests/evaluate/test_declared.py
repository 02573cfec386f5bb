"""Benches from one file: what its answer table says is what is asked, found and right; what cannot be is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trimoe.cli.evaluate import eval_, rescore_
from trimoe.cli.main import main
from trimoe.errors import BenchError, MissingPrerequisite, TrimoeError
from trimoe.evaluate.bench import benches, find
from trimoe.evaluate.declared import open_bench
from trimoe.evaluate.log import RunLog
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


def test_options_become_letters(tmp_path: Path) -> None:
    text = BENCH.replace("teams}", "pick}").replace("""gold = "{team}"\n""", """gold = "{right}"\noptions = "pick"\n""")
    pick = ["left", "right", "B"]
    rows = [{"text": "q", "pick": pick, "right": right} for right in (1, "A", "B")]
    docs = open_bench(written(tmp_path, text, rows)).docs()
    assert "One of A. left\nB. right\nC. B." in docs[0].prompt
    assert [doc.check["answer"] for doc in docs] == ["b", "a", "c"], "the text of an option comes before its letter"
    for wrong in (3, "D", "other", ""):
        with pytest.raises(BenchError, match="none of the options"):
            open_bench(written(tmp_path, text, [*rows[:2], rows[0] | {"right": wrong}])).docs()
    with pytest.raises(BenchError, match="no list of options"):
        open_bench(written(tmp_path, text, [*rows[:2], rows[0] | {"pick": "one"}])).docs()


@given(st.text(max_size=60))
def test_any_reply_is_read(reply: str) -> None:
    found = find(["gsm8k-100"])[0].extract(reply)
    assert found is None or found in reply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[answer]", "[answers]"), "answers"),
        (("find = [", "find = ['(', "), "no regular expression"),
        (("find = [", "seek = ["), "answer"),
        (("rows = 3", "split = 'x'"), "how many `rows`"),
        (("local =", 'revision = "' + 40 * "0" + '"\nlocal ='), "pinned to a revision"),
        (("reference = ", "reference = 'Group: {gold}' #"), "does not pass"),
        (("{text}\n", "{body}\n"), "no field body"),
        (("rows = 3", "rows = 4"), "another number of rows"),
        (("name = \"tickets\"", "name = \"gsm8k-100\""), "already"),
        (("[variant.smoke]", "[variant.smoke.answer]\nignore = []\n[variant.smoke]"), "changes \\[answer\\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
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


def test_the_scorer_s_version_is_what_it_says(tmp_path: Path) -> None:
    one = open_bench(written(tmp_path))
    two = open_bench(written(tmp_path, BENCH.replace("ignore_case = true", "ignore_case = false")))
    assert one.scorer == open_bench(written(tmp_path)).scorer
    assert one.scorer != two.scorer
    assert one.spec(one.docs()) != two.spec(two.docs()), "the gold answer is compared in another way"


def test_a_run_of_it_is_resumed_scored_again_and_kept_apart(tmp_path: Path) -> None:
    """The bundled model on a bench of three rows: its log can be scored again with the file, not without."""
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
    from trimoe.evaluate.declared import declared_bench
    from trimoe.evaluate.spec import parse_spec

    with pytest.raises(MissingPrerequisite, match="not on the hub"):
        declared_bench(parse_spec(BENCH, "x")).docs()
