"""Smoke test of a quantized file: llama-server loads it, and a few prompts must end by themselves.

Some prompts have a known answer. A quantization that went too far loads without complaint and then never stops talking;
this test finds that. It says nothing about quality.
"""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trimoe.errors import BadInput, Refused
from trimoe.io.canonical import sha256_json
from trimoe.io.datafile import Data
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines

_START = 600.0  # seconds for a server to load a model
_ANSWER = 600.0  # seconds for a reply


class Prompt(Data, frozen=True, kw_only=True):
    """One question. `expect` is a regular expression that a right answer matches; None if any answer will do."""

    ask: Annotated[str, msgspec.Meta(min_length=1)]
    expect: str | None = None

    def __post_init__(self) -> None:
        """Refuse an invalid regular expression."""
        try:
            re.compile(self.expect or "")
        except re.error as exc:
            raise ValueError(f"{self.expect!r} is not a regular expression: {exc}") from exc


class Smoke(Data, frozen=True, kw_only=True):
    """The prompts of a smoke test; of those with `expect`, at least `min_right` must match."""

    prompts: Annotated[tuple[Prompt, ...], msgspec.Meta(min_length=1)]
    min_right: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 256
    allow_unchecked: bool = False
    """Continue if the base itself fails: its files cannot be judged by these prompts, and are reported as unchecked."""

    @property
    def identity(self) -> str:
        """Hash of prompts and limits: answers to other prompts are not reused."""
        asked = msgspec.to_builtins(self)
        del asked["allow_unchecked"]
        return sha256_json(asked)


@dataclass(frozen=True)
class Answers:
    """A file's answer to each prompt: whether it ended by itself, and whether it was right (None: any would do)."""

    asked: str
    """`Smoke.identity` of the prompts."""
    ended: tuple[bool, ...]
    right: tuple[bool | None, ...]
    texts: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The answers as JSON values."""
        return {"asked": self.asked, "ended": list(self.ended), "right": list(self.right), "texts": list(self.texts)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Answers":
        """The inverse of `as_json`."""
        return cls(data["asked"], *(tuple(data[key]) for key in ("ended", "right", "texts")))


def judge(found: Answers, base: Answers, wanted: Smoke) -> str | None:
    """Why a file fails, None if it passes. The base sets the standard, since no quantization repairs a model.

    Every prompt that the base ends must end; `min_right` answers must be right, or as many as the base got right.
    """
    rambling = sum(theirs and not own for own, theirs in zip(found.ended, base.ended, strict=True))
    right, needed = found.right.count(True), min(wanted.min_right, base.right.count(True))
    if rambling:
        return f"{rambling} of {sum(base.ended)} prompts that the base ends did not end"
    if right < needed:
        return f"{right} known answers were right, {needed} needed (the base had {base.right.count(True)})"
    return None


def base_fault(base: Answers, wanted: Smoke) -> str | None:
    """Why a base cannot be the standard for its files, None if it passes itself.

    With a base that ends and knows nothing, every broken file would pass.
    """
    if (rambling := base.ended.count(False)) > 0:
        return f"{rambling} of {len(base.ended)} prompts did not end"
    if (right := base.right.count(True)) < wanted.min_right:
        return f"{right} known answers were right, {wanted.min_right} needed"
    return None


def require_good_base(base: Answers, wanted: Smoke) -> str | None:
    """Why a base fails its own smoke test, None if it passes. Raises `Refused` unless unchecked files are allowed."""
    fault = base_fault(base, wanted)
    if fault is not None and not wanted.allow_unchecked:
        raise Refused(
            "the base fails the smoke test, so the test could not detect a broken file",
            expected="a base that passes",
            actual=fault,
            remedy="use prompts that this model answers (smoke in a ladder file), or continue without the check: "
            "--allow-unchecked",
        )
    return fault


def smoke(tools: LlamaCpp, model: Path, wanted: Smoke, *, threads: int) -> Answers:
    """Ask a file every prompt. Raises `BadInput` if llama.cpp cannot load it."""
    with served(tools, model, threads=threads) as url:
        replies = [ask(url, prompt.ask, wanted.max_tokens) for prompt in wanted.prompts]
    right = tuple(
        None if prompt.expect is None else re.search(prompt.expect, text) is not None
        for prompt, (text, _) in zip(wanted.prompts, replies, strict=True)
    )
    ended = tuple(reason == "stop" for _, reason in replies)
    return Answers(wanted.identity, ended, right, tuple(text[:200] for text, _ in replies))


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
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER) as answer:
            choice = json.load(answer)["choices"][0]
    except urllib.error.HTTPError as exc:
        raise BadInput(
            "llama-server refused a prompt",
            expected="an answer",
            actual=exc.read().decode(errors="replace")[:300],
            remedy="see the server's message",
        ) from exc
    message = choice["message"]
    # The answer is in either field, depending on the chat template.
    return str(message.get("content") or message.get("reasoning_content") or ""), str(choice["finish_reason"])
