"""Edits of a run log are found, damage ends in a clear error, and what can be read is recovered."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from trimoe.bench.bench import Verdict
from trimoe.cli.main import main
from trimoe.errors import MissingPrerequisite, Refused, RunLogError
from trimoe.evaluate.log.connection import log_error
from trimoe.evaluate.log.marks import marks_of
from trimoe.evaluate.log.merge import merge_logs
from trimoe.evaluate.log.records import Arrived, Attempt, Run, Sample
from trimoe.evaluate.log.recover import recover
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import conclude
from trimoe.evaluate.log.verify import verified

OLD = Path(__file__).parent / "data" / "log_before_servers.sql"
ROWS = 12


def filled(path: Path, rows: int = ROWS) -> Path:
    """Two runs of a server with requests, a failure, verdicts of two scorers, events and results."""
    with RunLog(path) as log:
        for name, right in (("base", rows - 1), ("small", rows // 2)):
            spec = {"name": "b", "rows": rows, "max_new_tokens": 100}
            run = log.start(name, "b", spec, f"hash of {name}", {"engine": "x", "context": 4096}, {"parallel": 2})
            log.event(run, "asking", missing=rows, of=rows)
            log.arrived([(run, one) for one in arrivals(name, rows)])
            for scorer in (1, 2):
                log.score(run, [(str(i), verdict(i < right)) for i in range(rows - 1)], scorer)
            log.event(run, "rescoring", rows=rows)
            conclude(log, run, 2, [str(i) for i in range(rows)], exclude_errors=True)
    return path


def arrivals(name: str, rows: int) -> list[Arrived]:
    made = []
    for i in range(rows):
        attempts = (Attempt("2026-01-01T00:00:00", 0.5, "timeout"), Attempt("2026-01-01T00:00:01", 0.5, "reply", 200))
        text = f"{name} replies {i} " * 40
        sample = Sample(str(i), i, f"question {i}", text, "stop", 9, 90, seconds=0.5)
        made.append(Arrived(sample, attempts, json.dumps({"text": text}).encode()))
    failed = Sample(str(rows - 1), rows - 1, "question", "", "", -1, -1, error="timeout")
    return [*made[:-1], Arrived(failed, attempts[:1], b"{}", "no reply")]


def verdict(right: bool) -> Verdict:
    return Verdict(right, "correct" if right else "wrong", "7")


def edit(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def faults(path: Path) -> list[str]:
    with RunLog(path, create=False) as log:
        return log.verify()


def test_a_log_as_written_is_sound(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    assert faults(path) == []
    with RunLog(path) as log:  # written again: a late reply replaces the failure, a rescored verdict the old one
        run = log.runs()[0]
        late = Sample(str(ROWS - 1), ROWS - 1, "question", "late", "stop", 9, 9)
        log.arrived([(run, Arrived(late, (Attempt("t", 1, "reply", 200),), b"{}"))])
        log.score(run, [("3", verdict(False)), (str(ROWS - 1), verdict(True))], 2)
        conclude(log, run, 2, [str(i) for i in range(ROWS)], exclude_errors=False)
    assert faults(path) == []
    edit(path, "VACUUM")
    assert faults(path) == []


EDITS = {
    "a better score": "UPDATE results SET score = 0.01",
    "a score of 100 %": "UPDATE results SET score = 1.0, correct = scored",
    "a smaller error": "UPDATE results SET standard_error = 0.001",
    "fewer rows asked": "UPDATE results SET asked = 5",
    "no failures": "UPDATE results SET errors = 0",
    "other causes": """UPDATE results SET causes = '{"correct":12}'""",
    "no marks of a result": "UPDATE results SET marks = 'nothing'",
    "other ceilings": "UPDATE results SET ceilings = '{}'",
    "a result deleted": "DELETE FROM results WHERE run_id = 1",
    "a reply replaced": "UPDATE samples SET reply = 'Answer: 7' WHERE doc_id = '3'",
    "a prompt replaced": "UPDATE samples SET prompt = 'easier' WHERE doc_id = '3'",
    "a reasoning added": "UPDATE samples SET reasoning = 'hm' WHERE doc_id = '3'",
    "another end": "UPDATE samples SET finish_reason = 'length' WHERE doc_id = '3'",
    "fewer tokens": "UPDATE samples SET reply_tokens = 1",
    "faster": "UPDATE samples SET seconds = 0.001",
    "another place": "UPDATE samples SET position = 99 WHERE doc_id = '3'",
    "no marks": "UPDATE samples SET marks = 'x' WHERE doc_id = '3'",
    "another raw reply": "UPDATE samples SET raw = '{}' WHERE doc_id = '3'",
    "another time": "UPDATE samples SET created = '2025' WHERE doc_id = '3'",
    "a failing sample deleted": (
        "DELETE FROM scores WHERE correct = 0 AND run_id = 2",
        "DELETE FROM samples WHERE run_id = 2 AND doc_id NOT IN (SELECT doc_id FROM scores WHERE run_id = 2)",
        "DELETE FROM attempts WHERE run_id = 2 AND doc_id NOT IN (SELECT doc_id FROM scores WHERE run_id = 2)",
        "DELETE FROM results WHERE run_id = 2",
    ),
    "a sample added": (
        "INSERT INTO samples SELECT run_id, 'new', 50, prompt, reply, finish_reason, prompt_tokens, reply_tokens, "
        "created, reasoning, reasoning_field, fallback, reasoning_tokens, marks, seconds, raw FROM samples "
        "WHERE doc_id = '3' AND run_id = 1"
    ),
    "a verdict turned": "UPDATE scores SET correct = 1, cause = 'correct' WHERE correct = 0",
    "a verdict of its own": "UPDATE scores SET cause = 'loop' WHERE correct = 0",
    "another answer": "UPDATE scores SET extracted = '8' WHERE doc_id = '3'",
    "a verdict deleted": "DELETE FROM scores WHERE doc_id = '3' AND scorer = 2",
    "an old verdict made the newest": (
        "UPDATE scores SET rowid = rowid + 1000 WHERE run_id = 1 AND scorer = 1 AND doc_id = '3'"
    ),
    "a verdict of a later scorer": (
        "INSERT INTO scores SELECT run_id, doc_id, 9, extracted, 1, 'correct', '' FROM scores "
        "WHERE correct = 0 AND scorer = 2"
    ),
    "names swapped": (
        "UPDATE names SET name = 'x' WHERE name = 'base'",
        "UPDATE names SET name = 'base' WHERE name = 'small'",
        "UPDATE names SET name = 'small' WHERE name = 'x'",
    ),
    "a name moved": "UPDATE names SET run_id = 1",
    "a name deleted": "DELETE FROM names WHERE name = 'small'",
    "attempts deleted": "DELETE FROM attempts WHERE outcome = 'timeout'",
    "an attempt changed": "UPDATE attempts SET outcome = 'reply', status = 200",
    "a failure deleted": "DELETE FROM failures WHERE run_id = 1",
    "a failure of another kind": "UPDATE failures SET kind = 'refused'",
    "an event deleted": "DELETE FROM events WHERE kind = 'rescoring'",
    "an event changed": "UPDATE events SET detail = '{}' WHERE kind = 'asking'",
    "another model": "UPDATE runs SET model = 'hash of base' WHERE model = 'hash of small'",
    "another bench": "UPDATE runs SET bench = 'c'",
    "other settings": "UPDATE runs SET settings = '{}'",
    "another sampler": "UPDATE runs SET sampler = '{}' WHERE id = 2",
    "another spec": """UPDATE runs SET spec = '{"name":"b","rows":5}' WHERE id = 2""",
    "another time of a run": "UPDATE runs SET created = '2025'",
    "a whole run deleted": tuple(
        f"DELETE FROM {table} WHERE {'id' if table == 'runs' else 'run_id'} = 2"
        for table in ("results", "scores", "samples", "failures", "attempts", "events", "names", "runs")
    ),
    "the end of the chain deleted with its rows": (
        "DELETE FROM results WHERE run_id = 2",
        "DELETE FROM chain WHERE seq >= (SELECT max(seq) FROM chain)",
    ),
    "an entry deleted": "DELETE FROM chain WHERE seq = 7",
    "an entry changed": "UPDATE chain SET digest = '' WHERE seq = 7",
    "entries swapped": (
        "UPDATE chain SET seq = -1 WHERE seq = 7",
        "UPDATE chain SET seq = 7 WHERE seq = 8",
        "UPDATE chain SET seq = 8 WHERE seq = -1",
    ),
    "the chain deleted": "DELETE FROM chain",
    "the heads deleted": "UPDATE runs SET head = NULL",
    "an entry that cannot be read": "UPDATE chain SET key = 'x' WHERE tbl = 'scores'",
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found(name: str, tmp_path: Path) -> None:
    path, statements = filled(tmp_path / "r.db"), EDITS[name]
    edit(path, "PRAGMA foreign_keys = OFF", *([statements] if isinstance(statements, str) else statements))
    assert faults(path), name
    assert main(["log", "verify", str(path)]) == 1


def test_a_log_without_a_chain_opens_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.db"
    db = sqlite3.connect(path)
    db.executescript(OLD.read_text())
    db.close()
    assert main(["log", "verify", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "sound: 1 runs" in shown
    assert "rows are older than the hash chain (an earlier version of trimoe wrote them" in shown
    edit(path, "UPDATE samples SET reply = 'other' WHERE doc_id = 'a'")  # after that, edits are found
    assert main(["log", "verify", str(path), "--json"]) == 1
    assert any("was changed" in fault for fault in json.loads(capsys.readouterr().out)["faults"])


def test_a_read_only_log_without_a_chain_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    edit(path, "DROP TABLE chain")
    with RunLog(path, readonly=True) as log:
        assert "no hash chain" in verified(log).notes[0]


def test_a_merged_log_says_so_and_an_edited_one_is_not_merged(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "a.db"), tmp_path / "b.db"
    with RunLog(two) as log:
        log.start("other", "b", {"name": "b"}, "m", {}, {})
    merge_logs([one, two], tmp_path / "c.db")
    with RunLog(tmp_path / "c.db", create=False) as log:
        found = verified(log)
    assert (found.faults, len(found.notes)) == ([], 1)
    assert "merged from 2 logs" in found.notes[0]
    edit(two, "UPDATE runs SET settings = '{}', created = ''")
    with pytest.raises(RunLogError, match=r"(?s)b.db was edited.*was changed"):
        merge_logs([one, two], tmp_path / "d.db")
    assert not (tmp_path / "d.db").exists()


# ---------------------------------------------------------------- damage


def page_of(path: Path, word: bytes) -> int:
    """The page whose content has a text."""
    return path.read_bytes().index(word) // 4096


def damaged_page(path: Path) -> None:
    """One page of samples overwritten."""
    edit(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    at = page_of(path, b"small replies 6")
    with path.open("r+b") as handle:
        handle.seek(at * 4096)
        handle.write(b"\xee" * 4096)


def cut_short(path: Path) -> None:
    edit(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size // 4096 // 2 * 4096)


DAMAGES = {
    "a damaged page": damaged_page,
    "a file cut short": cut_short,
    "text that is not UTF-8": lambda path: edit(
        path, "UPDATE samples SET reply = CAST(x'ff41' AS TEXT) WHERE doc_id = '3' AND run_id = 1"
    ),
    "a cause that is not UTF-8": lambda path: edit(path, "UPDATE scores SET cause = CAST(x'ff41' AS TEXT)"),
    "a missing column": lambda path: edit(path, "ALTER TABLE samples DROP COLUMN reasoning"),
    "a missing table": lambda path: edit(path, "DROP TABLE events"),
    "a spec that is no JSON": lambda path: edit(path, "UPDATE runs SET spec = '{' WHERE id = 2"),
    "an event that is no object": lambda path: edit(path, "UPDATE events SET detail = '[]'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_ends_in_a_clear_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = filled(tmp_path / "r.db", 40)
    DAMAGES[name](path)
    out = str(tmp_path / "out.html")
    for verb, codes in (
        (["log", "verify", str(path)], (1, 3)),
        (["audit", str(path)], (0, 1, 3)),
        (["compare", str(path)], (0, 3)),
        (["report", str(path), "-o", out], (0, 3)),
        (["log", "export", str(path)], (0, 3)),
        (["rescore", str(path)], (2, 3)),
    ):
        code = main(verb)
        shown = capsys.readouterr()
        assert code in codes, (verb, shown.err)
        assert "Traceback" not in shown.err
        if code == 3:
            assert "trimoe log recover" in shown.err
    assert main(["log", "verify", str(path)]) in (1, 3)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_can_be_read_is_recovered(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = filled(tmp_path / "r.db", 40), tmp_path / "new.db"
    DAMAGES[name](path)
    before = path.read_bytes()
    if name == "a file cut short":  # the first page names pages that are gone
        assert main(["log", "recover", str(path), "-o", str(out)]) in (0, 3)
        return
    done = recover(path, out)
    assert path.read_bytes() == before
    with RunLog(out, create=False) as log:
        found = verified(log)
        assert found.faults == []
        assert "recovered from a damaged log" in found.notes[0]
        runs = log.runs()
        assert runs
        assert all("RECOVERED" in [mark.flag for mark in marks_of(log, run)] for run in runs)
    assert done.kept["samples"] >= (39 if "spec" in name else 60)
    if name == "text that is not UTF-8":
        assert (done.kept["samples"], done.lost["samples"], done.kept["results"]) == (77, 1, 0)
    if name == "a damaged page":
        assert "a part of samples" in done.unreadable
        assert done.kept["samples"] >= 70
    assert main(["compare", str(out), "--side-by-side"]) == 0
    assert "on b: recovered from a damaged log" in capsys.readouterr().out


def test_recovery_counts_rows_that_were_edited(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    edit(path, "UPDATE samples SET reply = 'better' WHERE doc_id = '3'")
    assert recover(path, tmp_path / "new.db").edited == {"samples": 2}


def test_what_is_no_log_is_not_recovered(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("no database" * 1000)
    RunLog(tmp_path / "empty.db").close()
    for name, message in (("a.db", "cannot be read at all"), ("none.db", "not found"), ("empty.db", "holds no run")):
        with pytest.raises(RunLogError, match=message):
            recover(tmp_path / name, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


# ---------------------------------------------------------------- ordinary failures of the machine


def test_a_full_disk_is_no_defect_and_loses_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    with RunLog(path) as log:
        run = log.runs()[0]
        (pages,) = log.db.execute("PRAGMA page_count").fetchone()
        log.db.execute(f"PRAGMA max_page_count = {pages}")  # as a disk without space
        with pytest.raises(MissingPrerequisite, match=r"(?s)disk is full.*free some space"):
            log.arrived([(run, one) for one in many(run)])
        log.db.execute("PRAGMA max_page_count = 100000")
        log.arrived([(run, one) for one in many(run)])
    assert faults(path) == []


def many(_run: Run) -> list[Arrived]:
    return [Arrived(Sample(f"x{i}", 100 + i, "q", f"{i} " * 3000, "stop", 1, 1)) for i in range(40)]


def test_a_lock_of_another_process_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with RunLog(path) as log:
        log.db.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(Refused, match="in use by another process"):
            log.event(None, "x")
        other.execute("ROLLBACK")
        log.event(None, "x")
    other.close()
    assert faults(path) == []


def test_a_log_that_may_not_be_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    with RunLog(path, readonly=True) as log, pytest.raises(RunLogError, match="cannot be opened or written"):
        log.event(None, "x")
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert isinstance(log_error(path, error), MissingPrerequisite)


def test_copies_of_a_log_are_equal_to_it(tmp_path: Path) -> None:
    path = filled(tmp_path / "r.db")
    shutil.copy(path, tmp_path / "copy.db")
    assert faults(tmp_path / "copy.db") == []
