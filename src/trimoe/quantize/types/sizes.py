"""Predicts the size of a GGUF file to the byte: header, tensors by predicted type, padding. Pure.

The header is what llama-quantize writes: the metadata of its input without the keys of a split, with the file type, the
quantization version and, if there is an imatrix, up to four keys about it (tools/quantize/quantize.cpp of the pinned
release). Tensor data are padded to 32 bytes each, the last one too.
Not guaranteed: for a plan from a configuration alone, `Metadata.exact` is false: the vocabulary's size is an estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from trimoe.errors import CheckpointError
from trimoe.model.gguf.file import Gguf
from trimoe.model.gguf.format import nbytes_of, padded
from trimoe.model.gguf.header import DEFAULT_ALIGNMENT
from trimoe.model.gguf.imatrix import Imatrix
from trimoe.quantize.types.tensor_types import Choice, ModelFacts, Request, Tensor
from trimoe.quantize.types.type_rules import choose_types

# Keys that llama-quantize sets, with the bytes of their values (uint32).
_SET = {"general.quantization_version": 4, "general.file_type": 4}
IMATRIX_KEYS = "quantize.imatrix."
IMATRIX_NAME, DATASET_NAME = (
    "imatrix.gguf",
    "calibration.txt",
)  # names in a ladder's folder, fixed so that sizes are known
_MAX_TEXT = 127  # llama-quantize truncates longer names


@dataclass(frozen=True)
class Metadata:
    """Bytes of all metadata entries, without the file's first 24 bytes; `exact` is false for an estimate."""

    nbytes: int
    exact: bool = True


@dataclass(frozen=True)
class Size:
    """A predicted file: bytes of `header` and `data`; `values` is the number of weights."""

    header: int
    data: int
    values: int
    choices: tuple[Choice, ...]
    exact: bool

    @property
    def file_bytes(self) -> int:
        """Size of the file in bytes."""
        return self.header + self.data

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file per weight."""
        return 8 * self.file_bytes / self.values

    def type_mix(self) -> dict[str, int]:
        """type -> bytes of tensor data, largest first."""
        mix: dict[str, int] = {}
        for choice in self.choices:
            mix[choice.dtype] = mix.get(choice.dtype, 0) + nbytes_of(choice.dtype, choice.tensor.shape)
        return dict(sorted(mix.items(), key=lambda item: (-item[1], item[0])))


def predict(
    tensors: Sequence[Tensor], facts: ModelFacts, metadata: Metadata, request: Request, about_imatrix: int | None = None
) -> Size:
    """The file that llama-quantize makes of these tensors. Raises `CheckpointError` where it could not.

    `about_imatrix` is the size of the metadata about the imatrix, if the request has one; by default that of a ladder.
    """
    choices = choose_types(tensors, facts, request)
    data = sum(padded(nbytes_of(c.dtype, c.tensor.shape), DEFAULT_ALIGNMENT) for c in choices)
    infos = sum(_info_bytes(choice.tensor) for choice in choices)
    about = imatrix_bytes(IMATRIX_NAME, DATASET_NAME, 1) if about_imatrix is None else about_imatrix
    header = padded(24 + metadata.nbytes + about * request.imatrix + infos, DEFAULT_ALIGNMENT)
    values = sum(prod(choice.tensor.shape) for choice in choices)
    return Size(header, data, values, tuple(choices), metadata.exact)


def facts_of(gguf: Gguf) -> ModelFacts:
    """The facts that the rules depend on, from a file's metadata. Raises `CheckpointError`."""
    architecture = str(gguf.get("general.architecture"))
    layers = gguf.integer(f"{architecture}.block_count")
    if layers is None:
        raise CheckpointError(
            f"{gguf.path} has no {architecture}.block_count",
            expected="a model",
            actual="no such key",
            remedy="give a GGUF model",
        )
    heads, kv = (_first(gguf, f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv"))
    kv = kv if f"{architecture}.attention.head_count_kv" in gguf.fields else heads
    return ModelFacts(architecture, layers, gguf.integer(f"{architecture}.expert_count") or 0, heads // kv if kv else 0)


def metadata_of(gguf: Gguf) -> Metadata:
    """Metadata of the file that llama-quantize makes of this one, without the keys about an imatrix."""
    if (alignment := gguf.files[0].alignment) != DEFAULT_ALIGNMENT:
        raise CheckpointError(
            f"{gguf.path} is aligned to {alignment} bytes",
            expected=str(DEFAULT_ALIGNMENT),
            actual=str(alignment),
            remedy="convert the model again with llama.cpp's own converter",
        )
    keep = {k: len(f.raw) for k, f in gguf.fields.items() if not k.startswith(("split.", IMATRIX_KEYS))}
    return Metadata(sum((keep | {key: 12 + len(key) + size for key, size in _SET.items()}).values()))


def imatrix_bytes(name: str, dataset: str | None, chunks: int) -> int:
    """Bytes of the metadata about an imatrix; `name` is the path given to llama-quantize."""
    texts = {"file": name} if dataset is None else {"file": name, "dataset": dataset}
    numbers = ("entries_count", "chunks_count") if chunks > 0 else ("entries_count",)
    return sum(12 + len(IMATRIX_KEYS + key) + 8 + len(text.encode()[:_MAX_TEXT]) for key, text in texts.items()) + sum(
        12 + len(IMATRIX_KEYS + key) + 4 for key in numbers
    )


def bytes_about(imatrix: Imatrix, name: str) -> int:
    """`imatrix_bytes` of an opened imatrix."""
    datasets = _datasets(imatrix)
    return imatrix_bytes(name, datasets[0] if datasets else None, _chunks(imatrix))


def _datasets(imatrix: Imatrix) -> list[str]:
    if imatrix.gguf is not None:
        return [str(name) for name in imatrix.gguf.get("imatrix.datasets", [])]
    # .dat: after the entries the number of calls, then a length and the dataset's name; both may be missing.
    trailer = imatrix.trailer
    return (
        [trailer[8 : 8 + int.from_bytes(trailer[4:8], "little")].decode(errors="replace")] if len(trailer) > 8 else []
    )


def _chunks(imatrix: Imatrix) -> int:
    if imatrix.gguf is not None:
        return int(imatrix.gguf.get("imatrix.chunk_count", 0))
    return int.from_bytes(imatrix.trailer[:4], "little", signed=True) if len(imatrix.trailer) >= 4 else 0


def _info_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's entry in the header: name, axes (without trailing ones in ggml's order), type, offset."""
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return 8 + len(tensor.name.encode()) + 4 + 8 * max(1, len(shape)) + 4 + 8


def _first(gguf: Gguf, key: str) -> int:
    value = gguf.get(key, 0)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else 0
