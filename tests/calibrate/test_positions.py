"""Kinds of position: marked where a reply is predicted, summed apart in the same pass, chosen by recipes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimoe.calibrate.engine import Options, measure
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import BY_KIND, kind_field
from trimoe.calibrate.stats.merge import merge
from trimoe.calibrate.stats.positions import REPLIES, kinds_of, of_positions
from trimoe.calibrate.text.rendering import documents_of
from trimoe.calibrate.text.sources import RawReply, SourceText
from trimoe.calibrate.text.windows import OWN, POSITIONS, PROMPT, RECORDED, TEXT, Document, Window, Windows, windows_of
from trimoe.choose.choose import choose
from trimoe.choose.narrow import neuron_scores
from trimoe.errors import StatsError
from trimoe.model.checkpoint import open_checkpoint

USER: Any = {"role": "user", "content": "ab"}
REPLY: Any = {"role": "assistant", "content": "xyz"}


def marked(text: SourceText, tokenizer: Any) -> tuple[str, list[str]]:
    """The whole text, and for every position that is part of a reply by its kind the token predicted there."""
    document = documents_of({"c": [text]}, tokenizer)[0]
    words = tokenizer.convert_ids_to_tokens(list(document.tokens))
    kinds = document.positions or bytes(len(words))
    following = [(kind, words[at + 1]) for at, kind in enumerate(kinds[:-1])]
    assert kinds[-1] in (PROMPT, TEXT)
    return "".join(words), [f"{POSITIONS[kind]}:{word}" for kind, word in following if kind != PROMPT]


def test_positions_are_those_that_predict_the_reply(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    recorded = ["recorded:x", "recorded:y", "recorded:z", "recorded:<end>"]
    _, found = marked(SourceText((USER, REPLY)), tokenizer)
    assert found[:4] == recorded
    _, found = marked(SourceText((USER, REPLY, USER)), tokenizer)
    assert found[:4] == recorded
    assert not any(word.endswith((":a", ":b")) for word in found)
    asked = SourceText((USER,), asks=9, reply=RawReply("xy", ended=True))
    assert marked(asked, tokenizer)[1] == ["own:x", "own:y", "own:<end>"]
    assert marked(replace(asked, asks=None), tokenizer)[1] == ["recorded:x", "recorded:y", "recorded:<end>"]
    assert marked(SourceText((USER,)), tokenizer)[1] == []
    assert documents_of({"c": [SourceText("plain")]}, tokenizer)[0].positions is None


@pytest.fixture(scope="module")
def windows() -> Windows:
    """Documents of every kind in two classes, several windows long, of different weights and partly counted."""
    rng = np.random.default_rng(0)

    def document(name: str, kinds: list[int], weight: float = 1.0) -> Document:
        counted = tuple((rng.random(len(kinds)) < 0.9).tolist())
        return Document(name, tuple(rng.integers(3, 90, len(kinds)).tolist()), weight, counted, positions=bytes(kinds))

    return windows_of(
        [
            document("a", [PROMPT] * 20 + [OWN] * 30),
            document("a", [PROMPT] * 11 + [RECORDED] * 17 + [PROMPT] * 3, 2.0),
            document("b", [TEXT] * 40),
            document("b", [PROMPT] * 15 + [OWN] * 12, 3.0),
        ],
        24,
        3,
    )


@pytest.fixture(scope="module")
def stats(random_model: Path, windows: Windows) -> ExpertStats:
    return measure(open_checkpoint(random_model), windows, Options(shards=3, batch_tokens=100), "t")


def test_each_kind_equals_a_run_that_counts_only_it(random_model: Path, windows: Windows, stats: ExpertStats) -> None:
    assert kinds_of(stats) == ("prompt", "own", "recorded", "text")
    for kind, name in enumerate(POSITIONS):
        marks = [np.zeros(len(w.tokens), np.uint8) if w.positions is None else w.positions for w in windows.windows]
        pairs = zip(windows.windows, marks, strict=True)
        only = [replace(w, counted=w.counted & (mark == kind), positions=None) for w, mark in pairs]
        classes = sorted({w.category for w in only if w.counted.any()})  # a class without tokens is refused
        kept = tuple(replace(w, category=classes.index(w.category)) for w in only if w.category in classes)
        part = replace(windows, windows=kept, classes=tuple(windows.classes[i] for i in classes))
        alone = measure(open_checkpoint(random_model), part, Options(shards=3, batch_tokens=100), "t")
        for field in BY_KIND:
            for prefix in ("", "shard00/", "shard02/"):
                have = stats.fields[prefix + kind_field(name, field)][classes]
                np.testing.assert_allclose(have, alone.fields[prefix + field], rtol=1e-6, err_msg=f"{name} {field}")


def test_kinds_add_up_and_all_of_them_change_nothing(stats: ExpertStats) -> None:
    for field in ("tc", "tokens", "reap_sum", "wnsq"):
        total = sum(stats.field(kind_field(kind, field)) for kind in POSITIONS)
        np.testing.assert_allclose(total, stats.field(field), rtol=1e-12)
    assert of_positions(stats, POSITIONS) is stats
    assert of_positions(stats, ()) is stats
    replies = of_positions(stats, REPLIES)
    assert (replies.field("tc") == stats.field("tc") - stats.field("prompt/tc")).all()
    assert (replies.field("shard01/tc") == stats.field("shard01/tc") - stats.field("shard01/prompt/tc")).all()
    assert "logit_sum" not in replies.fields


def test_a_recipe_for_replies_ranks_by_their_sums(stats: ExpertStats) -> None:
    made = choose(stats, recipe="reap-replies", keep=5)
    replies = [sum(stats.field(kind_field(kind, name)) for kind in REPLIES).sum(0) for name in ("reap_sum", "tc")]
    score = np.divide(*replies, out=np.zeros_like(replies[0]), where=replies[1] > 0)
    for layer, gone in made.drop.items():
        assert set(gone) == set(np.argsort(score[layer], kind="stable")[:3].tolist())
    assert choose(stats, recipe="reap", keep=5, positions="replies").drop == made.drop
    assert (
        choose(stats, recipe="reap-replies", keep=5, positions="all").drop == choose(stats, recipe="reap", keep=5).drop
    )


def test_statistics_that_cannot_say_are_refused(stats: ExpertStats) -> None:
    metadata = {key: value for key, value in stats.metadata.items() if key != "positions"}
    with pytest.raises(StatsError, match="do not tell prompts from replies"):
        choose(replace(stats, metadata=metadata), recipe="reap-replies", keep=5)
    with pytest.raises(StatsError, match="class a has no position of the kinds text"):
        of_positions(stats, ["text"])


def test_plain_text_has_totals_only_and_merges_with_replies(random_model: Path, windows: Windows) -> None:
    plain = windows_of([Document("b", tuple(range(3, 80)))], 24, 3)
    one = measure(open_checkpoint(random_model), plain, Options(shards=3), "t")
    assert not any("text/" in name for name in one.fields)
    assert of_positions(one, REPLIES) is one
    two = measure(open_checkpoint(random_model), windows, Options(shards=3), "t")
    merged = merge([one, two])
    at, own = merged.classes.index("b"), two.classes.index("b")
    assert (merged.field("text/tc")[at] == one.field("tc")[0] + two.field("text/tc")[own]).all()
    assert merged.metadata["positions"]["b"]["text"] == 77 + two.metadata["positions"]["b"]["text"]


def test_neurons_are_measured_where_the_class_replies(random_model: Path, windows: Windows) -> None:
    options = Options(shards=3, batch_tokens=100, neurons=True)
    prompts_only = replace(windows.windows[0], category=2, positions=np.full(len(windows.windows[0].tokens), PROMPT))
    every = replace(windows, windows=(*windows.windows, prompts_only), classes=("a", "b", "c"))
    assert every.answered == (True, True, False)
    stats = measure(open_checkpoint(random_model), every, options, "t")

    def without_prompts(window: Window) -> Window:
        marks = np.zeros(len(window.tokens), np.uint8) if window.positions is None else window.positions
        return replace(window, counted=window.counted & ((marks != PROMPT) | (window.category == 2)), positions=None)

    only = replace(every, windows=tuple(map(without_prompts, every.windows)))
    alone = measure(open_checkpoint(random_model), only, options, "t")
    np.testing.assert_allclose(stats.wide["neuron_contrib"], alone.wide["neuron_contrib"], rtol=1e-6)
    assert not np.allclose(stats.wide["neuron_act"], alone.wide["neuron_act"])
    # per token of a reply: a class counts by what its neurons do, not by how long its prompts are
    weights = dict.fromkeys(every.classes, 1.0)
    np.testing.assert_allclose(neuron_scores(stats, weights), neuron_scores(alone, weights), rtol=1e-6)
