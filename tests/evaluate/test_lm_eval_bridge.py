"""Tasks of lm-eval on our client: the scores equal those of lm-eval's client, except where it cannot read a reply."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trimoe.errors import Refused, UsageError
from trimoe.evaluate.lm_eval_model import PREFIX
from trimoe.evaluate.lm_eval_tasks import evaluate_lm_eval
from trimoe.evaluate.log.run_log import RunLog
from trimoe.serve.endpoint import Endpoint

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

TASK = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["Question:", "END"]
  max_gen_toks: 32
  do_sample: false
  temperature: 0.0
filter_list:
  - name: strict-match
    filter:
      - function: regex
        regex_pattern: "#### (-?[0-9]+)"
      - function: take_first
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
CHOICE = """\
task: picks
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["1", "2"]
doc_to_target: 0
metadata:
  version: 1.0
"""
ROWS = 12


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks over a local file; nothing is downloaded."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i} + {i}?", "answer": str(2 * i)}) + "\n" for i in range(ROWS)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.yaml").write_text(TASK.format(data=data))
    (folder / "picks.yaml").write_text(CHOICE.format(data=data))
    return folder


class _Server(ThreadingHTTPServer):
    """A chat server. `text(i)` is the reply to the i-th sum; None is status 500."""

    asked: list[dict[str, Any]]
    text: Any
    where: str


@contextmanager
def answering(text: Any, where: str = "content") -> Iterator[_Server]:
    class Handler(BaseHTTPRequestHandler):
        server: _Server

        def log_message(self, *_: object) -> None:
            """Silent."""

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "me"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append(body)
            prompt = body["messages"][-1]["content"]
            number = int(prompt.split("Question: ")[1].split(" ")[0]) if "Question: " in prompt else -1
            said = "ready" if number < 0 else self.server.text(number)
            if said is None:
                self._send(500, {"error": "no"})
                return
            message = {"role": "assistant", "content": None, where if number >= 0 else "content": said}
            self._send(
                200,
                {
                    "id": f"c{len(self.server.asked)}",
                    "object": "chat.completion",
                    "model": "m",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
                },
            )

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = _Server(("127.0.0.1", 0), Handler)
    server.asked, server.text, server.where = [], text, where
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def endpoint_of(server: _Server) -> Endpoint:
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", "endpoint", slots=2)


def some_wrong(i: int) -> str:
    """Correct without "####" for two of three, with it for every fourth."""
    return f"it is {2 * i if i % 3 else 2 * i + 1}" if i % 4 else f"#### {2 * i}"


def theirs(server: _Server, folder: Path) -> dict[str, Any]:
    """The same task on lm-eval's own chat client."""
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args={
            "model": "m",
            "base_url": f"http://127.0.0.1:{server.server_port}/v1/chat/completions",
            "max_retries": 1,
        },
        tasks=["sums"],
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
    )
    return {k: v for k, v in found["results"]["sums"].items() if k.startswith("exact_match")}


def test_the_score_and_the_requests_are_lm_evals_own(tasks: Path, tmp_path: Path) -> None:
    with answering(some_wrong) as server:
        [ours] = evaluate_lm_eval(endpoint_of(server), ["sums"], tmp_path / "log.db", include=tasks)
        questions = [body for body in server.asked if "Question: " in body["messages"][-1]["content"]]
        server.asked.clear()
        reference = theirs(server, tasks)
    assert {k: v for k, v in ours.metrics.items() if k.startswith("exact_match")} == reference
    assert ours.summary.score == pytest.approx(reference["exact_match,flexible-extract"])
    assert 0 < reference["exact_match,strict-match"] < reference["exact_match,flexible-extract"] < 1

    def seen(bodies: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted(
            (tuple((m["role"], m["content"]) for m in b["messages"]), b["max_tokens"], b["temperature"], *b["stop"])
            for b in bodies
        )

    assert seen(questions) == seen(server.asked)


def test_an_answer_in_the_reasoning_counts_and_is_zero_for_lm_eval(tasks: Path, tmp_path: Path) -> None:
    with answering(lambda i: f"it is {2 * i}", where="reasoning_content") as server:
        [ours] = evaluate_lm_eval(endpoint_of(server), ["sums"], tmp_path / "log.db", include=tasks)
    assert ours.metrics["exact_match,flexible-extract"] == 1.0
    with RunLog(tmp_path / "log.db") as log:
        [run] = log.runs()
        assert run.bench == PREFIX + "sums"
        assert {s.sample.reasoning_field for s in log.samples(run)} == {"reasoning_content"}


def test_failed_rows_give_no_score_and_only_they_are_retried(tasks: Path, tmp_path: Path) -> None:
    from trimoe.evaluate.request_limits import RequestLimits

    hurried = RequestLimits(concurrency=2, timeout_s=20, deadline_s=20, retries=0)
    with answering(lambda i: None if i in (3, 7) else f"it is {2 * i}") as server:
        with pytest.raises(Refused, match="2 of 12 rows have no reply"):
            evaluate_lm_eval(endpoint_of(server), ["sums"], tmp_path / "log.db", include=tasks, request_limits=hurried)
        server.text = lambda i: f"it is {2 * i}"
        server.asked.clear()
        [ours] = evaluate_lm_eval(endpoint_of(server), ["sums"], tmp_path / "log.db", include=tasks, preflight=False)
        again = [body["messages"][-1]["content"] for body in server.asked]
    assert sorted(again) == ["Question: 3 + 3?\nAnswer:", "Question: 7 + 7?\nAnswer:"]
    assert ours.summary.score == 1.0
    assert ours.summary.n == ROWS


def test_tasks_that_need_log_probabilities_are_refused(tasks: Path, tmp_path: Path) -> None:
    with answering(some_wrong) as server, pytest.raises(UsageError, match="log-probabilities"):
        evaluate_lm_eval(endpoint_of(server), ["picks"], tmp_path / "log.db", include=tasks)


def test_an_unknown_task_is_named(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such-task"):
        evaluate_lm_eval(
            Endpoint("http://127.0.0.1:9/v1", "m", "endpoint"), ["no-such-task"], tmp_path / "log.db", include=tasks
        )


def test_a_task_with_repeats_is_refused_before_the_first_request(tasks: Path, tmp_path: Path) -> None:
    """lm-eval passes the same request twice and judges both replies together."""
    text = (
        (tasks / "sums.yaml")
        .read_text()
        .replace("task: sums", "task: twice")
        .replace("test_split", "repeats: 2\ntest_split")
    )
    (tasks / "twice.yaml").write_text(text)
    with answering(some_wrong) as server:
        with pytest.raises(UsageError, match="twice requests every row 2 times"):
            evaluate_lm_eval(endpoint_of(server), ["sums", "twice"], tmp_path / "log.db", include=tasks)
        assert [body for body in server.asked if "Question: " in body["messages"][-1]["content"]] == []


def test_nothing_is_printed_besides_our_own_table(
    tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.api import task

    before = task.tqdm
    with answering(some_wrong) as server:
        evaluate_lm_eval(endpoint_of(server), ["sums"], tmp_path / "log.db", include=tasks)
    seen = capfd.readouterr()
    assert "it/s" not in seen.out + seen.err
    assert "examples" not in seen.out + seen.err
    assert task.tqdm is before
