"""Statistics measured by llama.cpp on a GGUF file against those of the checkpoint that it was converted from."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.llamacpp import llamacpp
from trimoe.calibrate.engine import calibrate
from trimoe.calibrate.gguf.tokenizer import GgufTokenizer
from trimoe.calibrate.state import state_path, status
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.text.rendering import end_of_turn, prompt_ids, tokenizer_of
from trimoe.calibrate.text.replies import path_beside
from trimoe.choose.choose import choose
from trimoe.errors import UsageError
from trimoe.llamacpp.tools import LlamaCpp, run_converter
from trimoe.model import tiny
from trimoe.model.gguf.model import open_gguf_model

__all__ = ["llamacpp"]

SET = """
name: work
window: 192
classes:
  generic_math: [{kind: tiny, domain: math, count: 12}]
  generic_story: [{kind: tiny, domain: story, count: 12}]
  targeted_code: [{kind: tiny, domain: code, count: 24}]
"""
TEXTS = (
    "def f(x):\n    return x + 1\n",
    "  Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich — naïve 東京 🙂",
    "",
    "12 + 345 = 357; (a*b) != c\t\ttabs",
)


@pytest.fixture(scope="module")
def model(llamacpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as float32 GGUF."""
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_converter(llamacpp, tiny.path(), out, "f32")
    return out


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "work.yaml"
    path.write_text(SET)
    return path


@pytest.fixture(scope="module")
def both(model: Path, work: Path) -> tuple[ExpertStats, ExpertStats]:
    """Of the checkpoint and of the file, with everything that can be measured."""
    out = work.parent
    wide: dict[str, Any] = {"coactivation": True, "neurons": True}
    first = calibrate(tiny.path(), work, out / "checkpoint.st", dtype="float32", recon=0, **wide)
    return first, calibrate(model, work, out / "gguf.st", **wide)


def off(one: np.ndarray, two: np.ndarray) -> float:
    """Sum of absolute differences by sum of values."""
    return float(np.abs(one - two).sum() / np.abs(one).sum())


def totals(stats: ExpertStats) -> list[str]:
    return [name for name in stats.fields if not name.startswith("shard")]


def test_equals_the_checkpoints(both: tuple[ExpertStats, ExpertStats]) -> None:
    first, second = both
    assert first.metadata["set"] == second.metadata["set"]  # the same token ids
    assert first.fields.keys() == second.fields.keys()
    assert first.wide.keys() == second.wide.keys()
    for name in totals(first):
        assert off(first.field(name), second.field(name)) < 1e-3, name
    for name, array in first.wide.items():
        assert off(array, second.wide[name]) < 1e-3, name
    for name in ("shard00/wnorm", "shard07/tc"):
        assert np.abs(first.field(name) - second.field(name)).sum() <= 1e-3 * max(1.0, first.field(name).sum())
    for key in ("tokens", "windows", "documents", "moe_layers", "merge", "document_hashes"):
        assert first.metadata[key] == second.metadata[key], key


@pytest.mark.parametrize("recipe", ["v4", "reap", "v5-coder"])
def test_gives_the_checkpoints_maps(both: tuple[ExpertStats, ExpertStats], recipe: str) -> None:
    first, second = (choose(stats, recipe=recipe, keep=24) for stats in both)
    assert first.drop == second.drop


def test_padding_and_batches_do_not_matter(model: Path, work: Path, both: Any, tmp_path: Path) -> None:
    small = calibrate(model, work, tmp_path / "small.st", batch_tokens=48)  # windows are longer: sent in parts
    for name in totals(both[1]):
        assert off(both[1].field(name), small.field(name)) < 1e-3, name


def test_a_killed_run_resumes_with_the_same_bytes(model: Path, work: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.st", tmp_path / "part.st"
    calibrate(model, work, whole, batch_tokens=192)
    code = (
        "import sys; from trimoe.calibrate.gguf import run; run.SAVE_SECONDS = 0\n"
        "from trimoe.calibrate.engine import calibrate; calibrate(*sys.argv[1:4], batch_tokens=192)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(model), str(work), str(part)])
    sums = state_path(part) / "sums.bin"
    while not sums.exists() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    found = status(part)
    assert found["state"] == "unfinished"
    assert 0 < found["batches_finished"] < found["batches"]
    with pytest.raises(UsageError, match="other settings"):
        calibrate(model, work, part, batch_tokens=256)
    calibrate(model, work, part, batch_tokens=192)
    assert part.read_bytes() == whole.read_bytes()
    assert not state_path(part).exists()


def test_the_tokenizer_equals_the_checkpoints(llamacpp: LlamaCpp, model: Path) -> None:
    pytest.importorskip("torch")
    theirs, ours = tokenizer_of(tiny.path()), GgufTokenizer(open_gguf_model(model), llamacpp)
    try:
        chat = [{"role": "user", "content": "Say <turn|> twice."}]
        for text in TEXTS:
            for special in (False, True):
                want = list(theirs(text, add_special_tokens=special)["input_ids"])
                # The bundled tokenizer adds no BOS to plain text, although its configuration names one; llama.cpp does.
                opening = [theirs.bos_token_id] if special else []
                assert ours(text, add_special_tokens=special)["input_ids"] == opening + want, text
        for thinking in (None, True, False):
            assert prompt_ids(chat, thinking, ours) == prompt_ids(chat, thinking, theirs)
        assert end_of_turn(ours) == end_of_turn(theirs)
        ids = theirs(TEXTS[0])["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    finally:
        ours.close()


def test_the_model_answers_prompts_itself(model: Path, tmp_path: Path) -> None:
    """Replies equal those of the checkpoint in float32, whose ties are no closer than llama.cpp's rounding."""
    prompts = ("What is 3 + 4?", "Write a function that adds 2.", "Hello!")
    (tmp_path / "my-prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    work = tmp_path / "work.yaml"
    work.write_text("name: w\nclasses:\n  generic_code: [{kind: prompts, path: my-prompts.jsonl, new_tokens: 24}]\n")
    rows = []
    for source, out in ((tiny.path(), tmp_path / "one.st"), (model, tmp_path / "two.st")):
        stats = calibrate(source, work, out)
        assert stats.metadata["replies"]["rows"] == 3
        rows.append([json.loads(line) for line in path_beside(out).read_text().splitlines()])
    keys = ("prompt", "reply", "reply_tokens", "finish_reason")
    assert [[row[key] for key in keys] for row in rows[0]] == [[row[key] for key in keys] for row in rows[1]]
    assert rows[0][0]["model"] != rows[1][0]["model"]


def test_settings_of_a_checkpoints_run_are_refused(model: Path, work: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="on the CPU"):
        calibrate(model, work, tmp_path / "out.st", device="cuda")
    with pytest.raises(UsageError, match="layer by layer"):
        calibrate(model, work, tmp_path / "out.st", start_at=2)
    assert os.listdir(tmp_path) == []
    for recon in ({"recon": 100}, {"sequential": 16}):
        with pytest.raises(UsageError, match="cannot be reconstructed"):
            calibrate(model, work, tmp_path / "s", **recon)
