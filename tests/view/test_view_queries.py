"""Queries of the viewer: numbers equal those of the comparison, older and newer logs work, nothing is written."""

import hashlib
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.view_server import fail, put
from trimoe.errors import RunLogError, TrimoeError
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.schema import MIGRATIONS, open_readonly
from trimoe.evaluate.log.summary import summarize
from trimoe.judge.compare import compare
from trimoe.view import queries
from trimoe.view.browse import CHANGES, side_by_side
from trimoe.view.catalog import Catalog, pair


def random_log(path: Path, seed: int) -> None:
    """Runs of a flat bench, a bench in parts, and one with failures, rescored and not."""
    draw = random.Random(seed)
    for name in ("base", "cut", "third"):
        put(path, name, "".join(draw.choices("11wwelt", k=60)), "flat")
        ids = [f"{part}::p{i}" for part in ("rs", "java") for i in range(20)]
        put(path, name, "".join(draw.choices("11we", k=40)), "parts", {"average": "macro"}, ids=ids)
        put(path, name, "".join(draw.choices("11w?", k=10)), "some")
    fail(path, "cut", "late", 99, "no", "flat")
    with RunLog(path) as log:
        run = next(r for r in log.runs() if (r.name, r.bench) == ("cut", "flat"))
        anew = [(s.sample.doc_id, s.verdict) for s in log.samples(run)[:30] if not s.sample.error]
        flipped = [(doc, type(v)(not v.correct, "wrong" if v.correct else "correct")) for doc, v in anew]
        log.score(run, flipped, 2)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_the_comparison_and_the_summary(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "runs.db"
    random_log(path, seed)
    shown = {(s.run.name, s.run.bench): s for s in Catalog([path]).all()}
    assert len(shown) == 9
    rows = {(row.name, row.bench): row for row in compare(path, base="base").rows}
    for key, row in rows.items():
        assert shown[key].row == (row if row.change is None else shown[key].row)
        if row.change is not None:
            ours = pair(shown["base", key[1]], shown[key]).row
            assert ours.change is not None
            assert ours.change.p_holm is None
            assert replace(ours, change=replace(ours.change, p_holm=row.change.p_holm)) == row
    with RunLog(path) as log:
        for run in log.runs():
            summary = summarize(log, run)
            one = shown[run.name, run.bench]
            assert (one.read.score, one.causes) == (summary.score, {**one.causes, **summary.causes})
            assert sum(one.causes.values()) == summary.n == len(one.samples)


def test_whole_samples_are_those_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    random_log(path, 9)
    for shown in Catalog([path]).all():
        with RunLog(path) as log, shown.log.reader() as reader:
            for scored in log.samples(shown.run):
                found = queries.whole(reader, shown.run.run_id, scored.sample.doc_id)
                assert found == scored
                assert queries.attempts(reader, shown.run.run_id, scored.sample.doc_id) == [
                    a for _, a in log.attempts(shown.run, scored.sample.doc_id)
                ]
            assert queries.whole(reader, shown.run.run_id, "nothing") is None


def test_every_item_is_in_one_kind_of_change(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    random_log(path, 5)
    shown = {(s.run.name, s.run.bench): s for s in Catalog([path]).all()}
    for bench in ("flat", "parts", "some"):
        one, two = shown["base", bench], shown["cut", bench]
        items = side_by_side(one.samples, two.samples)
        assert sorted(item.doc_id for item in items) == sorted({**one.places, **two.places})
        kinds = [CHANGES.index(item.change) for item in items]
        assert kinds == sorted(kinds)
        change = pair(one, two).row.change
        assert change is not None
        assert sum(item.change == "lost" for item in items) == change.lost
        assert sum(item.change == "gained" for item in items) == change.gained


def test_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    random_log(path, 1)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    catalog = Catalog([path])
    with catalog.logs[0].reader() as reader, pytest.raises(TrimoeError, match="readonly"):
        reader.db.execute("DELETE FROM samples")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def first_schema(path: Path) -> None:
    """A log with the first schema."""
    put(path, "base", "1we", asked=3)
    newest = {"attempts", "failures", "results"}
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE runs DROP COLUMN head")
        for table in (*newest, "chain"):
            db.execute(f"DROP TABLE {table}")
        for column in ("reasoning", "reasoning_field", "fallback", "reasoning_tokens", "marks", "seconds", "raw"):
            db.execute(f"ALTER TABLE samples DROP COLUMN {column}")
        db.execute("DELETE FROM migrations WHERE name != ?", (MIGRATIONS[0][0],))
    db.close()


def test_an_old_log_is_shown_and_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    first_schema(path)
    shown = Catalog([path]).all()[0]
    with shown.log.reader() as reader:
        assert not reader.has("failures")
        sample = queries.whole(reader, shown.run.run_id, "d1")
        assert sample is not None
        assert (sample.sample.reply, sample.sample.reasoning, sample.sample.seconds) == ("base says 1", "", None)
        assert queries.holding(reader, shown.run.run_id, "SAYS 1", "all") == {"d1"}
        assert queries.briefs(reader, shown.run.run_id, ["d1"])["d1"].reply == "base says 1"
        assert queries.attempts(reader, shown.run.run_id, "d1") == []
        assert queries.raw(reader, shown.run.run_id, "d1") is None
    with sqlite3.connect(path) as db:
        assert [name for (name,) in db.execute("SELECT name FROM migrations")] == [MIGRATIONS[0][0]]
    db.close()
    with RunLog(path):  # and a log that is migrated meanwhile goes on being shown
        assert len(Catalog([path]).all()[0].samples) == 3


def test_logs_that_cannot_be_shown_are_refused_with_the_remedy(tmp_path: Path) -> None:
    newer, other, empty, text = (tmp_path / n for n in ("newer.db", "other.db", "empty.db", "text.db"))
    put(newer, "base", "1")
    with sqlite3.connect(newer) as db:
        db.execute("INSERT INTO migrations VALUES ('of tomorrow', '')")
    db.close()
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE cats (name)")
    db.close()
    empty.touch()
    text.write_text("no database, but long enough to be taken for one" * 100)
    for path, words in (
        (newer, "newer"),
        (other, "is not a run log"),
        (empty, "is empty"),
        (text, "not a readable"),
        (tmp_path / "none.db", "not found"),
    ):
        with pytest.raises(RunLogError, match=words) as caught:
            open_readonly(path)
        assert caught.value.remedy
        assert not (tmp_path / "none.db").exists()


def test_what_another_process_writes_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    put(path, "base", "1w", asked=4)
    catalog = Catalog([path])
    assert [(s.run.name, len(s.samples), s.state) for s in catalog.all()] == [("base", 2, "running")]
    put(path, "cut", "1wew", asked=4)
    assert [(s.run.name, len(s.samples), s.state) for s in catalog.all()][1:] == [("cut", 4, "complete")]


def test_ids_of_runs_stay(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    put(one, "base", "1")
    put(two, "base", "1")
    ids = [s.id for s in Catalog([one, two]).all()]
    assert len(set(ids)) == 2
    assert [s.id for s in Catalog([two, one]).all()] == ids[::-1]
    assert [s.id for s in Catalog([one, one]).all()] == ids[:1]
