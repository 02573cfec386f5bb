"""The set file: what is accepted, what is refused and in which words."""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from trimoe.calibrate.text.calibration import CalibrationSet, shipped
from trimoe.calibrate.text.sources import KINDS, Source, SourceText
from trimoe.calibrate.text.sources.prompts import builtin_prompts
from trimoe.errors import CalibrationError, Refused, TrimoeError


def load(folder: Path, classes: str, head: str = "name: t\n") -> CalibrationSet:
    (folder / "set.yaml").write_text(f"{head}classes:\n{classes}")
    return CalibrationSet.load(folder / "set.yaml")


def texts(folder: Path, source: str) -> list[SourceText]:
    return load(folder, f"  a:\n    - {{{source}}}\n").texts()["a"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name: t\nclasses: {}\n", "classes"),
        ("name: t\nclasses: {a: []}\n", "class a has no source"),
        ("name: t\nclasses: {' a': [{kind: text, path: x}]}\n", "spaces around"),
        ("name: t\nwindow: 1\nclasses: {a: [{kind: text, path: x}]}\n", "window"),
        ("name: t\nwindow: '64'\nclasses: {a: [{kind: text, path: x}]}\n", "window"),
        ("name: t\nlong_documents: drop\nclasses: {a: [{kind: text, path: x}]}\n", "long_documents"),
        ("name: t\nwindows: 64\nclasses: {a: [{kind: text, path: x}]}\n", "windows"),
        ("name: t\nclasses: {a: [{kind: text, pth: x}]}\n", "pth"),
        ("name: t\nclasses: {a: [{kind: txt, path: x}]}\n", "kind"),
        ("name: t\nclasses: {a: [{kind: text, path: x, weight: 0}]}\n", "weight"),
        ("name: t\nclasses: {a: [{kind: text, path: x, weight: true}]}\n", "weight"),
        ("name: t\nclasses: {a: [{kind: text, path: x, weight: .inf}]}\n", "weight"),
        ("name: t\nclasses: {a: [{kind: text, path: x, limit: 0}]}\n", "limit"),
        ("name: t\nclasses: {a: [{kind: text, path: x, limit: true}]}\n", "limit"),
        ("name: t\nclasses: {a: [{kind: text, path: x, skip: -1}]}\n", "skip"),
        ("name: t\nclasses: {a: [{kind: jsonl, path: x, fields: {}}]}\n", "exactly one of text, prompt, messages"),
        ("name: t\nclasses: {a: [{kind: jsonl, path: x, fields: {text: t, prompt: p}}]}\n", "exactly one"),
        ("name: t\nclasses: {a: [{kind: jsonl, path: x, fields: {text: t, reply: p}}]}\n", "need prompt"),
        (
            "name: t\nclasses: {a: [{kind: jsonl, path: x, fields: {prompt: p, reply: r, completion: c}}]}\n",
            "not both",
        ),
        ("name: t\nclasses: {a: [{kind: prompts}]}\n", "exactly one of builtin, path"),
        ("name: t\nclasses: {a: [{kind: prompts, builtin: maths}]}\n", "builtin"),
        ("name: t\nclasses: {a: [{kind: prompts, path: p, fields: {text: t}}]}\n", "the model writes the reply"),
        ("name: t\nclasses: {a: [{kind: dataset}]}\n", "exactly one of path, id"),
        ("name: t\nclasses: {a: [{kind: dataset, id: openai/gsm8k}]}\n", "needs revision"),
        ("name: t\nclasses: {a: [{kind: dataset, id: openai/gsm8k, revision: main}]}\n", "40 hexadecimal digits"),
        ("name: t\nclasses: {a: [{kind: dataset, id: a/b/c, revision: main}]}\n", "OWNER/NAME"),
        ("name: t\nclasses: {a: [{kind: dataset, path: x, revision: main}]}\n", "belongs to id"),
        ("name: t\nclasses: {a: [{kind: lm-eval, path: x}]}\n", "bench"),
        ("name: t\nclasses: {a: [{kind: run-log, path: x}]}\n", "model"),
        ("name: t\nname: u\nclasses: {a: [{kind: text, path: x}]}\n", "given twice"),
        ("name: t\nclasses: {a: [{kind: text, path: x}], a: [{kind: text, path: y}]}\n", "given twice"),
        ("- 1\n", "set.yaml"),
        ("name: [\n", "YAML"),
        ("name: !!python/object:os.system x\n", "YAML"),
        ("name: 2020-13-45\n", "YAML"),
        ("name: !!float x\n", "YAML"),
        ("name: !!timestamp 9\n", "YAML"),
        ("name: " + "9" * 5000, "YAML"),
        ("[" * 5000, "YAML"),
        ("? [1]\n: 2\n", "YAML"),
    ],
)
def test_what_the_file_may_not_say(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(CalibrationError) as caught:
        CalibrationSet.load(tmp_path / "set.yaml")
    assert word in str(caught.value)


def test_a_damaged_file_is_refused_or_read(tmp_path: Path) -> None:
    """A stretch of the file is overwritten or removed: refused, or read as a set with classes and sources."""
    whole = bytearray(
        b"name: t\nwindow: 64\nclasses:\n  a: &x\n    - {kind: text, path: x.txt, weight: 2.5, limit: 3}\n"
        b"    - {kind: jsonl, path: 'y', fields: {prompt: q, reply: r}, only: {ok: true}}\n  b: *x\n"
    )
    outcomes = Counter[str]()
    for at, cut, new in product(range(len(whole)), (1, 3, 8), (b"", b"e", b"9", b":", b"\xff", b"\n")):
        (tmp_path / "set.yaml").write_bytes(whole[:at] + new + whole[at + cut :])
        try:
            found = CalibrationSet.load(tmp_path / "set.yaml")
        except CalibrationError:
            outcomes["refused"] += 1
            continue
        assert found.classes
        assert all(type(s) in KINDS and s.weight > 0 for sources in found.classes.values() for s in sources)
        outcomes["read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > 100, outcomes


@pytest.mark.parametrize(
    ("text", "where", "near"),
    [
        ("name: t\nclases: {a: [{kind: text, path: x}]}\n", "clases", "classes"),
        ("name: t\nclasses: {a: [{kind: text, path: x}], b: [{kind: text, pth: x}]}\n", "classes.b[0].pth", "path"),
        ("name: t\nclasses: {a: [{kind: jsonl, path: x, fields: {promt: q}}]}\n", "a[0].fields.promt", "prompt"),
    ],
)
def test_a_misspelt_key_is_located_and_the_nearest_key_named(tmp_path: Path, text: str, where: str, near: str) -> None:
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(CalibrationError) as caught:
        CalibrationSet.load(tmp_path / "set.yaml")
    assert caught.value.subject.endswith(where)
    assert f"did you mean `{near}`?" in caught.value.actual


def test_a_file_that_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "set.yaml").write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(CalibrationError, match="is not text"):
        CalibrationSet.load(tmp_path / "set.yaml")
    with pytest.raises(CalibrationError, match="generic"):
        CalibrationSet.load(tmp_path / "gone.yaml")
    with pytest.raises(CalibrationError, match="not found"):
        CalibrationSet.load("no-such-set")


def test_paths_are_relative_to_the_file_and_not_to_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "t.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    (folder / "set.yaml").write_text(
        f"name: t\nclasses: {{a: [{{kind: text, path: t.txt}}, {{kind: text, path: {folder / 't.txt'}}}]}}\n"
    )
    assert [t.text for t in CalibrationSet.load(Path("sub/set.yaml")).texts()["a"]] == ["some text"] * 2


