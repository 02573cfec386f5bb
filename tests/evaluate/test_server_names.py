"""Servers that list a model under one name and answer under another, unscored runs, and vLLM's silent clipping."""

import json
from pathlib import Path

import pytest
from test_faults import BENCH, docs, run, server, stored

from helpers.fault_server import CONTEXT, FaultServer
from trimoe.cli.main import main
from trimoe.cli.parts.scores import scores_text
from trimoe.evaluate.answer import Fault, read_answer
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.probe import connect, other_names


@pytest.mark.parametrize(
    ("listed", "answers"),
    [
        (["qwen/name"], "name"),
        (["qwen/name"], "qwen/name"),
        (["name"], "qwen/name"),
        (["name:latest"], "name"),
        (["name"], "name:latest"),
        (["hub/qwen/name:latest"], "name"),
        (["qwen/name", "qwen/other"], "name"),
    ],
)
def test_the_same_model_under_another_name_is_the_same_model(listed: list[str], answers: str, tmp_path: Path) -> None:
    with server(4) as at:
        at.listed, at.answers = listed, answers
        command = ["eval", at.url, "--bench", BENCH, "--limit", "4", "--model-id", listed[0]]
        assert main([*command, "--log", str(tmp_path / "runs.db")]) == 0
    assert [one.verdict.correct for one in stored(tmp_path / "runs.db")] == [True] * 4


@pytest.mark.parametrize(
    ("listed", "answers"),
    [
        (["qwen/name"], "other/name"),
        (["qwen/name"], "name-2"),
        (["qwen/name", "llama/name"], "name"),  # either
        (["qwen/name", "name"], "name"),
        (["name"], "qwen/names"),
    ],
)
def test_a_name_that_may_be_another_model_is_refused_with_a_remedy_that_helps(
    listed: list[str], answers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(4) as at:
        at.listed, at.answers = listed, answers
        command = ["eval", at.url, "--bench", BENCH, "--limit", "4", "--model-id", listed[0]]
        command += ["--log", str(tmp_path / "runs.db")]
        assert main(command) == 5
        assert "--answers-as" in capsys.readouterr().err
        assert main([*command, "--answers-as", answers]) == 0
    assert [one.verdict.correct for one in stored(tmp_path / "runs.db")] == [True] * 4


def test_names_are_never_those_of_another_listed_model() -> None:
    assert other_names("qwen/name", ["qwen/name"]) == ("name", "qwen/name:latest")
    assert "name" not in other_names("qwen/name", ["qwen/name", "llama/name"])
    assert other_names("name:latest", ["name:latest"]) == ("name",)
    assert Endpoint("http://h/v1", "a", "vllm", also_named=("b",)).names == ("a", "a@main", "b")
    raw = json.dumps({"model": "x/y", "choices": []}).encode()
    with pytest.raises(Fault, match="wrong model"):
        read_answer(raw, ("z/y", "y"), 8)


def test_a_run_with_unscored_rows_does_not_contradict_itself(tmp_path: Path) -> None:
    with server(10, [["401"]] * 2) as at:
        text = scores_text([run(at, tmp_path / "runs.db", 10)])
    assert text.splitlines() == [
        f"{BENCH:<12} 8 right of 8 scored: no score  2 harness error",
        "  2 of 10 rows are not scored; run the same command again to retry them",
        "  ! no preflight",
    ]
    assert "CLEAN" not in text


def test_a_reply_that_the_context_cut_is_not_clean(tmp_path: Path) -> None:
    """vLLM shortens the cap where prompt and cap exceed the context; the reply ends with `length` below the cap."""
    with server(10, [["slot cut"]]) as at:
        summary = run(at, tmp_path / "runs.db", 10)
    assert summary.ceilings is not None
    assert (summary.ceilings["verdict"], summary.ceilings["hit"], summary.ceilings["capped"]) == ("CAPPED", "slot", 1)
    assert summary.causes["truncated (slot)"] == 1


@pytest.mark.parametrize(("tokens", "status"), [(CONTEXT - 3, "unverified"), (100, "ok")])
def test_the_preflight_knows_what_vllm_will_cut(tokens: int, status: str, tmp_path: Path) -> None:
    from trimoe.evaluate.evaluate import evaluate

    with server(4) as at:
        at.owner, at.content_tokens = "vllm", tokens
        done = evaluate(at.url, bench=BENCH, log=tmp_path / "runs.db", limit=4)
        assert at.bodies[0]["skip_special_tokens"] is False
        assert all(body.get("stream") is not True for body in at.bodies), "with a parser, streams carry the thoughts"
    (one,) = done.runs
    assert any("context unverified" in mark for mark in one.marks) == (status == "unverified")


def test_a_running_server_takes_no_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer({doc.prompt: doc.reference for doc in docs(2)}) as at:
        command = ["eval", at.url, "--bench", BENCH, "--log", str(tmp_path / "r.db"), "--flag=-ngl"]
        assert main(command) == 2
        assert "takes no flags" in capsys.readouterr().err
        assert connect(at.url).also_named


def test_flags_need_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trimoe.model.tiny import path

    assert main(["eval", str(path()), "--bench", BENCH, "--log", str(tmp_path / "r.db"), "--flag=-ngl"]) == 2
    assert "takes no options of a server" in capsys.readouterr().err
