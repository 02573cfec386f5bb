"""`trimoe calibrate` with sets of every kind: the shipped one, leak checks, errors by exit code."""

import json
from pathlib import Path

import pytest

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.cli.main import main
from trimoe.model import tiny
from trimoe.model.tiny.tasks import generate


def run(*arguments: object) -> int:
    return main(["calibrate", str(tiny.path()), *(str(a) for a in arguments)])


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """A set with three held-out items: two by declaration, one by accident; and a file of other rows."""
    held_out = generate("code", "heldout", 3, 20)
    rows = [{"id": item.item_id, "q": item.prompt, "a": item.answer} for item in held_out]
    (tmp_path / "declared.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:2]))
    (tmp_path / "accident.jsonl").write_text(json.dumps({"text": f"Somebody wrote: {rows[2]['q']} Nice."}) + "\n")
    others = [{"id": i, "question": f"an unrelated question number {i} about nothing in particular"} for i in range(4)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in others))
    path = tmp_path / "set.yaml"
    path.write_text(
        """
name: leaking
classes:
  targeted_code:
    - {kind: jsonl, path: declared.jsonl, fields: {prompt: q, completion: a}, bench: tiny-code}
    - {kind: jsonl, path: accident.jsonl}
    - {kind: tiny, domain: code, count: 4}
"""
    )
    return path


def test_the_leak_check_is_printed_and_kept(leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    options = ["--set", leaking, "-o", out, "--leak-check", "tiny-code", "--leak-check", tmp_path / "other.jsonl"]
    assert run(*options, "--json") == 0
    capsys.readouterr()
    metadata = ExpertStats.load(out).metadata
    ids = [item.item_id for item in generate("code", "heldout", 3, 20)]
    assert metadata["bench_items"] == {"tiny-code": sorted(ids[:2])}
    found = metadata["leak_check"]["benches"]
    assert set(found["tiny-code"]["overlapping"]) >= set(ids)
    assert ids[2] in found["tiny-code"]["undeclared"]
    assert found["other"]["overlapping"] == []
    out.unlink()
    assert run(*options) == 0
    text = capsys.readouterr().out
    assert "of tiny-code share 13 consecutive words of their own with the set" in text
    assert "no overlap with other (4 of 4 items checked)" in text


def test_leak_checks_that_cannot_be(leaking: Path, tmp_path: Path) -> None:
    assert run("--set", leaking, "-o", tmp_path / "s", "--leak-check", "no-such-bench") == 2
    (tmp_path / "broken.jsonl").write_text("{")
    assert run("--set", leaking, "-o", tmp_path / "s", "--leak-check", tmp_path / "broken.jsonl") == 3
    assert not (tmp_path / "s").exists()


def test_the_shipped_set_on_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tier A end to end: the model answers forty prompts, the answers are kept, all five classes are measured."""
    out = tmp_path / "generic.stats"
    assert run("--set", "generic", "-o", out) == 0
    text = capsys.readouterr().out
    assert "40 replies of the model itself are in" in text
    stats = ExpertStats.load(out)
    assert stats.classes == tuple(f"generic_{n}" for n in ("math", "logic", "code", "science", "creative"))
    rows = [json.loads(line) for line in (tmp_path / "generic.stats.replies.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert all(1 <= len(r["reply_tokens"]) <= 128 for r in rows)
    assert stats.metadata["replies"]["rows"] == 40
    # the same replies from the file, which need no whole model in memory
    (tmp_path / "set.yaml").write_text(
        "name: again\nclasses:\n"
        "  generic_math: [{kind: prompts, builtin: math, replies: generic.stats.replies.jsonl}]\n"
    )
    assert run("--set", tmp_path / "set.yaml", "-o", tmp_path / "again") == 0
    again = ExpertStats.load(tmp_path / "again")
    assert abs(again.metadata["tokens"]["generic_math"] - stats.metadata["tokens"]["generic_math"]) <= 8


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{kind: jsonl, path: gone.jsonl}", 3),
        ("{kind: jsonl, path: latin.jsonl}", 3),
        ("{kind: text, path: t.txt, speed: 3}", 3),
        ("{kind: text, path: t.txt, count_before: '<nope>'}", 3),
        ("{kind: text, path: t.txt}", 3),  # fewer tokens than experts
        ("{kind: jsonl, path: m.jsonl, fields: {prompt: prompt}}", 5),
    ],
)
def test_errors_by_exit_code(tmp_path: Path, source: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    (tmp_path / "t.txt").write_text("a b")
    row = {"name": "HumanEval_0_x", "language": "rs", "prompt": "fn x"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (tmp_path / "set.yaml").write_text(f"name: t\nclasses:\n  a: [{source}]\n")
    assert run("--set", tmp_path / "set.yaml", "-o", tmp_path / "s", "--json") == code
    error = json.loads(capsys.readouterr().out)
    assert error["exit_code"] == code
    assert error["subject"]
    assert error["expected"] or error["actual"]
    assert not (tmp_path / "s").exists()
