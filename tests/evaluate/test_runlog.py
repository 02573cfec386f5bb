"""The run log: refusal of other files, identity without operational settings, detection of tampering."""

import sqlite3
import sys
from pathlib import Path

import pytest

from trimoe.bench.bench import Verdict
from trimoe.errors import MissingPrerequisite, RunLogError
from trimoe.evaluate.log.records import Run, Sample
from trimoe.evaluate.log.run_log import RunLog

SPEC = {"name": "b", "version": 1}


def start(log: RunLog, name: str = "m", model: str = "f1", batch: int = 1, spec: dict[str, object] = SPEC) -> Run:
    return log.start(name, "b", spec, model, {"decoding": "greedy"}, {"batch_size": batch})


def sample(doc: str, position: int = 0) -> Sample:
    return Sample(doc, position, "q", "r", "stop", 3, 2)


def test_samples_and_scores_come_back(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    rows = [(sample("y", 1), Verdict(None, "harness error")), (sample("x"), Verdict(True, "correct", "7", "d"))]
    with RunLog(path) as log:
        run = start(log)
        log.add(run, rows, 1)
    with RunLog(path, create=False) as log:
        assert log.runs() == [run]
        stored = log.samples(run)
        assert [s.sample.doc_id for s in stored] == ["x", "y"]
        assert [s.verdict for s in stored] == [rows[1][1], rows[0][1]]
        assert log.scored_by(run, 1) == {"x"}
        assert log.verify() == []


def test_identity_leaves_operation_out(tmp_path: Path) -> None:
    with RunLog(tmp_path / "runs.db") as log:
        first = start(log)
        assert start(log, batch=64) == first
        assert start(log, name="alias").run_id == first.run_id
        assert start(log, name="other", model="f2").run_id != first.run_id
        assert start(log, name="third", spec={"name": "b", "version": 2}).run_id != first.run_id
        with pytest.raises(RunLogError, match="another run of b named m"):
            start(log, model="f2")


def test_the_newest_scorer_counts_and_the_first_sample_stays(tmp_path: Path) -> None:
    with RunLog(tmp_path / "runs.db") as log:
        run = start(log)
        log.add(run, [(sample("x"), Verdict(False, "wrong"))], 1)
        log.add(run, [(Sample("x", 0, "q", "another", "stop", 3, 2), Verdict(False, "wrong"))], 1)
        log.score(run, [("x", Verdict(True, "correct"))], 2)
        (stored,) = log.samples(run)
        assert stored.sample.reply == "r"
        assert stored.verdict.correct is True


def test_a_failed_batch_leaves_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "runs.db") as log:
        run = start(log)
        bad = Verdict(None, None)  # type: ignore[arg-type]
        with pytest.raises(sqlite3.IntegrityError):
            log.add(run, [(sample("x"), Verdict(True, "correct")), (sample("y"), bad)], 1)
        assert log.samples(run) == []


def test_what_is_not_a_run_log_is_refused(tmp_path: Path) -> None:
    text, foreign, folder = tmp_path / "a.db", tmp_path / "b.db", tmp_path / "c.db"
    text.write_text("not a database, but long enough to be taken for one\n" * 40)
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE recipes (id INTEGER)")
    folder.mkdir()
    before = foreign.read_bytes()
    for path in (text, foreign, folder):
        with pytest.raises(RunLogError):
            RunLog(path)
    assert foreign.read_bytes() == before
    with pytest.raises(RunLogError, match="not found"):
        RunLog(tmp_path / "none.db", create=False)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    RunLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO migrations VALUES ('from the future', '')")
    with pytest.raises(RunLogError, match="newer trimoe"):
        RunLog(path)


@pytest.mark.parametrize(
    ("tamper", "word"),
    [
        ("UPDATE scores SET correct = 1", "correct=True"),
        ("UPDATE runs SET spec = '{}'", "spec"),
        ("UPDATE runs SET model = 'other'", "identity"),
        ("DELETE FROM samples", "refers to nothing"),
    ],
)
def test_verify_finds_tampering(tmp_path: Path, tamper: str, word: str) -> None:
    path = tmp_path / "runs.db"
    with RunLog(path) as log:
        log.add(start(log), [(sample("x"), Verdict(False, "wrong"))], 1)
    with sqlite3.connect(path) as db:
        db.execute(tamper)
    with RunLog(path, create=False) as log:
        assert any(word in fault for fault in log.verify())


def test_a_log_shows_itself_shortly_and_as_a_data_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "runs.db"
    with RunLog(path) as log:
        run = start(log)
        log.add(
            run, [(sample("x"), Verdict(True, "correct", "7")), (sample("y", 1), Verdict(None, "harness error"))], 1
        )
        assert repr(log) == f"RunLog({str(path)!r}, 1 runs, 2 samples)"
        frame = log.to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame["doc_id"]) == ["x", "y"]
        assert list(frame["correct"]) == [True, None]
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingPrerequisite, match="pandas"):
            log.to_pandas()
    assert repr(log).endswith("closed)")
