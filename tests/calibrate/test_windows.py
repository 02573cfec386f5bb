"""From texts to tokens to windows: templates, raw replies, masks, long documents."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimoe.calibrate.text.calibration import Document, documents_of, windows_of
from trimoe.calibrate.text.rendering import end_of_turn, prompt_ids
from trimoe.calibrate.text.sources import RawReply, SourceText
from trimoe.errors import CalibrationError

QUESTION = ({"role": "user", "content": "Hi?"},)
CHAT = (*QUESTION, {"role": "assistant", "content": "Yes."})
THINKING = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'].split('~')[-1] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{{ '~' if enable_thinking else '' }}{% endif %}"
)
"""Drops what the assistant thought (before ~) from finished turns, as the templates of reasoning models do."""


@pytest.fixture
def tok(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer(THINKING)


def render(tok: Any, text: SourceText) -> tuple[str, Document]:
    document = documents_of({"a": [text]}, tok)[0]
    return tok.decode(document.tokens).replace(" ", ""), document


def test_a_chat_is_rendered_by_the_template(tok: Any) -> None:
    assert render(tok, SourceText(CHAT))[0] == "<turn>user\nHi?<end>\n<turn>assistant\nYes.<end>\n"
    assert render(tok, SourceText(QUESTION))[0] == "<turn>user\nHi?<end>\n<turn>assistant\n"
    assert render(tok, SourceText(QUESTION, thinking=True))[0] == "<turn>user\nHi?<end>\n<turn>assistant\n~"


def test_a_raw_reply_is_not_touched_by_the_template(tok: Any) -> None:
    """Rendered as a finished turn it would lose what was thought."""
    finished = SourceText((*QUESTION, {"role": "assistant", "content": "hm~Yes."}))
    assert "hm" not in render(tok, finished)[0]
    raw = SourceText(QUESTION, reply=RawReply("hm~Yes.", ended=True))
    assert render(tok, raw)[0] == "<turn>user\nHi?<end>\n<turn>assistant\nhm~Yes.<end>"
    cut = SourceText(QUESTION, reply=RawReply("hm~Yes.", ended=False))
    assert render(tok, cut)[0].endswith("hm~Yes.")
    short = SourceText(QUESTION, reply=RawReply("hm~Yes.", ended=True, limit=3))
    assert render(tok, short)[0].endswith("assistant\nhm~")


def test_reply_tokens_win_over_the_reply_text(tok: Any) -> None:
    ids = tuple(prompt_ids(QUESTION, None, tok))
    text = SourceText(QUESTION, reply=RawReply("Yes.", ended=True, tokens=(60, 61, 5)))
    assert render(tok, text)[1].tokens == (*ids, 60, 61, 5)


def test_the_end_of_the_turn_is_what_the_template_says(tok: Any, make_tokenizer: Callable[..., Any]) -> None:
    assert end_of_turn(tok) == [tok.convert_tokens_to_ids("<end>")]
    bare = make_tokenizer("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    assert end_of_turn(bare) == [tok.convert_tokens_to_ids("|")]
    last_stays_open = (
        "{% for m in messages %}<turn>{{ m['content'] }}"
        "{% if not loop.last or m['role'] == 'user' %}<end>{% endif %}{% endfor %}"
    )
    assert end_of_turn(make_tokenizer(last_stays_open)) == [tok.convert_tokens_to_ids("<end>")]
    assert end_of_turn(make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")) == []


def test_plain_text_and_stripped_chats(tok: Any) -> None:
    assert render(tok, SourceText("ab"))[0] == "ab"
    stripped = SourceText(QUESTION, strip=True, reply=RawReply("<turn>x<end>", ended=True))
    assert render(tok, stripped)[0] == "Hi?<unk>x"  # this vocabulary has no empty line; unknown text is text


def test_stripping_keeps_the_bos_that_the_tokenizer_adds() -> None:
    from transformers import AutoTokenizer

    from trimoe.model.tiny import path

    tok = AutoTokenizer.from_pretrained(path())
    document = documents_of({"a": [SourceText(QUESTION, strip=True)]}, tok)[0]
    assert list(document.tokens) == tok("Hi?")["input_ids"]
    with_marker = documents_of({"a": [SourceText(QUESTION, strip=True, reply=RawReply("<turn|>a", True))]}, tok)[0]
    assert not set(with_marker.tokens[1:]) & set(tok.all_special_ids)


def test_bad_templates_and_tokens(tok: Any, make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(CalibrationError, match="no chat template"):
        documents_of({"a": [SourceText(CHAT)]}, make_tokenizer(None))
    with pytest.raises(CalibrationError, match="cannot render a chat"):
        documents_of({"a": [SourceText(CHAT)]}, make_tokenizer("{{ raise_exception('roles must alternate') }}"))
    for unknown in ("<nope>", "two words"):
        with pytest.raises(CalibrationError, match="is not one token"):
            documents_of({"a": [SourceText("ab", count_before=unknown)]}, tok)
    with pytest.raises(CalibrationError, match=r"x\.txt of class a has no tokens"):
        documents_of({"a": [SourceText("", where="x.txt")]}, tok)
    with pytest.raises(CalibrationError, match="prompt 1 of class a has no stored reply"):
        documents_of({"a": [SourceText(QUESTION, asks=5, where="prompt 1")]}, tok)


def test_the_mask_counts_positions_that_predict_the_token(tok: Any) -> None:
    document = render(tok, SourceText(CHAT, count_before="<end>"))[1]
    end = tok.convert_tokens_to_ids("<end>")
    assert document.counted is not None
    assert [i for i, c in enumerate(document.counted) if c] == [
        i - 1 for i, t in enumerate(document.tokens) if t == end
    ]
    # across a window border: the last position of a window predicts the first token of the next
    at = document.tokens.index(end)
    windows = windows_of([document], at, 4).windows
    assert windows[0].counted.sum() == 1
    assert windows[0].counted[-1]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 99), min_size=1, max_size=40)), min_size=1),
    st.integers(2, 12),
)
def test_windows_hold_every_token_once_and_no_two_documents(drawn: list[tuple[str, list[int]]], window: int) -> None:
    documents = [Document(c, tuple(t)) for c, t in drawn]
    found = windows_of(documents, window, 4)
    for number, document in enumerate(documents):
        own = [w for w in found.windows if w.document == number]
        assert [t for w in own for t in w.tokens.tolist()] == list(document.tokens)
        assert all(len(w.tokens) <= window for w in own)
        assert len({w.shard for w in own}) == 1
        assert {found.classes[w.category] for w in own} == {document.category}
    assert found.documents == {c: sum(d.category == c for d in documents) for c in found.classes}


class TestLongDocuments:
    documents = (
        Document("a", tuple(range(10)), where="first"),
        Document("a", tuple(range(25)), where="second"),
        Document("b", tuple(range(11)), counted=(False,) * 10 + (True,)),
    )

    def test_split_is_the_default_and_is_said(self) -> None:
        found = windows_of(self.documents, 10, 4)
        assert [len(w.tokens) for w in found.windows] == [10, 10, 10, 5, 10, 1]
        assert found.origin["long_documents"] == {"split": {"a": 1, "b": 1}}
        assert found.origin["cut_tokens"] == {}

    def test_cut_counts_what_is_lost(self) -> None:
        found = windows_of(self.documents, 10, 4, "cut")
        assert [len(w.tokens) for w in found.windows] == [10, 10, 10]
        assert found.origin["cut_tokens"] == {"a": 15, "b": 1}
        assert found.origin["repeated_documents"] == {"a": 1}  # cut, the two of class a are the same
        assert found.origin["unmeasured_documents"] == {"b": 1}
        assert found.set_hash != windows_of(self.documents, 10, 4).set_hash

    def test_refuse_names_the_document(self) -> None:
        with pytest.raises(CalibrationError, match="second of class a is longer than the window") as caught:
            windows_of(self.documents, 10, 4, "refuse")
        assert caught.value.actual == "25 (2 documents are too long)"
        assert len(windows_of(self.documents, 25, 4, "refuse").windows) == 3


def test_the_hash_is_of_what_is_measured() -> None:
    one = Document("a", (1, 2, 3))
    base = windows_of([one], 8, 4).set_hash
    assert windows_of([Document("a", (1, 2, 3), where="elsewhere", item="he/1")], 8, 4).set_hash == base
    for other in (
        Document("b", (1, 2, 3)),
        Document("a", (1, 2, 4)),
        Document("a", (1, 2, 3), 2.0),
        Document("a", (1, 2, 3), counted=(True, True, False)),
    ):
        assert windows_of([other], 8, 4).set_hash != base
    assert windows_of([one], 9, 4).set_hash != base
    assert Document("b", (1, 2, 3), 2.0).content_hash == one.content_hash != Document("a", (1, 2)).content_hash
