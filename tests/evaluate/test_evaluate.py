"""Evaluation of a real model with random weights: batches, resuming after SIGKILL, shared runs, refusals."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.evaluation import rescored, run_model
from helpers.signals import TESTS
from trimoe.cli.eval import eval_
from trimoe.cli.log import log_group
from trimoe.errors import BadInput, CheckpointError, Refused, RunLogError, UsageError
from trimoe.evaluate.guards import NAMES
from trimoe.evaluate.log.run_log import RunLog
from trimoe.model.generate import Generator
from trimoe.model.tiny.tasks import generate
from trimoe.sandbox import UNSAFE, engines
from trimoe.sandbox.pool import Worker, WorkerLost

SCRIPT = f"""
import sys, torch
sys.path.insert(0, {str(TESTS)!r})
torch.set_num_threads(1)
from helpers.signals import signal_at
from trimoe.evaluate.evaluate import evaluate
if len(sys.argv) > 3:
    signal_at(int(sys.argv[3]), function="trimoe.evaluate.log.run_log:RunLog._insert")
evaluate(sys.argv[1], bench=["tiny-story", "tiny-choice"], log=sys.argv[2], limit=30, name="m", batch_size=4,
         ignore_guards=["zero", "short", "length", "empty", "marker"])
"""
evaluate = partial(run_model, ignore_guards=NAMES)  # a random model generates nonsense


def contents(path: Path) -> list[tuple[object, ...]]:
    with RunLog(path, create=False) as log:
        return [(run.identity, scored) for run in log.runs() for scored in log.samples(run)]


def test_batched_replies_equal_single_ones(model_dir: Path) -> None:
    model = Generator(model_dir)
    items = generate("choice", "heldout", 6) + generate("story", "heldout", 6) + generate("math", "heldout", 6)
    prompts = [model.encode(item.prompt) for item in items]
    assert len({len(p) for p in prompts}) > 5
    together = model.reply(prompts, 40)
    assert together == [model.reply([prompt], 40)[0] for prompt in prompts]
    assert {reply.finish_reason for reply in together} >= {"stop"}
    assert len({reply.reply_tokens for reply in together}) > 3  # rows ended at different steps


def test_replies_equal_those_of_transformers(model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    mine = Generator(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    for item in generate("text", "heldout", 6):
        ids = torch.tensor([mine.encode(item.prompt)])
        stops = [int(i) for i in mine._stops]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=stops
        )[0, ids.shape[1] :]
        text = mine._tokenizer.decode([i for i in out.tolist() if i not in stops])
        assert mine.reply([ids[0].tolist()], 24)[0].text == text


def test_summary_log_and_repeat(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.db"
    seen: list[tuple[int, int, str]] = []
    first = evaluate(
        model_dir,
        ["tiny-format", "tiny-code"],
        path,
        limit=5,
        name="m",
        batch_size=2,
        progress=lambda *step: seen.append(step),
    )
    assert [(s.bench, s.n, s.unscored) for s in first] == [("tiny-format", 5, 0), ("tiny-code", 5, 0)]
    assert all(sum(s.causes.values()) == 5 and s.score == s.correct / 5 for s in first)
    assert seen[-1][:2] == (10, 10)
    assert seen == sorted(seen, key=lambda step: step[0])
    before = contents(path)
    monkeypatch.setattr(Generator, "__init__", lambda *_: pytest.fail("a complete run loads no model"))
    assert evaluate(model_dir, ["tiny-format", "tiny-code"], path, limit=5, name="m") == first
    assert rescored(path) == first
    assert contents(path) == before
    with RunLog(path, create=False) as log:
        assert log.verify() == []


def test_a_raised_limit_continues_the_run(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    (small,) = evaluate(model_dir, ["tiny-story"], path, limit=3)
    (large,) = evaluate(model_dir, ["tiny-story"], path, limit=6)
    assert (small.run_id, small.n) == (large.run_id, 3)
    assert large.n == 6


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(model_dir: Path, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm.db", tmp_path / "rough.db"
    command = [sys.executable, "-c", SCRIPT, str(model_dir)]
    subprocess.run([*command, str(calm)], check=True)
    stored = [0]
    for sample in (6, 17, 15):  # in the middle of a batch of four; `sample` counts from the start of each run
        killed = subprocess.run([*command, str(rough), str(sample)], check=False)
        assert killed.returncode == -signal.SIGKILL
        stored.append(len(contents(rough)))
    assert stored == sorted(set(stored)), "every run stored samples before it was killed"
    subprocess.run([*command, str(rough)], check=True)
    assert contents(rough) == contents(calm)
    with RunLog(rough, create=False) as log:
        assert log.verify() == []


def test_harness_errors_are_retried(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.db"
    reply = Generator.reply
    block = "```python\ndef solve(x):\n    return 0\n```"
    monkeypatch.setattr(Generator, "reply", lambda *a: [type(r)(block, "stop", 1, 1) for r in reply(*a)])
    with monkeypatch.context() as patch:

        def lose(*_: object) -> None:
            raise WorkerLost("lost on purpose")

        patch.setattr(Worker, "run", lose)
        (summary,) = evaluate(model_dir, ["tiny-code"], path, limit=3)
        assert (summary.score, summary.unscored, summary.causes) == (None, 3, {"harness error": 3})
    (summary,) = evaluate(model_dir, ["tiny-code"], path, limit=3)
    assert summary.unscored == 0
    assert summary.score is not None


def test_a_sandbox_that_cannot_be_built_is_refused_before_anything_is_generated(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.db"
    monkeypatch.setattr(engines, "_BOOT", "raise SystemExit('{!r}')")
    with pytest.raises(Refused, match="--sandbox docker"):
        evaluate(model_dir, ["tiny-code"], path, limit=3)
    assert not path.exists()
    (summary,) = evaluate(model_dir, ["tiny-story"], path, limit=1)  # needs no sandbox
    assert summary.n == 1


def test_how_code_is_run_is_recorded(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    evaluate(model_dir, ["tiny-code"], path, limit=1, sandbox=UNSAFE)
    evaluate(model_dir, ["tiny-code"], path, limit=2)
    rescored(path)
    events = sqlite3.connect(path).execute("SELECT kind, detail FROM events ORDER BY id").fetchall()
    recorded = [
        json.loads(detail)["sandbox"]["engine"] for kind, detail in events if kind in ("generating", "rescoring")
    ]
    assert recorded == ["none", "namespaces", "namespaces"]


def test_bad_input(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with pytest.raises(UsageError, match="tiny-cod"):
        evaluate(model_dir, ["tiny-cod"], path)
    with pytest.raises(UsageError):
        evaluate(model_dir, ["tiny-code"], path, limit=0)
    with pytest.raises(CheckpointError):
        evaluate(tmp_path, ["tiny-code"], path)
    assert not path.exists()
    path.write_text("plain text, not a database\n" * 50)
    with pytest.raises(RunLogError):
        evaluate(model_dir, ["tiny-code"], path)


def test_a_model_without_a_chat_template_is_refused(model_dir: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model_dir.iterdir():
        if file.name != "chat_template.jinja":
            os.link(file, bare / file.name)
    with pytest.raises(BadInput, match="chat template"):
        evaluate(bare, ["tiny-code"], tmp_path / "runs.db", limit=1)


def test_command_line(model_dir: Path, tmp_path: Path) -> None:
    path, runner = str(tmp_path / "runs.db"), CliRunner()
    plan = runner.invoke(eval_, ["anything", "--suite", "tiny", "--limit", "3", "--dry-run", "--json"])
    assert [b["rows"] for b in json.loads(plan.stdout)["benches"]] == [3] * 6
    done = runner.invoke(
        eval_,
        [
            str(model_dir),
            "--bench",
            "tiny-math,tiny-text",
            "--log",
            path,
            "--limit",
            "2",
            "--json",
            "--ignore-guard",
            "zero",
        ],
    )
    assert [run["n"] for run in json.loads(done.stdout)["runs"]] == [2, 2]
    rows = [json.loads(line) for line in runner.invoke(log_group, ["export", path]).stdout.splitlines()]
    assert len(rows) == 4
    assert {"bench", "doc_id", "correct", "cause", "model", "run", "reply"} <= rows[0].keys()
    assert json.loads(runner.invoke(log_group, ["verify", path, "--json"]).stdout)["sound"] is True
    for arguments in (
        ["m"],
        ["m", "--bench", "x", "--suite", "tiny"],
        ["http://localhost:1", "--suite", "tiny"],
        ["http://localhost:1", "--suite", "tiny", "--log", path, "--engine", "trimoe"],
        ["m", "--suite", "tiny"],
    ):
        assert isinstance(runner.invoke(eval_, arguments).exception, UsageError)
