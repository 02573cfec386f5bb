"""Prompts that the model answers itself: greedy, kept, resumed, replayed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trimoe.calibrate.engine import calibrate
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.text import replies
from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.calibrate.text.rendering import prompt_ids, tokenizer_of
from trimoe.calibrate.text.replies import BATCH, path_beside
from trimoe.calibrate.text.tokenise import tokenise
from trimoe.errors import BadInput, CalibrationError, CheckpointError, MissingPrerequisite
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.generate import Generator

TOKENS = 12
QUESTIONS = [f"What is {i} and {'x' * i}?" for i in range(BATCH + 3)]


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """A set of two classes: own prompts, and two of them again with a longer answer beside a plain text."""
    return write_set(tmp_path)


def write_set(tmp_path: Path) -> Path:
    """The answers of the set take three batches."""
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    (tmp_path / "t.jsonl").write_text('{"text": "plain text of some length"}\n')
    path = tmp_path / "set.yaml"
    path.write_text(
        f"""
name: asked
classes:
  generic_a: [{{kind: prompts, path: q.jsonl, new_tokens: {TOKENS}}}]
  generic_b:
    - {{kind: prompts, path: q.jsonl, limit: 2, new_tokens: {2 * TOKENS}}}
    - {{kind: jsonl, path: t.jsonl}}
