"""How far quantized files are from their base: KL divergence per token through llama-perplexity, with paired intervals.

The base's log-probabilities are stored once for a text, cut into chunks of `context` tokens, and each file is compared
on the second half of every chunk. Chunks are the sampling unit: tokens of one chunk depend on each other, so
llama.cpp's own error (over tokens) is too small. Intervals are percentile bootstraps over chunks, with the same
resamples for every file, so that differences between files are paired. The mean is llama.cpp's, to 6 decimals; per
chunk it prints running means to 5 decimals, from which chunk means are recovered to about 1e-5 times the number of
chunks (stated as `resolution`).
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.errors import BadInput, CheckpointError
from trimoe.io.atomic import require_space
from trimoe.io.canonical import sha256_bytes, sha256_file
from trimoe.io.progress import Progress
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines
from trimoe.model.gguf.file import open_gguf

RESAMPLES = 10_000
ATTEMPTS = 25
# Errors of differences that are all rounding print as nan or -nan: the mean before them is still good.
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
    """One file: llama.cpp's means and the KL divergence of each chunk (nats per token)."""

    file: Path
    values: dict[str, float]
    chunks: np.ndarray


def parse(text: str, file: Path) -> Measured:
    """Read llama-perplexity's report. Raises `BadInput` if it is not one (too few tokens give none)."""
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
        )
    running = np.array([float(mean) for _, mean in lines])
    counts = np.arange(1, len(running) + 1)
    totals = running * counts
    return Measured(file, values, np.diff(totals, prepend=0.0))


class Reference:
    """A base's log-probabilities on a text, stored once, against which files are compared one after the other.

    A context manager: the stored probabilities (about 2 bytes per vocabulary entry and token) go away with it.
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
        # The comparison prints a perplexity of the base too, but from probabilities stored in 16 bits and cut off at
        # the low end; the base's own run is exact.
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


def measure(
    tools: LlamaCpp,
    base: Path,
    files: Sequence[Path],
    text: Path,
    *,
    chunks: int,
    context: int,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare files with their base on a text. Raises `BadInput` for models of another vocabulary or a short text."""
    report = progress or (lambda done, total, note: None)
    reference = Reference(tools, base, text, chunks=chunks, context=context, threads=threads)
    for file in files:
        reference.require_same_vocabulary(file)
    report(0, len(files) + 1, f"logits of {base.name}")
    with reference:
        found = []
        for number, file in enumerate(files, 1):
            report(number, len(files) + 1, file.name)
            found.append(reference.compare(file))
    counts = {len(one.chunks) for one in found}
    if len(counts) != 1 or 0 in counts:
        raise BadInput(
            "llama-perplexity measured different chunks",
            expected="the same number for every file",
            actual=str(sorted(counts)),
        )
    return summary(base, found, text, context) | {"perplexity_base": reference.perplexity}


def summary(base: Path, found: Sequence[Measured], text: Path, context: int) -> dict[str, Any]:
    """Means, intervals, and each file's paired difference to the closest one."""
    count = len(found[0].chunks)
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    best = min(found, key=lambda one: one.values["kld"])
    rows = []
    for one in found:
        difference = one.chunks - best.chunks
        rows.append(
            {
                "file": one.file.name,
                "sha256": sha256_file(one.file),
                "file_bytes": one.file.stat().st_size,
                **one.values,
                "kld_interval": _interval(one.chunks[draws].mean(axis=1)),
                "more_than_best": one.values["kld"] - best.values["kld"],
                "more_than_best_interval": _interval(difference[draws].mean(axis=1)),
            }
        )
    return {
        "base": base.name,
        "text_sha256": sha256_bytes(text.read_bytes()),
        "context": context,
        "chunks": count,
        "tokens": count * (context - 1 - context // 2),
        "resolution": 1e-5 * count,
        "best": best.file.name,
        "files": rows,
    }


def _interval(means: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(means, (0.025, 0.975))]


def _vocabulary(file: Path) -> int:
    embedding = open_gguf(file).index.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file} has no token_embd.weight", expected="a language model")
    return embedding.shape[0]


def _complete(command: list[str], file: Path, end: re.Pattern[str]) -> str:
    """A report with its end, or the last of `ATTEMPTS` without it (a text that is too short has none).

    llama-perplexity prints from a thread of its logger, which main leaves behind without a flush when it returns
    (common/log.cpp: the singleton is leaked on purpose, see github.com/ggml-org/llama.cpp/issues/22142). Where that
    thread does not run at once the last lines are lost, with status 0: 2 of 20 runs here, none of 20 with exit_group
    delayed by 0.2 s. No signal, no pipe and no buffer of ours has part in it, so nothing but asking again helps.
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
