"""KL divergence of one file from its base, chunk by chunk, through llama-perplexity.

The base's log-probabilities are stored once for a text, cut into chunks of `context` tokens, and each file is compared
on the second half of every chunk. The mean is llama.cpp's, to 6 decimals. Per chunk llama.cpp prints running means to 5
decimals, from which chunk means are recovered to about 1e-5 times the number of chunks.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimoe.errors import BadInput, CheckpointError
from trimoe.io.atomic import require_space
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines
from trimoe.model.gguf.file import open_gguf

ATTEMPTS = 25
# Where differences are only rounding, their errors print as nan or -nan; the mean before them is valid.
_CHUNK = re.compile(r"^ *(\d+) +\S+ ± +\S+ +\S+ ± +\S+ +(-?[\d.]+) ± +\S+ ", re.M)
_BASE = re.compile(r"Final estimate: PPL = ([\d.]+)")
_FINAL = {
    "kld": re.compile(r"^Mean +KLD: +(-?[\d.]+) ± +([\d.]+)", re.M),
    "kld_median": re.compile(r"^Median +KLD: +(-?[\d.]+)", re.M),
    "kld_99": re.compile(r"^99\.0% +KLD: +(-?[\d.]+)", re.M),
    "perplexity": re.compile(r"^Mean PPL\(Q\) +: +([\d.]+)", re.M),
    "same_top": re.compile(r"^Same top p: +([\d.]+)", re.M),
}


@dataclass(frozen=True)
class Measured:
    """Measurements of one file: llama.cpp's means, and the KL divergence of each chunk (nats per token)."""

    file: Path
    values: dict[str, float]
    chunks: np.ndarray


def parse(text: str, file: Path) -> Measured:
    """Read llama-perplexity's report. Raises `BadInput` for an incomplete one, as from a text that is too short."""
    values = {}
    for name, pattern in _FINAL.items():
        match = pattern.search(text)
        if match is None:
            raise BadInput(
                f"llama-perplexity gave no statistics for {file.name}",
                expected="at least 100 tokens",
                actual=last_lines(text),
                remedy="use a longer text or more --chunks",
            )
        values[name] = float(match[1])
    lines = _CHUNK.findall(text)
    if [int(number) for number, _ in lines] != list(range(1, len(lines) + 1)) or not lines:
        raise BadInput(
            f"llama-perplexity's report on {file.name} has gaps",
            expected="one line per chunk, in order",
            actual=", ".join(number for number, _ in lines[:10]) or "none",
            remedy="use the pinned release (trimoe llamacpp install)",
        )
    running = np.array([float(mean) for _, mean in lines])
    counts = np.arange(1, len(running) + 1)
    totals = running * counts
    return Measured(file, values, np.diff(totals, prepend=0.0))


class Reference:
    """A base's log-probabilities on a text, stored once; files are compared with them one after the other.

    A context manager: leaving it removes the stored probabilities (about 2 bytes per vocabulary entry and token).
    """

    def __init__(self, tools: LlamaCpp, base: Path, text: Path, *, chunks: int, context: int, threads: int) -> None:
        self.base, self.text, self.chunks, self.context = base, text, chunks, context
        self.vocabulary = _vocabulary(base)
        self.perplexity: float | None = None
        self._common = [
            str(tools.program("llama-perplexity")),
            "-f",
            str(text),
            "-c",
            str(context),
            "-b",
            str(context),
            "--chunks",
            str(chunks),
            "-t",
            str(threads),
        ]
        self._folder = tempfile.TemporaryDirectory(prefix="trimoe-kld-")

    def __enter__(self) -> "Reference":
        # llama.cpp stores 16 bits per log-probability of half of each chunk, and a scale per token.
        logits = Path(self._folder.name) / "logits"
        try:
            require_space(logits, self.chunks * (self.context // 2) * 2 * (self.vocabulary + 4))
            said = _complete(
                [*self._common, "-m", str(self.base), "--kl-divergence-base", str(logits)], self.base, _BASE
            )
        except BaseException:
            self._folder.cleanup()
            raise
        # The comparison also prints a perplexity of the base, but from probabilities that are stored in 16 bits and
        # clipped at the low end; the base's own run is exact.
        own = _BASE.search(said)
        self.perplexity = float(own[1]) if own else None
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def require_same_vocabulary(self, file: Path) -> None:
        """Raise `CheckpointError` for a file of another vocabulary."""
        if _vocabulary(file) != self.vocabulary:
            raise CheckpointError(
                f"{file} has another vocabulary than {self.base}",
                expected=f"{self.vocabulary} tokens",
                actual=str(_vocabulary(file)),
                remedy="compare files of one model",
            )

    def compare(self, file: Path) -> Measured:
        """KL divergence of a file from the base. Raises `BadInput`."""
        logits = Path(self._folder.name) / "logits"
        command = [*self._common, "-m", str(file), "--kl-divergence-base", str(logits), "--kl-divergence"]
        return parse(_complete(command, file, _FINAL["same_top"]), file)


def _vocabulary(file: Path) -> int:
    embedding = open_gguf(file).index.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(
            f"{file} has no token_embd.weight",
            expected="a language model",
            actual="no such tensor",
            remedy="give a GGUF file of a language model",
        )
    return embedding.shape[0]


def _complete(command: list[str], file: Path, end: re.Pattern[str]) -> str:
    """A complete report, or the last of `ATTEMPTS` incomplete ones (a text that is too short gives no end).

    llama-perplexity prints from a logger thread that main leaves behind without a flush when it returns (common/log.cpp
    leaks the singleton on purpose, see github.com/ggml-org/llama.cpp/issues/22142). If that thread is not scheduled at
    once, the last lines are lost although the status is 0: in 2 of 20 runs, and in none of 20 with exit_group delayed
    by 0.2 s. Signals, pipes and buffers play no part in it, so the only remedy is to run it again.
    """
    for _ in range(ATTEMPTS - 1):
        if end.search(said := _run(command, file)):
            return said
    return _run(command, file)


def _run(command: list[str], file: Path) -> str:
    answer = subprocess.run(bound(command), capture_output=True, encoding="utf-8", errors="replace", check=False)
    if answer.returncode != 0:
        raise BadInput(
            f"llama-perplexity failed with {file.name}",
            expected="a model that loads and enough text",
            actual=last_lines(answer.stderr or answer.stdout),
            remedy="see its message",
        )
    return answer.stdout + answer.stderr