"""
    )
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def windows(model: Path, chosen: Path, kept: Path | None) -> Any:
    return tokenise(open_checkpoint(model), CalibrationSet.load(chosen), 4, replies=kept)


def test_replies_are_the_models_own_greedy_ones(random_model: Path, chosen: Path, tmp_path: Path) -> None:
    """Against an argmax loop over plain forward passes, one prompt at a time, without padding or cache."""
    from transformers import AutoModelForCausalLM

    found = windows(random_model, chosen, tmp_path / "r.jsonl")
    rows = rows_of(tmp_path / "r.jsonl")
    assert [r["prompt"] for r in rows] == [*QUESTIONS, *QUESTIONS[:2]]
    tokenizer = tokenizer_of(random_model)
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval()
    stops = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end>")}
    for row in (rows[0], rows[BATCH - 1], rows[-1]):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        reply: list[int] = []
        while len(reply) < (TOKENS if row is not rows[-1] else 2 * TOKENS) and not (stops & set(reply)):
            with torch.no_grad():
                reply.append(int(model(torch.tensor([ids + reply])).logits[0, -1].argmax()))
        assert row["reply_tokens"] == reply
        assert row["finish_reason"] == ("stop" if stops & set(reply) else "length")
        document = next(w for w in found.windows if w.tokens.tolist() == ids + reply)
        assert document.counted.all()
    assert len(found.windows) == len(rows) + 1


def test_calibration_records_the_replies(random_model: Path, chosen: Path, tmp_path: Path) -> None:
    stats = calibrate(random_model, chosen, tmp_path / "a.stats")
    calibrate(random_model, chosen, tmp_path / "b.stats")
    assert (tmp_path / "a.stats").read_bytes() == (tmp_path / "b.stats").read_bytes()
    kept = path_beside(tmp_path / "a.stats")
    assert kept.read_bytes() == path_beside(tmp_path / "b.stats").read_bytes()
    assert not list(tmp_path.glob(".*"))
    from trimoe.io.canonical import sha256_file

    about = ExpertStats.load(tmp_path / "a.stats").metadata["replies"]
    rows = rows_of(kept)
    assert about == {
        "sha256": sha256_file(kept),
        "rows": len(QUESTIONS) + 2,
        "reply_tokens": sum(len(r["reply_tokens"]) for r in rows),
        "stopped": sum(r["finish_reason"] == "stop" for r in rows),
    }
    assert stats.metadata["documents"] == {"generic_a": len(QUESTIONS), "generic_b": 3}


@pytest.fixture(scope="module")
def undisturbed(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of replies of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    windows(random_model, write_set(folder), folder / "r.jsonl")
    return (folder / "r.jsonl").read_bytes()


class TestResume:
    @pytest.fixture
    def whole(self, undisturbed: bytes, tmp_path: Path) -> bytes:
        """The same beside the set of this test."""
        (tmp_path / "whole.jsonl").write_bytes(undisturbed)
        return undisturbed

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Sizes of the batches that are generated."""
        sizes: list[int] = []
        original = Generator.reply

        def reply(self: Generator, prompts: Any, tokens: int) -> Any:
            sizes.append(len(prompts))
            return original(self, prompts, tokens)

        monkeypatch.setattr(Generator, "reply", reply)
        return sizes

    def test_what_is_there_is_not_made_again(
        self, random_model: Path, chosen: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object) -> None:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(replies, "Generator", refuse)
        monkeypatch.setattr(replies, "require_memory", refuse)
        windows(random_model, chosen, tmp_path / "whole.jsonl")
        assert (tmp_path / "whole.jsonl").read_bytes() == whole

    @pytest.mark.parametrize("after", [0, 1, 2])
    @pytest.mark.parametrize("torn", [False, True])
    def test_a_killed_run_goes_on_with_the_same_bytes(
        self,
        random_model: Path,
        chosen: Path,
        tmp_path: Path,
        whole: bytes,
        counted: list[int],
        monkeypatch: pytest.MonkeyPatch,
        after: int,
        torn: bool,
    ) -> None:
        kept = tmp_path / "r.jsonl"
        with monkeypatch.context() as patch:
            original = Generator.reply

            def fail(self: Generator, prompts: Any, tokens: int) -> Any:
                if len(counted) == after:
                    raise KeyboardInterrupt
                return original(self, prompts, tokens)

            patch.setattr(Generator, "reply", fail)
            with pytest.raises(KeyboardInterrupt):
                windows(random_model, chosen, kept)
        assert not kept.exists()
        journal = tmp_path / ".r.jsonl.journal"
        if torn:
            with journal.open("ab") as out:
                out.write(whole.split(b"\n")[0][:40])
        counted.clear()
        windows(random_model, chosen, kept)
        assert counted == [BATCH, 3, 2][after:]
        assert kept.read_bytes() == whole
        assert not journal.exists()

    def test_other_prompts_keep_what_they_share(
        self, random_model: Path, chosen: Path, tmp_path: Path, whole: bytes, counted: list[int]
    ) -> None:
        chosen.write_text(chosen.read_text().replace("limit: 2", "limit: 3"))
        windows(random_model, chosen, tmp_path / "whole.jsonl")
        assert counted == [3]
        assert len(rows_of(tmp_path / "whole.jsonl")) == len(QUESTIONS) + 3
        assert (tmp_path / "whole.jsonl").read_bytes().startswith(whole[: whole.index(b"\n", len(whole) // 2)])

    def test_another_model_answers_itself(
        self, make_model: Callable[..., Path], chosen: Path, tmp_path: Path, whole: bytes, counted: list[int]
    ) -> None:
        windows(make_model(seed=77), chosen, tmp_path / "whole.jsonl")
        assert sum(counted) == len(QUESTIONS) + 2
        assert {r["model"] for r in rows_of(tmp_path / "whole.jsonl")} != {json.loads(whole.split(b"\n")[0])["model"]}

    def test_a_damaged_file_is_named(self, random_model: Path, chosen: Path, tmp_path: Path, whole: bytes) -> None:
        lines = whole.split(b"\n")
        (tmp_path / "whole.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:50], *lines[2:]]))
        with pytest.raises(BadInput, match=r"line 2 of .*whole\.jsonl is damaged"):
            windows(random_model, chosen, tmp_path / "whole.jsonl")


def test_a_sampler_in_the_checkpoint_does_not_matter(random_model: Path, chosen: Path, tmp_path: Path) -> None:
    sampled = tmp_path / "model"
    shutil.copytree(random_model, sampled)
    settings = json.loads((sampled / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 1.5, "repetition_penalty": 3.0, "num_beams": 1, "top_k": 5}
    (sampled / "generation_config.json").write_text(json.dumps(settings))
    windows(random_model, chosen, tmp_path / "a.jsonl")
    windows(sampled, chosen, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_replies_made_elsewhere_need_no_memory(
    random_model: Path, chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "available_memory", lambda: 100_000)
    with pytest.raises(MissingPrerequisite, match="does not fit into memory") as caught:
        windows(random_model, chosen, tmp_path / "r.jsonl")
    assert "replies: FILE" in caught.value.remedy
    made = [{"prompt": q, "reply": f"It is {i}.", "finish_reason": "stop"} for i, q in enumerate(QUESTIONS)]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    chosen.write_text(chosen.read_text().replace("new_tokens", "replies: made.jsonl, new_tokens"))
    found = windows(random_model, chosen, tmp_path / "r.jsonl")
    tokenizer = tokenizer_of(random_model)
    for i, window in enumerate(found.windows[: len(QUESTIONS)]):
        text = tokenizer.decode(window.tokens).replace(" ", "")
        assert text.endswith(f"<turn>assistant\nItis{i}.<end>"), text
    assert "replies" not in found.origin
    assert found.origin["sources"]["generic_a"][0]["replies"] == "made.jsonl"
    assert not (tmp_path / "r.jsonl").exists()


def test_a_plan_needs_no_replies(random_model: Path, chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "available_memory", lambda: 0)
    planned = tokenise(open_checkpoint(random_model), CalibrationSet.load(chosen), 4, plan_only=True)
    lengths = [len(w.tokens) for w in planned.windows]
    tokenizer = tokenizer_of(random_model)
    asked = [len(prompt_ids([{"role": "user", "content": q}], True, tokenizer)) for q in QUESTIONS]
    assert lengths[: len(QUESTIONS)] == [n + TOKENS for n in asked]
    assert lengths[len(QUESTIONS) : -1] == [n + 2 * TOKENS for n in asked[:2]]


def test_what_cannot_answer(make_model: Callable[..., Path], random_model: Path, chosen: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="has no stored reply"):
        windows(random_model, chosen, None)
    with pytest.raises(CalibrationError, match="no chat template"):
        windows(make_model(template=None), chosen, tmp_path / "r.jsonl")
    with pytest.raises(CalibrationError, match="do not fit the model's context"):
        windows(make_model(max_position_embeddings=40), chosen, tmp_path / "r.jsonl")
    broken = make_model(seed=3)
    info = next(t.info for t in open_checkpoint(broken).expert_tensors.values() if t.role == "down")
    with info.file.open("r+b") as handle:
        handle.seek(info.start)
        handle.write(b"\x00\x00\xc0\x7f" * (info.nbytes // 4))
    with pytest.raises(CheckpointError, match="not finite"):
        windows(broken, chosen, tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_windows_beyond_the_models_context_are_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model(max_position_embeddings=64)
    (tmp_path / "t.txt").write_text("x" * 200)
    (tmp_path / "set.yaml").write_text("name: t\nclasses: {a: [{kind: text, path: t.txt}]}\n")
    with pytest.raises(CalibrationError, match="a window of 200 tokens is longer than the model's context"):
        windows(model, tmp_path / "set.yaml", None)
    (tmp_path / "set.yaml").write_text("name: t\nwindow: 64\nclasses: {a: [{kind: text, path: t.txt}]}\n")
    assert len(windows(model, tmp_path / "set.yaml", None).windows) == 4
