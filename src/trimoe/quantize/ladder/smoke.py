"""Does a file answer? llama-server loads it, and a few prompts must end by themselves; some have a known answer.

A quantization that went too far loads without complaint and then rambles for ever: that is what this finds. It is a
smoke test and says nothing about quality.
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
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trimoe.errors import BadInput, Refused
from trimoe.io.publish import sha256_json
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines

_START = 600.0  # seconds that a server may take to load a model
_ANSWER = 600.0


class Prompt(BaseModel):
    """One question; `expect` is a regular expression that a right answer matches, None if any answer will do."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ask: str = Field(min_length=1)
    expect: str | None = None

    @field_validator("expect")
    @classmethod
    def _compiles(cls, expect: str | None) -> str | None:
        try:
            re.compile(expect or "")
        except re.error as exc:
            raise ValueError(f"{expect!r} is not a regular expression: {exc}") from exc
        return expect


class Smoke(BaseModel):
    """What is asked of each file; of the prompts with `expect`, `min_right` must match."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    min_right: int = Field(0, ge=0)
    max_tokens: int = Field(256, ge=1)
    allow_unchecked: bool = False
    """Go on where the base itself fails: its files cannot be judged by these prompts, and say so."""

    @property
    def identity(self) -> str:
        """Hash of all that is asked: answers to other questions cannot be reused."""
        return sha256_json(self.model_dump(mode="json", exclude={"allow_unchecked"}))


@dataclass(frozen=True)
class Answers:
    """What a file said to each prompt: whether it ended by itself, whether it was right (None: any answer would do)."""

    asked: str
    """`Smoke.identity`."""
    ended: tuple[bool, ...]
    right: tuple[bool | None, ...]
    texts: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"asked": self.asked, "ended": list(self.ended), "right": list(self.right), "texts": list(self.texts)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Answers":
        """Back from `as_json`."""
        return cls(data["asked"], *(tuple(data[key]) for key in ("ended", "right", "texts")))


def judge(found: Answers, base: Answers, wanted: Smoke) -> str | None:
    """What is wrong with a file, None if nothing: measured against its base, since no quantization can repair a model.

    Every prompt that the base ends must end; `min_right` answers must be right, or as many as the base had.
    """
    rambling = sum(theirs and not own for own, theirs in zip(found.ended, base.ended, strict=True))
    right, needed = found.right.count(True), min(wanted.min_right, base.right.count(True))
    if rambling:
        return f"{rambling} of {sum(base.ended)} prompts that the base ends did not end"
    if right < needed:
        return f"{right} known answers were right, {needed} needed (the base had {base.right.count(True)})"
    return None


def base_fault(base: Answers, wanted: Smoke) -> str | None:
    """Why a base cannot be the measure of its files, None if it passes itself.

    A base that ends nothing and knows nothing would let every broken file pass.
    """
    if (rambling := base.ended.count(False)) > 0:
        return f"{rambling} of {len(base.ended)} prompts did not end"
    if (right := base.right.count(True)) < wanted.min_right:
        return f"{right} known answers were right, {wanted.min_right} needed"
    return None


def require_good_base(base: Answers, wanted: Smoke) -> str | None:
    """Refuse a base that fails its own smoke test, or say why its files stay unchecked where that is allowed."""
    fault = base_fault(base, wanted)
    if fault is not None and not wanted.allow_unchecked:
        raise Refused(
            "the base fails the smoke test, so it could not find a broken file",
            expected="a base that passes",
            actual=fault,
            remedy="ask prompts that this model answers (smoke in a ladder file), or go on "
            "unchecked with --allow-unchecked",
        )
    return fault


def smoke(tools: LlamaCpp, model: Path, wanted: Smoke, *, threads: int) -> Answers:
    """Ask a file all prompts. Raises `BadInput` if llama.cpp cannot load it."""
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
    """llama-server with this model, on a free port of this machine; yields its address. Always stopped."""
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
    )


def ask(url: str, question: str, max_tokens: int) -> tuple[str, str]:
    """(answer, why it ended) of one greedy chat turn: "stop" if the model ended it. Raises `BadInput`."""
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
            "llama-server refused a prompt", expected="an answer", actual=exc.read().decode(errors="replace")[:300]
        ) from exc
    message = choice["message"]
    # An answer may sit in either field, depending on the template.
    return str(message.get("content") or message.get("reasoning_content") or ""), str(choice["finish_reason"])
