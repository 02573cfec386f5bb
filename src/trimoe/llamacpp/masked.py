"""Runs `trimoe-masked-logits`: a GGUF model's logits with the router logits of chosen experts at -inf."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput
from trimoe.io.progress import Progress
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines

PROGRAM = "trimoe-masked-logits"


class MaskedLogits:
    """Computes masked logits for certify. Raises `MissingPrerequisite` if this llama.cpp was not built by trimoe."""

    def __init__(self, tools: LlamaCpp, threads: int = 1) -> None:
        self.program = tools.program(PROGRAM)
        self.threads = threads
        release = (tools.info or {}).get("release", {})
        self.version = str(release.get("commit") or tools.version() or "unknown")

    def __call__(self, model: Path, job: dict[str, Any], out: Path, progress: Progress | None) -> dict[str, Any]:
        """Run `job` on `model`, write logits to the folder `out` and return the program's record.

        Progress counts prompts. Raises `BadInput` with llama.cpp's message.
        """
        file = out / "input.json"
        file.write_text(json.dumps({"threads": self.threads, **job}))
        with (out / "messages.txt").open("w+") as messages:
            command = bound([self.program, str(model), str(file), str(out)])
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if progress is not None and (step := re.match(r"(\d+)/(\d+)$", line.strip())):
                        progress(int(step[1]), int(step[2]), f"logits of {model.name}")
                status = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            messages.seek(0)
            text = messages.read()
        if status != 0:
            errors = [line for line in text.splitlines() if "error" in line.lower()]
            raise BadInput(
                f"llama.cpp cannot run {model.name}",
                expected="a model that it can load",
                actual=last_lines("\n".join(errors) or text, 3) or f"status {status}",
            )
        return _result(out)


def _result(out: Path) -> dict[str, Any]:
    """The record that the program wrote. Raises `BadInput` if there is none."""
    try:
        data: dict[str, Any] = json.loads((out / "job.json").read_bytes())
    except (OSError, ValueError) as exc:
        raise BadInput(
            "trimoe-masked-logits wrote no result",
            expected="job.json",
            actual=str(exc)[:200],
            remedy="run `trimoe llamacpp install` again",
        ) from exc
    return data
