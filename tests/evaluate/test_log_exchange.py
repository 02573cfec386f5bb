"""Old logs are migrated, exports can be imported unchanged, and logs are merged completely or refused."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_faults import BENCH, OFF, QUICK, READ, docs, run, server

from helpers.evaluation import rescored, run_endpoint
from helpers.fault_server import FaultServer
from trimoe.bench.bench import Verdict
from trimoe.cli.log import log_group
from trimoe.errors import RunLogError, UsageError
from trimoe.evaluate.log.export import rows, write_lm_eval, write_parquet
from trimoe.evaluate.log.merge import merge_logs
from trimoe.evaluate.log.records import Arrived, Attempt, Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.recorded.importing import import_samples
from trimoe.serve.probe import connect

OLD = Path(__file__).parent / "data" / "log_before_servers.sql"


def old_log(path: Path) -> Path:
    """A log with the first schema."""
    db = sqlite3.connect(path)
    db.executescript(OLD.read_text())
    db.close()
    return path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(log_group, arguments)


def test_a_log_of_the_first_schema_opens_with_all_it_holds(tmp_path: Path) -> None:
    path = old_log(tmp_path / "old.db")
    for _ in range(2):
        with RunLog(path, create=False) as log:
            (one,) = log.runs()
            found = [(s.sample.doc_id, s.sample.reply, s.verdict.correct, s.verdict.cause) for s in log.samples(one)]
            assert log.verify() == []
            assert (log.raw(one, "a"), log.attempts(one), log.results(one)) == (None, [], [])
    assert found == [
        ("a", "Answer: 7", True, "correct"),
        ("b", "no\n", False, "truncated (cap)"),
        ("c", "x", False, "wrong"),
    ]
    db = sqlite3.connect(path)
    assert [name for (name,) in db.execute("SELECT name FROM migrations ORDER BY rowid")] == [
        "first",
        "replies of servers",
        "hash chain",
    ]


def test_a_migration_that_fails_leaves_the_old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimoe.evaluate.log import schema as log_schema

    path = old_log(tmp_path / "old.db")
    name, statements = log_schema.MIGRATIONS[1]
    broken = (log_schema.MIGRATIONS[0], (name, (*statements[:4], "CREATE NONSENSE")))
    with monkeypatch.context() as patch:
        patch.setattr(log_schema, "MIGRATIONS", broken)
        with pytest.raises(RunLogError, match="syntax error"):
            RunLog(path)
    columns = [row[1] for row in sqlite3.connect(path).execute("PRAGMA table_info(samples)")]
    assert "reasoning" not in columns
    RunLog(path).close()


def test_replies_and_failures_are_kept_whole(tmp_path: Path) -> None:
    short, long, odd = b'{"id":"x"}', json.dumps({"text": "ä" * 5000}).encode(), b'{"half \xff'
    with RunLog(tmp_path / "r.db") as log:
        one = log.start("m", "b", {"name": "b"}, "f", {}, {})
        failed = Sample("z", 2, "q", "", "", -1, -1, error="timeout")
        log.arrived(
            [
                (one, Arrived(Sample("x", 0, "q", "r", "stop", 1, 2), (Attempt("t", 0.5, "reply", 200),), short)),
                (one, Arrived(Sample("y", 1, "q", "r", "stop", 1, 2), (), long)),
                (one, Arrived(failed, (Attempt("t", 0.5, "timeout"),), odd, "no reply")),
            ]
        )
        assert [log.raw(one, doc) for doc in "xyz"] == [short, long, odd]
        assert [(s.sample.doc_id, s.sample.error, s.verdict.correct) for s in log.samples(one)] == [
            ("x", "", None),
            ("y", "", None),
            ("z", "timeout", None),
        ]
        assert log.verify() == []
        # a failure never replaces a reply; a reply replaces a failure
        log.arrived([(one, Arrived(Sample("x", 0, "q", "", "", -1, -1, error="timeout")))])
        log.arrived([(one, Arrived(Sample("z", 2, "q", "late", "stop", 1, 2), (Attempt("u", 1.0, "reply", 200),)))])
        assert [(s.sample.reply, s.sample.error) for s in log.samples(one)] == [("r", ""), ("r", ""), ("late", "")]
        assert [a.outcome for _, a in log.attempts(one, "z")] == ["timeout", "reply"]
    size = (tmp_path / "r.db").stat().st_size
    assert size < 10 * len(long)


def evaluated(path: Path, count: int = len(READ)) -> Path:
    with server(count, [[name] for name in READ]) as at:
        run(at, path, count)
    return path


def test_lm_eval_s_form_comes_back_as_it_went_out(tmp_path: Path) -> None:
    path = evaluated(tmp_path / "r.db")
    with RunLog(path, create=False) as log:
        (file,) = write_lm_eval(log, tmp_path / "out")
        (one,) = log.runs()
        before = log.samples(one)
    first = json.loads(file.read_text().split("\n")[0])
    assert {"doc_id", "resps", "filtered_resps", "arguments", "filter", "exact_match"} <= first.keys()
    import_samples(file, BENCH, tmp_path / "back.db", name="m")
    with RunLog(tmp_path / "back.db", create=False) as log:
        (again,) = log.runs()
        after = log.samples(again)
    # lm-eval's format has no server context, so the limit of that cut is unknown
    causes = [(s.verdict.correct, s.verdict.cause.replace(" (slot)", "")) for s in before]
    assert [(s.verdict.correct, s.verdict.cause) for s in after] == [(c, cause) for c, cause in causes]
    for mine, theirs in zip(before, after, strict=True):
        for field in ("doc_id", "prompt", "reply", "reasoning", "reasoning_field", "finish_reason", "reply_tokens"):
            assert getattr(mine.sample, field) == getattr(theirs.sample, field), field


def test_parquet_holds_what_json_lines_hold(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = evaluated(tmp_path / "r.db")
    with RunLog(path, create=False) as log:
        assert write_parquet(log, tmp_path / "r.parquet") == len(READ)
        expected = list(rows(log, raw=True))
    found = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [{**row, "sampler": json.loads(row["sampler"])} for row in found] == expected


def test_export_on_the_command_line(tmp_path: Path) -> None:
    path = str(evaluated(tmp_path / "r.db"))
    lines = [json.loads(line) for line in invoke("export", path, "--raw").stdout.split("\n") if line]
    assert len(lines) == len(READ)
    assert json.loads(lines[0]["raw"])["model"] == "scripted"
    out = invoke("export", path, "--format", "lm-eval", "-o", str(tmp_path / "s"), "--json")
    assert len(json.loads(out.stdout)["files"]) == 1
    assert isinstance(invoke("export", path, "--format", "parquet").exception, UsageError)
    assert isinstance(invoke("export", path, "-o", "x").exception, UsageError)


def half(path: Path, at: FaultServer, count: int, name: str = "m") -> None:
    run_endpoint(connect(at.url), [BENCH], path, limit=count, name=name, request_limits=QUICK, ignore_guards=OFF)


def test_merging_makes_one_run_of_its_parts(tmp_path: Path) -> None:
    a, b, whole = tmp_path / "a.db", tmp_path / "b.db", tmp_path / "whole.db"
    rows_ = docs(8)
    with FaultServer({d.prompt: d.reference for d in rows_}, {rows_[1].prompt: ["401", "right"]}) as at:
        half(a, at, 3)  # the second row fails here
        half(b, at, 8)
        sources = a.read_bytes(), b.read_bytes()
        done = invoke("merge", str(a), str(b), "-o", str(whole), "--json")
        assert json.loads(done.stdout) == {"log": str(whole), "runs": 1, "samples": 8}
        asked = at.asked.total()
        half(whole, at, 8)
        assert at.asked.total() == asked  # nothing is missing
    assert (a.read_bytes(), b.read_bytes()) == sources
    with RunLog(whole, create=False) as log, RunLog(b, create=False) as other:
        (one,), (two,) = log.runs(), other.runs()
        assert log.verify() == []
        assert log.samples(one) == other.samples(two)
        outcomes = [a.outcome for _, a in log.attempts(one, rows_[1].doc_id)]
        assert sorted(outcomes) == ["refused", "reply"]
    merge_logs([whole, b, a], tmp_path / "again.db")
    with RunLog(tmp_path / "again.db", create=False) as log:
        assert len(log.attempts(log.runs()[0])) == 8 + 3 + 1 - 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("UPDATE samples SET reply = 'another' WHERE position = 0", "another reply"),
        (
            "UPDATE scores SET correct = 0, cause = 'wrong' WHERE doc_id IN (SELECT doc_id FROM samples "
            "WHERE position = 0)",
            "another verdict",
        ),
        (
            "UPDATE scores SET scorer = 7, correct = 0, cause = 'wrong' WHERE doc_id IN (SELECT doc_id FROM samples "
            "WHERE position = 0)",
            "by another scorer",
        ),
    ],
)
def test_logs_that_contradict_each_other_are_refused(tmp_path: Path, change: str, word: str) -> None:
    a, b = evaluated(tmp_path / "a.db", 3), tmp_path / "b.db"
    merge_logs([a, a], b)
    db = sqlite3.connect(b)
    db.execute(change)
    db.commit()
    db.close()
    with pytest.raises(RunLogError, match=word):
        merge_logs([a, b], tmp_path / "c.db")
    assert not (tmp_path / "c.db").exists()


def test_a_name_for_two_runs_is_refused(tmp_path: Path) -> None:
    for name, model in (("a.db", "f1"), ("b.db", "f2")):
        with RunLog(tmp_path / name) as log:
            log.start("m", "b", {"name": "b"}, model, {}, {})
    with pytest.raises(RunLogError, match=r"(?s)one name for two runs.*m on b"):
        merge_logs([tmp_path / "a.db", tmp_path / "b.db"], tmp_path / "c.db")
    with pytest.raises(UsageError):
        merge_logs([tmp_path / "a.db"], tmp_path / "c.db")


def test_an_old_log_merges_with_a_new_one(tmp_path: Path) -> None:
    new = evaluated(tmp_path / "new.db", 3)
    merged = merge_logs([old_log(tmp_path / "old.db"), new], tmp_path / "c.db")
    assert (merged.runs, merged.samples) == (2, 6)


def test_a_result_that_no_verdict_backs_is_found_and_rescoring_mends_it(tmp_path: Path) -> None:
    path = evaluated(tmp_path / "r.db")
    before = rescored(path)
    db = sqlite3.connect(path)
    db.execute("UPDATE results SET correct = 1")
    db.commit()
    db.close()
    with RunLog(path, create=False) as log:
        assert any("rescore" in fault for fault in log.verify())
    assert rescored(path) == before
    with RunLog(path, create=False) as log:
        assert log.verify() == []
        (one,) = log.runs()
        log.score(one, [(docs(1)[0].doc_id, Verdict(False, "wrong"))], 1)
        assert any("rescore" in fault for fault in log.verify())
