"""Runs `trimoe-expert-stats`: measurement as a job, tokenizer and replies as a conversation of JSON lines.

Invariants: a child ends with this process, even when this process is killed; llama.cpp's message is in the error.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from trimoe.errors import BadInput
from trimoe.io.progress import Progress
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines

PROGRAM = "trimoe-expert-stats"


def version_of(tools: LlamaCpp) -> str:
    """The commit of llama.cpp that the program was built from."""
    release = (tools.info or {}).get("release", {})
    return str(release.get("commit") or tools.version() or "unknown")


def measure(tools: LlamaCpp, model: Path, job: Path, state: Path, progress: Progress | None) -> dict[str, Any]:
    """Run a job, or the rest of one, until `state` is complete. Returns the layers seen and the peak of memory, without
    the mapped weights.

    Progress counts batches. Raises `BadInput` with llama.cpp's message.
    """
    command = bound([tools.program(PROGRAM), "measure", str(model), str(job), str(state)])
    result: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if step := re.fullmatch(r"(\d+)/(\d+)", line.strip()):
                    if progress is not None:
                        progress(int(step[1]), int(step[2]), "batches")
                else:
                    result = json.loads(line)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status != 0:
            raise _failed(model, messages, status)
    return result


class Conversation:
    """A running program that answers requests, one JSON object per line. Use as a context manager."""

    def __init__(self, tools: LlamaCpp, mode: str, model: Path, *arguments: int) -> None:
        self._model = model
        self._messages = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in close)
        command = bound([tools.program(PROGRAM), mode, str(model), *map(str, arguments)])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True, encoding="utf-8"
        )

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request. Raises `BadInput` with llama.cpp's message if the program has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            raise _failed(self._model, self._messages, self._process.wait())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()
        self._messages.close()


def tokens_of(conversation: Conversation, text: str, special: bool) -> Sequence[int]:
    """Token ids of a text; with `special`, with the tokens that the model puts around a text."""
    return [int(token) for token in conversation.ask({"text": text, "special": special})["tokens"]]


def _failed(model: Path, messages: Any, status: int) -> BadInput:
    messages.seek(0)
    text = messages.read()
    errors = [line for line in text.splitlines() if "error" in line.lower()]
    return BadInput(
        f"llama.cpp cannot run {model.name}",
        expected="a model that it can load, and enough memory",
        actual=last_lines("\n".join(errors) or text, 3) or f"status {status}",
        remedy="see the message; `trimoe inspect` checks the file",
    )
