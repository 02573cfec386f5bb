"""KL divergence of quantized files from their base on a held-out text, with paired intervals.

Chunks are the sampling unit: tokens of one chunk depend on each other, so llama.cpp's own error (over tokens) is too
small. Intervals are percentile bootstraps over chunks, with the same resamples for every file, so that differences
between files are paired. Not guaranteed: more than `resolution`, which the printed decimals limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.errors import BadInput
from trimoe.io.atomic import require_absent
from trimoe.io.canonical import sha256_bytes, sha256_file
from trimoe.io.frames import data_frame
from trimoe.io.jsonfile import write_json
from trimoe.io.manifest import write_manifest
from trimoe.io.progress import Progress, silent
from trimoe.llamacpp.tools import LlamaCpp, locate
from trimoe.quantize.perplexity import Measured, Reference

RESAMPLES = 10_000


@dataclass(frozen=True)
class FileDivergence:
    """KL divergence of one file from the base, in nats per token, with 95 % intervals over chunks.

    `values` are llama.cpp's means: kld, kld_median, kld_99, perplexity, same_top (percent of tokens whose most likely
    token is the same). `more_than_best` is the difference to the closest file, paired over the same chunks.
    """

    file: str
    sha256: str
    file_bytes: int
    values: dict[str, float]
    interval: tuple[float, float]
    more_than_best: float
    more_than_best_interval: tuple[float, float]

    @property
    def kld(self) -> float:
        """Mean KL divergence."""
        return self.values["kld"]

    def as_dict(self) -> dict[str, Any]:
        """The file as JSON values."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "file_bytes": self.file_bytes,
            **self.values,
            "kld_interval": list(self.interval),
            "more_than_best": self.more_than_best,
            "more_than_best_interval": list(self.more_than_best_interval),
        }


@dataclass(frozen=True)
class Divergences:
    """Files compared with one base. `tokens` is the number compared, `resolution` bounds the error of chunk means."""

    base: str
    text_sha256: str
    context: int
    chunks: int
    tokens: int
    resolution: float
    best: str
    files: tuple[FileDivergence, ...]
    perplexity_base: float | None

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values: the output of `trimoe kld --json`."""
        return {
            "base": self.base,
            "text_sha256": self.text_sha256,
            "context": self.context,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "resolution": self.resolution,
            "best": self.best,
            "files": [file.as_dict() for file in self.files],
            "perplexity_base": self.perplexity_base,
        }

    def to_pandas(self) -> Any:
        """One line per file. Raises `MissingPrerequisite` without pandas."""
        records = [{"file": f.file, "file_bytes": f.file_bytes, **f.values} for f in self.files]
        return data_frame({name: [record[name] for record in records] for name in records[0]})


def kld(
    base: Path | str,
    files: Sequence[Path | str],
    *,
    text: Path | str,
    chunks: int = 64,
    context: int = 512,
    threads: int = 1,
    out: Path | str | None = None,
    llamacpp: Path | str | None = None,
    progress: Progress | None = None,
) -> Divergences:
    """Compare quantized GGUF files with their unquantized base, token by token, on a held-out text.

    `chunks` of `context` tokens are compared. `out` also writes the result as JSON, with a manifest. Raises
    `CheckpointError` for files of another vocabulary, `BadInput` for a short text, `MissingPrerequisite` without
    llama.cpp.
    """
    target = None if out is None else Path(out)
    if target is not None:
        require_absent(target)
    tools = locate(None if llamacpp is None else Path(llamacpp))
    paths = [Path(file) for file in files]
    made = measure(
        tools, Path(base), paths, Path(text), chunks=chunks, context=context, threads=threads, progress=progress
    )
    if target is not None:
        write_json(target, made.as_dict())
        inputs = {
            "text": made.text_sha256,
            "context": context,
            "chunks": made.chunks,
            "files": [file.sha256 for file in made.files],
            "llamacpp": tools.info or tools.version(),
        }
        write_manifest(target, "kld", inputs)
    return made


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
) -> Divergences:
    """`kld` with located programs; writes nothing."""
    report = progress or silent
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
            "llama-perplexity measured different numbers of chunks",
            expected="the same number for every file",
            actual=str(sorted(counts)),
            remedy="compare files of one model",
        )
    return summary(base, found, text, context, reference.perplexity)


def summary(
    base: Path, found: Sequence[Measured], text: Path, context: int, perplexity: float | None = None
) -> Divergences:
    """Means, intervals, and each file's paired difference to the closest one. `perplexity` is the base's own."""
    count = len(found[0].chunks)
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    best = min(found, key=lambda one: one.values["kld"])
    files = tuple(
        FileDivergence(
            one.file.name,
            sha256_file(one.file),
            one.file.stat().st_size,
            one.values,
            _interval(one.chunks[draws].mean(axis=1)),
            one.values["kld"] - best.values["kld"],
            _interval((one.chunks - best.chunks)[draws].mean(axis=1)),
        )
        for one in found
    )
    return Divergences(
        base=base.name,
        text_sha256=sha256_bytes(text.read_bytes()),
        context=context,
        chunks=count,
        tokens=count * (context - 1 - context // 2),
        resolution=1e-5 * count,
        best=best.file.name,
        files=files,
        perplexity_base=perplexity,
    )


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = (float(value) for value in np.quantile(means, (0.025, 0.975)))
    return low, high
