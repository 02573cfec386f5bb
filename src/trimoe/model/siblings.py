"""Compares the tensors of each quantized expert with those of its siblings.

Many tensors beside quantized values are optional for a scheme (a second scale, zero points, an order of inputs, a
nested state), but not for one matrix while its siblings have them: that matrix cannot be dequantized. A cut would carry
the fault along, and every byte of it would be right.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trimoe.errors import CheckpointError
from trimoe.model.quant import Part, Quant
from trimoe.model.safetensors import TensorInfo


@dataclass(frozen=True)
class QuantizedMatrix:
    """One quantized weight: its role, its block, and the names of its tensors by suffix ("" are the values).

    `stem` is the name that a missing tensor's suffix is added to.
    """

    role: str
    block: str
    kind: str
    """Type of the values: matrices of one type are quantized in one way."""
    stem: str
    tensors: frozenset[str]


def quantized_matrices(
    role: str, block: str, parts: Sequence[Part], index: Mapping[str, TensorInfo]
) -> Iterator[QuantizedMatrix]:
    """The quantized weights among the parts of a role in one block; unquantized ones are left out."""
    found: dict[int | None, list[Part]] = defaultdict(list)
    for part in parts:
        found[part.expert].append(part)
    for own in found.values():
        values = next((part for part in own if not part.companion), None)
        companions = frozenset(part.companion for part in own if part.companion)
        if values is None or not companions or values.name not in index:
            continue
        beside = next(part for part in own if part.companion)
        stem = beside.name.removesuffix(beside.companion)
        yield QuantizedMatrix(role, block, index[values.name].dtype, stem, companions)


def compare_siblings(matrices: Iterable[QuantizedMatrix], quant: Quant | None) -> list[str]:
    """Warnings. Raises `CheckpointError` naming a tensor that one matrix lacks and its siblings have.

    Siblings are the matrices of one role in one block, quantized to one type. A whole block that lacks what other
    blocks have is refused for the factor of the whole weight, and otherwise a warning: blocks may be quantized
    differently. Scales of inputs (activations) are a warning too: the weight can be dequantized without them.
    """
    blocks: dict[tuple[str, str, str], list[QuantizedMatrix]] = defaultdict(list)
    for matrix in matrices:
        blocks[matrix.role, matrix.kind, matrix.block].append(matrix)
    warnings = []
    for (role, _, block), siblings in blocks.items():
        for suffix, lacking in _lacking(siblings):
            share = f"{_share(siblings, lacking)} {role} matrices in {block[:-1]} have it"
            if not suffix.startswith("input"):
                raise _refusal(lacking[0], suffix, share)
            warnings.append(f"tensor {lacking[0].stem}{suffix} is missing: {share}")
    factors = {rule.factor for rule in (*quant.module, *quant.stack) if rule.factor} if quant else set()
    kinds: dict[str, list[QuantizedMatrix]] = defaultdict(list)
    for (_, kind, _), siblings in blocks.items():
        kinds[kind].append(siblings[0])  # the siblings have the same tensors, as was just checked
    for first in kinds.values():
        for suffix, lacking in _lacking(first):
            if suffix in factors:
                raise _refusal(lacking[0], suffix, f"{_share(first, lacking)} groups of matrices of one role have it")
    return warnings


def _lacking(matrices: Sequence[QuantizedMatrix]) -> list[tuple[str, list[QuantizedMatrix]]]:
    """Suffixes that some of the matrices have and others lack, with those that lack them."""
    counts = Counter(suffix for matrix in matrices for suffix in matrix.tensors)
    partial = sorted(suffix for suffix, count in counts.items() if count < len(matrices))
    return [(suffix, [m for m in matrices if suffix not in m.tensors]) for suffix in partial]


def _share(matrices: Sequence[QuantizedMatrix], lacking: Sequence[QuantizedMatrix]) -> str:
    return f"{len(matrices) - len(lacking)} of {len(matrices)}"


def _refusal(matrix: QuantizedMatrix, suffix: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {matrix.stem}{suffix} is missing",
        expected=f"the same tensors for every expert: {what}",
        actual=f"{matrix.stem.rstrip('._')} has {', '.join(sorted(matrix.tensors))}",
        remedy="quantize the model again with calibration data that reaches every expert, or fetch the shard again",
    )
