"""Sources: what each kind reads, and what it refuses by file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_set_file import texts

from trimoe.calibrate.text.records import read_jsonl
from trimoe.calibrate.text.sources import SourceText
from trimoe.errors import CalibrationError, MissingPrerequisite, Refused


def rows(folder: Path, *records: object, name: str = "x.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return folder / name


class TestJsonLines:
    def test_lines_end_at_newlines_only(self, tmp_path: Path) -> None:
        """U+2028, U+0085 and the vertical tab are content, which `str.splitlines` would cut at."""
        wanted = ["a\u2028b", "c\u0085d", "e\x0bf\x1c", "g"]
        rows(tmp_path, *({"text": t} for t in wanted))
        assert [t.text for t in texts(tmp_path, "kind: jsonl, path: x.jsonl")] == wanted

    @given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5))
    @settings(max_examples=50, deadline=None)
    def test_any_text_comes_back(self, tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
        path = rows(tmp_path_factory.mktemp("any"), *({"text": v} for v in values))
        assert [r.row["text"] for r in read_jsonl(path)] == values
        assert [r.number for r in read_jsonl(path)] == list(range(len(values)))

    def test_windows_line_ends_a_mark_and_no_last_newline(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
        assert [t.text for t in texts(tmp_path, "kind: jsonl, path: x.jsonl")] == ["a", "b"]

    def test_gzip_by_content_not_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_bytes(gzip.compress(b'{"text": "a"}\n', mtime=0))
        assert [t.text for t in texts(tmp_path, "kind: jsonl, path: x.jsonl")] == ["a"]

    @pytest.mark.parametrize(
        ("data", "word"),
        [
            (b'{"text": "a"}\n{"text": \xe9}', "line 2"),
            ('{"text": "a"}\n{"text": "é"}'.encode("latin-1"), "byte 0xe9 in line 2"),
            (b'{"text": "a"}\n{"text": ', "line 2"),
            (b'{"text": "a"}\n[1]', "line 2 of .* is not an object"),
            (b'{"text": "\\ud800"}', "surrogate"),
            (b'{"text": 3}', "is not text"),
            (b'{"txt": "a"}', "has no field 'text'"),
            (gzip.compress(b'{"text": "a"}', mtime=0)[:-6], "cannot read"),
            (gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:14] + b"\xff" * 40, "cannot read"),
        ],
    )
    def test_damage_is_named_by_line(self, tmp_path: Path, data: bytes, word: str) -> None:
        (tmp_path / "x.jsonl").write_bytes(data)
        with pytest.raises(CalibrationError, match=word):
            texts(tmp_path, "kind: jsonl, path: x.jsonl")

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        for name in ("gone.jsonl", "."):
            with pytest.raises(CalibrationError, match="cannot read"):
                texts(tmp_path, f"kind: jsonl, path: {name}")

    def test_only_takes_equal_columns(self, tmp_path: Path) -> None:
        rows(tmp_path, {"text": "a", "ok": True}, {"text": "b", "ok": 1}, {"text": "c", "ok": False}, {"text": "d"})
        assert [t.text for t in texts(tmp_path, "kind: jsonl, path: x.jsonl, only: {ok: true}")] == ["a"]
        assert [t.text for t in texts(tmp_path, "kind: jsonl, path: x.jsonl, only: {ok: 1}")] == ["b"]

    @pytest.mark.parametrize(
        "messages", ["x", [], [{"role": "user"}], [{"role": "user", "content": [{"type": "text"}]}], [1]]
    )
    def test_what_is_no_chat(self, tmp_path: Path, messages: object) -> None:
        rows(tmp_path, {"m": messages})
        with pytest.raises(CalibrationError, match="is not a chat"):
            texts(tmp_path, "kind: jsonl, path: x.jsonl, fields: {messages: m}")

    def test_bench_ids_come_from_the_rows(self, tmp_path: Path) -> None:
        rows(tmp_path, {"t": "a", "task_id": "HumanEval/3"}, {"t": "b", "id": 7}, {"t": "c"})
        found = texts(tmp_path, "kind: jsonl, path: x.jsonl, fields: {text: t}, bench: he")
        assert [t.item for t in found] == ["he/HumanEval/3", "he/7", "he/2"]
        assert [t.item for t in texts(tmp_path, "kind: jsonl, path: x.jsonl, fields: {text: t}")] == [None] * 3


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("line\n\nline\u2028end\n", encoding="utf-8")
    assert texts(tmp_path, "kind: text, path: a.txt")[0].text == "line\n\nline\u2028end\n"
    (tmp_path / "a.txt").write_bytes(b"ok\nok\nna\xefve")
    with pytest.raises(CalibrationError, match=r"not UTF-8.*\n.*\n.*line 3"):
        texts(tmp_path, "kind: text, path: a.txt")
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"text a\.txt is not text"):
        texts(tmp_path, "kind: text, path: a.txt")


class TestDataSets:
    """Against the real `datasets` library, from folders on disk."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> Path:
        import datasets

        made = datasets.Dataset.from_list([{"q": f"q{i}", "a": f"a{i}", "hard": i > 1} for i in range(4)])
        made.save_to_disk(tmp_path / "saved")
        datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "splits")
        (tmp_path / "parquet" / "data").mkdir(parents=True)
        made.to_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet")
        (tmp_path / "lines").mkdir()
        rows(tmp_path / "lines", *made, name="train.jsonl")
        return tmp_path

    @pytest.mark.parametrize("folder", ["saved", "splits", "parquet", "lines"])
    def test_every_layout_gives_the_same(self, folders: Path, folder: str) -> None:
        source = f"kind: dataset, path: {folder}, fields: {{prompt: q, completion: a}}"
        found = texts(folders, source)
        assert [t.text for t in found] == [f"q{i}\n\na{i}" for i in range(4)]
        assert [t.text for t in texts(folders, source + ", only: {hard: true}, limit: 1")] == ["q2\n\na2"]

    def test_splits_and_configs(self, folders: Path) -> None:
        assert len(texts(folders, "kind: dataset, path: splits, split: test, fields: {text: q}")) == 1
        for folder in ("splits", "parquet", "lines"):
            with pytest.raises(CalibrationError, match="cannot be used") as caught:
                texts(folders, f"kind: dataset, path: {folder}, split: validation, fields: {{text: q}}")
            assert "train" in caught.value.actual
        with pytest.raises(CalibrationError, match="cannot be used"):
            texts(folders, "kind: dataset, path: parquet, config: other, fields: {text: q}")

    def test_folders_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 not really")
        (tmp_path / "latin").mkdir()
        (tmp_path / "latin" / "train.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "state.json").write_text("{}")
        for name in ("empty", "gone", "broken", "latin", "half"):
            with pytest.raises(CalibrationError, match="cannot be used"):
                texts(tmp_path, f"kind: dataset, path: {name}")

    def test_a_column_that_is_not_there(self, folders: Path) -> None:
        with pytest.raises(CalibrationError, match="row 0 of dataset saved has no field 'text'"):
            texts(folders, "kind: dataset, path: saved")

    def test_a_hub_id_without_a_network_says_how_to_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets.config
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        commit = "0123456789abcdef0123456789abcdef01234567"
        with pytest.raises(MissingPrerequisite, match="openai/gsm8k cannot be downloaded") as caught:
            texts(tmp_path, f"kind: dataset, id: openai/gsm8k, revision: {commit}, config: main")
        assert f"hf download openai/gsm8k --repo-type dataset --revision {commit}" in caught.value.remedy
        assert caught.value.exit_code == 4

    def test_multipl_e_by_its_name(self, tmp_path: Path) -> None:
        commit = "abcdef0123" * 4
        with pytest.raises(Refused, match="MultiPL-E"):
            texts(tmp_path, f"kind: dataset, id: nuprl/MultiPL-E, revision: {commit}, config: humaneval-rs")


class TestPrompts:
    def test_prompts_from_a_file(self, tmp_path: Path) -> None:
        rows(tmp_path, {"q": "How?"}, {"q": "Why?"})
        found = texts(tmp_path, "kind: prompts, path: x.jsonl, fields: {prompt: q}, new_tokens: 9, thinking: false")
        assert [(t.text, t.asks, t.thinking) for t in found] == [("How?", 9, False), ("Why?", 9, False)]

    def test_a_finished_chat_is_no_prompt(self, tmp_path: Path) -> None:
        rows(tmp_path, {"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        with pytest.raises(CalibrationError, match="ends with the assistant's turn"):
            texts(tmp_path, "kind: prompts, path: x.jsonl, fields: {messages: m}")

    def test_replies_from_a_file(self, tmp_path: Path) -> None:
        rows(tmp_path, {"prompt": "How?"}, {"prompt": "Why?"})
        rows(
            tmp_path,
            {"prompt": "Why?", "reply": "So.", "finish_reason": "stop"},
            {"messages": [{"role": "user", "content": "How?"}], "reply": "Thus"},
            name="r.jsonl",
        )
        found = texts(tmp_path, "kind: prompts, path: x.jsonl, replies: r.jsonl")
        assert [(t.reply.text, t.reply.ended, t.reply.limit) for t in found if t.reply] == [
            ("Thus", False, 128),
            ("So.", True, 128),
        ]

    @pytest.mark.parametrize(
        ("replies", "word"),
        [
            ([{"prompt": "Why?", "reply": "x"}], "no reply to line 1"),
            ([{"prompt": "How?", "reply": ""}], "field 'reply'"),
            ([{"prompt": "How?"}], "field 'reply'"),
            ([{"reply": "x"}], "field 'prompt'"),
            ([{"prompt": "How?", "reply": "x"}, {"prompt": "How?", "reply": "y"}], "second, different reply"),
        ],
    )
    def test_replies_that_do_not_fit(self, tmp_path: Path, replies: list[Any], word: str) -> None:
        rows(tmp_path, {"prompt": "How?"})
        rows(tmp_path, *replies, name="r.jsonl")
        with pytest.raises(CalibrationError, match=word):
            texts(tmp_path, "kind: prompts, path: x.jsonl, replies: r.jsonl")


def exported(name: str, doc_id: str, correct: bool | None, **more: Any) -> dict[str, Any]:
    """A row as `trimoe log export` writes it, with the keys that are read."""
    return {
        "bench": "tiny-code",
        "doc_id": doc_id,
        "correct": correct,
        "name": name,
        "prompt": f"do {doc_id}",
        "reply": f"done {doc_id} by {name}",
        "finish_reason": "stop",
        **more,
    }


class TestRunLog:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        verdicts = {"base": [True, True, False, True, True], "small": [True, False, False, None]}
        rows(
            tmp_path,
            *(exported(name, f"d{i}", v) for name, vs in verdicts.items() for i, v in enumerate(vs)),
            exported("base", "m0", True, bench="tiny-math", finish_reason="length"),
        )
        return tmp_path

    def test_passing_replies_only(self, log: Path) -> None:
        found = texts(log, "kind: run-log, path: x.jsonl, model: base, benches: [tiny-code]")
        assert [t.item for t in found] == [f"tiny-code/d{i}" for i in (0, 1, 3, 4)]
        assert [t.weight for t in found] == [1.0] * 4
        assert found[0].body == ({"role": "user", "content": "do d0"},)
        assert found[0].reply is not None
        assert (found[0].reply.text, found[0].reply.ended) == ("done d0 by base", True)

    def test_lost_items_weigh_three(self, log: Path) -> None:
        found = texts(log, "kind: run-log, path: x.jsonl, model: base, against: small")
        # d1: failed by the other; d3: not scored there; d4, m0: not run there
        assert {t.item: t.weight for t in found} == {
            "tiny-code/d0": 1,
            "tiny-code/d1": 3,
            "tiny-code/d3": 1,
            "tiny-code/d4": 1,
            "tiny-math/m0": 1,
        }
        assert [t.reply.ended for t in found if t.reply] == [True] * 4 + [False]
        doubled = texts(log, "kind: run-log, path: x.jsonl, model: base, against: small, lost_weight: 5, weight: 2")
        assert [t.weight for t in doubled] == [2, 10, 2, 2, 2]

    def test_few_shot_conversations(self, tmp_path: Path) -> None:
        """A log keeps several turns as JSON; a question that only looks like JSON stays one."""
        chat = [{"role": r, "content": c} for r, c in (("user", "2?"), ("assistant", "4"), ("user", "3?"))]
        prompts = [json.dumps(chat), '[{"a": 1}] is what?', '[{"a": 1}]', '[{"role": "user"']
        rows(tmp_path, *(exported("base", str(i), True, prompt=p) for i, p in enumerate(prompts)))
        found = texts(tmp_path, "kind: run-log, path: x.jsonl, model: base")
        assert list(found[0].body) == chat
        assert [t.body for t in found[1:]] == [({"role": "user", "content": p},) for p in prompts[1:]]

    def test_the_export_of_a_real_log(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What `trimoe log export` writes is what is read."""
        from trimoe.bench.bench import Verdict
        from trimoe.cli.main import main
        from trimoe.evaluate.log.records import Sample
        from trimoe.evaluate.log.run_log import RunLog

        with RunLog(tmp_path / "runs.db") as log:
            run = log.start("base", "tiny-code", {"s": 1}, "m", {}, {})
            log.add(
                run,
                [
                    (
                        Sample(f"d{i}", i, f"do {i}", f"done\u2028{i}", "stop", 3, 4),
                        Verdict(i > 0, "correct" if i else "wrong"),
                    )
                    for i in range(3)
                ],
                1,
            )
        assert main(["log", "export", str(tmp_path / "runs.db")]) == 0
        (tmp_path / "x.jsonl").write_text(capsys.readouterr().out, encoding="utf-8")
        found = texts(tmp_path, "kind: run-log, path: x.jsonl, model: base")
        assert [(t.item, t.reply and t.reply.text) for t in found] == [
            ("tiny-code/d1", "done\u20281"),
            ("tiny-code/d2", "done\u20282"),
        ]

    def test_what_does_not_fit(self, log: Path) -> None:
        with pytest.raises(CalibrationError, match="no run named other"):
            texts(log, "kind: run-log, path: x.jsonl, model: other")
        with pytest.raises(CalibrationError, match="no item in common"):
            texts(log, "kind: run-log, path: x.jsonl, model: base, benches: [tiny-math], against: small")
        for broken, word in (
            (exported("base", "d0", True, reply=""), "field 'reply'"),
            ({k: v for k, v in exported("base", "d0", True).items() if k != "prompt"}, "field 'prompt'"),
            (exported("base", "d0", "yes"), "not a verdict"),  # type: ignore[arg-type]
        ):
            rows(log, broken, name="b.jsonl")
            with pytest.raises(CalibrationError, match=word):
                texts(log, "kind: run-log, path: b.jsonl, model: base")
        rows(log, exported("base", "d0", True), exported("base", "d0", True), name="b.jsonl")
        with pytest.raises(CalibrationError, match="repeats tiny-code/d0"):
            texts(log, "kind: run-log, path: b.jsonl, model: base")
        rows(log, exported("base", "d0", True, bench="multipl-e-100"), name="b.jsonl")
        with pytest.raises(Refused, match="MultiPL-E"):
            texts(log, "kind: run-log, path: b.jsonl, model: base")


class TestLmEval:
    """Against samples that lm-evaluation-harness really wrote."""

    @staticmethod
    def read(shared: Path, folder: Path, name: str, more: str = "") -> list[SourceText]:
        path = shared / "reference" / "omnimergekit-data" / "eval_samples" / f"{name}.samples.jsonl.gz"
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
        return texts(folder, f"kind: lm-eval, path: {path.name}, bench: {name}{more}")

    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("arc_challenge", ""),
            ("gsm8k_100", ", filter: flexible-extract"),
            ("math500_100", ", metric: math_verify"),
            ("ifeval_100", ", metric: prompt_level_strict_acc"),
        ],
    )
    def test_passing_samples_with_their_prompts(self, shared: Path, tmp_path: Path, name: str, more: str) -> None:
        path = shared / "reference" / "omnimergekit-data" / "eval_samples" / f"{name}.samples.jsonl.gz"
        raw = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]
        metric = "math_verify" if "math" in name else "prompt_level_strict_acc" if "ifeval" in name else "exact_match"
        chosen = [r for r in raw if r["filter"] in ("none", "flexible-extract") and r[metric] == 1]
        found = self.read(shared, tmp_path, name, more)
        assert len(found) == len(chosen) > 5
        for text, row in zip(found, chosen, strict=True):
            assert text.reply is not None
            assert text.reply.text == row["resps"][0][0]
            assert list(text.body) == [
                {"role": m["role"], "content": m["content"]}
                for m in json.loads(row["arguments"]["gen_args_0"]["arg_0"][0])
            ]
            assert text.item
            assert text.item.startswith(f"{name}/")

    def test_the_metric_or_filter_must_be_named(self, shared: Path, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="several filters"):
            self.read(shared, tmp_path, "gsm8k_100")
        with pytest.raises(CalibrationError, match="several metrics"):
            self.read(shared, tmp_path, "math500_100")
        with pytest.raises(CalibrationError, match="is not a number"):
            self.read(shared, tmp_path, "ifeval_100", ", metric: inst_level_strict_acc")
        with pytest.raises(CalibrationError, match="no filter strict"):
            self.read(shared, tmp_path, "gsm8k_100", ", filter: strict")

    def test_samples_without_prompts(self, shared: Path, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="does not contain its prompt"):
            self.read(shared, tmp_path, "aime24")
        with pytest.raises(CalibrationError, match="is not a sample of lm-eval"):
            self.read(shared, tmp_path, "lcb_medium_55")

    def test_weighed_against_another_model(self, shared: Path, tmp_path: Path) -> None:
        """The same samples with every second verdict turned: exactly those weigh three."""
        source = shared / "reference" / "omnimergekit-data" / "eval_samples" / "arc_challenge.samples.jsonl.gz"
        other = [json.loads(line) for line in gzip.decompress(source.read_bytes()).decode().split("\n") if line]
        for row in other:
            row["exact_match"] = float(row["doc_id"] // 2 % 2)
        rows(tmp_path, *other, name="other.jsonl")
        lost = {r["doc"]["id"] for r in other if r["exact_match"] == 0}
        found = self.read(shared, tmp_path, "arc_challenge", ", against: other.jsonl")
        assert {t.weight for t in found} == {1.0, 3.0}
        for text in found:
            assert text.item is not None
            assert (text.weight == 3.0) == (text.item.partition("/")[2] in lost)
        for row in other:
            row["doc_hash"] = "another version of the bench"
        rows(tmp_path, *other, name="other.jsonl")
        with pytest.raises(CalibrationError, match="no item in common"):
            self.read(shared, tmp_path, "arc_challenge", ", against: other.jsonl")

    def test_multipl_e_rows_inside_samples(self, tmp_path: Path) -> None:
        doc = {"name": "HumanEval_3_x", "language": "rs", "prompt": "p"}
        rows(tmp_path, {"doc_id": 0, "doc": doc, "filter": "none", "metrics": ["p"], "p": 1, "resps": [["r"]]})
        with pytest.raises(Refused, match="HumanEval_3_x"):
            texts(tmp_path, "kind: lm-eval, path: x.jsonl, bench: code")
        with pytest.raises(Refused, match="MultiPL-E"):
            texts(tmp_path, "kind: lm-eval, path: x.jsonl, bench: humaneval-rs")


def test_rows_of_a_spreadsheet_are_records(tmp_path: Path) -> None:
    from trimoe.calibrate.text.records import read_records

    (tmp_path / "rows.csv").write_text('prompt,completion\n"one, two","a\nb"\nthree,c\n')
    found = list(read_records(tmp_path / "rows.csv"))
    assert [r.row for r in found] == [
        {"prompt": "one, two", "completion": "a\nb"},
        {"prompt": "three", "completion": "c"},
    ]
    assert [r.number for r in found] == [0, 1]
    (tmp_path / "bad.csv").write_text("prompt,completion\nonly one\n")
    with pytest.raises(CalibrationError, match=r"line 2 of .*bad.csv has another number of fields"):
        list(read_records(tmp_path / "bad.csv"))


def test_rows_of_parquet_are_records(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    from trimoe.calibrate.text.records import read_records

    pq.write_table(pa.table({"prompt": ["a", "b"], "n": [1, 2]}), tmp_path / "rows.parquet")
    assert [r.row for r in read_records(tmp_path / "rows.parquet")] == [
        {"prompt": "a", "n": 1},
        {"prompt": "b", "n": 2},
    ]
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(CalibrationError, match="cannot read"):
        list(read_records(tmp_path / "bad.parquet"))
