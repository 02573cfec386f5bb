"""llama-server for one file: started, asked, and always stopped."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines

_START = 600.0  # seconds for a server to load a model
_ANSWER = 600.0  # seconds for a reply
_FORCE = 1000.0  # added to a logit, so that its token is drawn

Distribution = dict[int, float]
"""Token id -> log-probability, of the most likely tokens."""


@contextmanager
def served(tools: LlamaCpp, model: Path, *, threads: int, context: int = 2048) -> Iterator[str]:
    """Run llama-server with this model on a free local port; yields its address and always stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(tools.program("llama-server")),
        "-m",
        str(model),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "-c",
        str(context),
        "--parallel",
        "1",
        "-t",
        str(threads),
        "--reasoning",
        "off",
        "--no-ui",
        "--no-warmup",
    ]
    with (model.parent / f".{model.name}.server.txt").open("w+") as log:
        process = subprocess.Popen(bound(command), stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, port, model, log.name)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            Path(log.name).unlink(missing_ok=True)


def _wait(process: "subprocess.Popen[bytes]", port: int, model: Path, log: str) -> None:
    limit = time.monotonic() + _START
    while time.monotonic() < limit:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise BadInput(
        f"llama-server cannot load {model.name}",
        expected="a model that loads",
        actual=last_lines(Path(log).read_text(errors="replace"), 3),
        remedy="see the server's message",
    )


def ask(url: str, question: str, max_tokens: int) -> tuple[str, str]:
    """(answer, finish reason) of one greedy chat turn; "stop" if the model ended it. Raises `BadInput`."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 0,
        "cache_prompt": False,
    }
    choice = post(url, "/v1/chat/completions", body)["choices"][0]
    message = choice["message"]
    # The answer is in either field, depending on the chat template.
    return str(message.get("content") or message.get("reasoning_content") or ""), str(choice["finish_reason"])


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    """Post JSON and read JSON. Raises `BadInput` with the server's words."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as exc:
        raise BadInput(
            "llama-server refused a prompt",
            expected="an answer",
            actual=exc.read().decode(errors="replace")[:300],
            remedy="see the server's message",
        ) from exc
    except (urllib.error.URLError, OSError) as exc:
        raise BadInput(
            "llama-server stopped while it was asked",
            expected="an answer",
            actual=str(exc)[:300],
            remedy="see its message; the file or the memory of this machine may be at fault",
        ) from exc


def encoded(url: str, question: str) -> list[int]:
    """Token ids of one question as the model's chat template writes it."""
    text = post(url, "/apply-template", {"messages": [{"role": "user", "content": question}]})["prompt"]
    return tokens_of(url, text)


def tokens_of(url: str, text: str) -> list[int]:
    """Token ids of a text with its special tokens."""
    found = post(url, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    return [int(token) for token in found]


def greedy(url: str, prompt: Sequence[int], tokens: int) -> tuple[list[int], bool]:
    """(reply of at most `tokens` tokens, whether the model ended it)."""
    body = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0, "cache_prompt": True, "return_tokens": True}
    answer = post(url, "/completion", body)
    return [int(token) for token in answer["tokens"]], answer["stop_type"] == "eos"


def distribution(url: str, tokens: Sequence[int], most: int, drawn: int) -> Distribution:
    """The `most` likely next tokens; empty if the logits are not finite.

    Token `drawn`, which must be a whole character, is forced: llama-server (b9000 and before) keeps back the
    probabilities of a token that is a part of a character. The probabilities are those before the force.
    """
    body = {
        "prompt": list(tokens),
        "n_predict": 1,
        "n_probs": most,
        "temperature": 0,
        "cache_prompt": True,
        "logit_bias": [[drawn, _FORCE]],
    }
    found = post(url, "/completion", body).get("completion_probabilities") or [{"top_logprobs": []}]
    return {int(t["id"]): float(t["logprob"]) for t in found[0]["top_logprobs"] if t["logprob"] is not None}