def test_yaml_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("some text")
    (tmp_path / "set.yaml").write_text(
        "name: t\nclasses:\n  a:\n    - &x {kind: text, path: t.txt, weight: 2}\n  b:\n    - {<<: *x, weight: 3}\n"
    )
    assert {c: t[0].weight for c, t in CalibrationSet.load(tmp_path / "set.yaml").texts().items()} == {"a": 2, "b": 3}


def test_a_class_or_source_without_documents(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "one.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(
        CalibrationError, match=r"class a of calibration set t: source jsonl empty\.jsonl has no documents"
    ):
        texts(tmp_path, "kind: jsonl, path: empty.jsonl")
    with pytest.raises(CalibrationError, match="has no documents"):
        texts(tmp_path, "kind: jsonl, path: one.jsonl, skip: 1")
    with pytest.raises(CalibrationError, match="has no documents"):
        load(tmp_path, "  a:\n    - {kind: jsonl, path: one.jsonl}\n    - {kind: jsonl, path: empty.jsonl}\n").texts()
    (tmp_path / "blank.jsonl").write_text('{"text": ""}')
    with pytest.raises(CalibrationError, match="field 'text' of line 1 of"):
        texts(tmp_path, "kind: jsonl, path: blank.jsonl")


def test_skip_and_limit_give_disjoint_parts(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(7)))
    whole = [t.text for t in texts(tmp_path, "kind: jsonl, path: t.jsonl")]
    first = [t.text for t in texts(tmp_path, "kind: jsonl, path: t.jsonl, limit: 3")]
    rest = [t.text for t in texts(tmp_path, "kind: jsonl, path: t.jsonl, skip: 3, limit: 9")]
    assert first + rest == whole
    assert len(first) == 3


def test_shipped_prompts_are_eight_different_ones_per_class() -> None:
    prompts = builtin_prompts()
    assert list(prompts) == ["math", "logic", "code", "science", "creative"]
    assert all(len(set(p)) == 8 and all(isinstance(x, str) and x.strip() == x for x in p) for p in prompts.values())
    assert len({p for several in prompts.values() for p in several}) == 40


def test_the_shipped_set_is_tier_a() -> None:
    assert shipped() == ("generic", "my-prompts")
    found = CalibrationSet.load("generic")
    assert list(found.classes) == [f"generic_{name}" for name in builtin_prompts()]
    for items in found.texts().values():
        assert len(items) == 8
        assert {(t.asks, t.thinking, t.weight, t.reply) for t in items} == {(128, True, 1.0, None)}
    assert found.window == 2048


def test_a_file_of_that_name_wins_over_the_shipped_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generic").write_text("name: mine\nclasses: {a: [{kind: prompts, builtin: math}]}\n")
    assert CalibrationSet.load("generic").name == "mine"


def test_every_kind_of_source_is_in_the_union() -> None:
    assert set(KINDS) == set(get_args(Source))


def test_rows_of_multipl_e_are_refused(tmp_path: Path) -> None:
    import json

    row = {"name": "HumanEval_23_strlen", "language": "rs", "prompt": "/// Return it\nfn strlen() {", "tests": "}"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(Refused, match="MultiPL-E") as caught:
        texts(tmp_path, "kind: jsonl, path: x.jsonl, fields: {prompt: prompt}")
    assert caught.value.exit_code == 5
    assert isinstance(caught.value, TrimoeError)
