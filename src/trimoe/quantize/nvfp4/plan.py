"""The plan of an NVFP4 checkpoint: matrices to quantize, their names, contents of every output file. Headers only.

Invariants: every matrix of every expert in a decoder layer is planned, or the checkpoint is refused; all other tensors
are copied under their own names; order and files are those of `trimoe prune` (source order, within a file by item
size), so pruning the result gives the same tensors as quantizing the pruned model, and the same file if there is only
one. Matrices that loaders fuse share a group, and therefore a scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trimoe.cut.plan import DEFAULT_SHARD, shard_names
from trimoe.errors import BadInput, CheckpointError, Refused, UsageError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.family.hf import Role
from trimoe.model.nvfp4 import BLOCK
from trimoe.model.quant import method_of
from trimoe.model.safetensors import ITEM_BITS, TensorInfo, header_bytes, nbytes_of
from trimoe.quantize.nvfp4.codes import FLOATS
from trimoe.quantize.nvfp4.rules import LAYOUTS, rules

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Matrix:
    """One matrix [rows, columns] to quantize: module `name`, read from tensor `info`.

    In a stack it starts at row `first` of the expert's matrix, or at that column if the stack is `transposed`
    ([columns, all rows]).
    """

    name: str
    info: TensorInfo
    rows: int
    columns: int
    group: str
    expert: int | None = None
    first: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class Entry:
    """An output tensor: a copy of `source`, or a `part` (weight, scale, scale_2) of a quantized `matrix`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorInfo | None = None
    matrix: Matrix | None = None
    part: str = ""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return nbytes_of(self.dtype, self.shape)


@dataclass(frozen=True)
class File:
    """One output file; tensors in the order of their bytes."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def header(self) -> bytes:
        """The safetensors header of the file."""
        return header_bytes({entry.name: (entry.dtype, entry.shape) for entry in self.entries}, {"format": "pt"})


@dataclass(frozen=True)
class Plan:
    """All output files, the matrices, and the modules that are not quantized (for `ignore`)."""

    layout: str
    files: tuple[File, ...]
    matrices: tuple[Matrix, ...]
    ignored: tuple[str, ...]

    @property
    def entries(self) -> Iterator[Entry]:
        """Every output tensor."""
        return (entry for file in self.files for entry in file.entries)


def plan_nvfp4(checkpoint: Checkpoint, layout: str = "modelopt", max_shard: int = DEFAULT_SHARD) -> Plan:
    """Plan the quantization of a checkpoint.

    Raises `UsageError` (unknown layout), `BadInput` (quantized already), `CheckpointError` (a row that 16 does not
    divide, a weight of another type, a stack in unknown order) or `Refused` (an expert would stay unquantized).
    """
    if layout not in LAYOUTS:
        raise UsageError(f"there is no NVFP4 layout {layout}", expected=" or ".join(LAYOUTS), actual=layout)
    _refuse_quantized(checkpoint)
    entries: list[Entry] = []
    matrices: list[Matrix] = []
    unquantized: list[str] = []
    for info in checkpoint.index.values():
        found = list(matrices_of(checkpoint, info))
        for matrix in found:
            _check(matrix)
            entries += _parts(matrix, layout)
        if not found:
            entries.append(Entry(info.name, info.dtype, info.shape, source=info))
            if len(info.shape) >= 2 and info.name.endswith(_WEIGHT) and not fnmatchcase(info.name, "*embed_tokens*"):
                unquantized.append(info.name.removesuffix(_WEIGHT))
        matrices += found
    _refuse_missing(checkpoint, matrices)
    if twice := len(entries) - len({entry.name for entry in entries}):
        raise CheckpointError(
            f"{twice} tensors would be written twice",
            expected="each name once",
            remedy="the checkpoint stores its experts in two layouts: download it again",
        )
    ignored = {*rules().always_ignored, *unquantized}
    if layout == "modelopt":
        ignored = wildcards(ignored, {matrix.name for matrix in matrices})
    return Plan(layout, _files(entries, max_shard), tuple(matrices), tuple(sorted(ignored)))


def matrices_of(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[Matrix]:
    """The matrices into which a source tensor is quantized; none if it is copied."""
    tensor = checkpoint.expert_tensors.get(info.name)
    if checkpoint.layer_of(info.name) is None or (
        tensor is None and not _is_linear(info, checkpoint.family.nvfp4.keep)
    ):
        return
    if tensor is None or (tensor.expert is not None and tensor.role in rules().matrices):
        yield _matrix(info.name.removesuffix(_WEIGHT), info)
    elif tensor.expert is None and tensor.role in rules().split:
        yield from _unstacked(checkpoint, tensor)


def wildcards(ignored: set[str], quantized: set[str]) -> set[str]:
    """Model Optimizer's short form: for each module the shortest prefix that matches no quantized module.

    `a.b*` if no quantized name starts with `a.b`, else `a.b.*` if none starts with `a.b.`, else the name itself.
    """
    beginnings = {name[:end] for name in quantized for end in range(len(name) + 1)}
    found = set()
    for name in ignored:
        dots = [at for at, letter in enumerate(name) if letter == "."]
        forms = [(name[:at], name[:at] + dot) for at in dots for dot in ("", ".")]
        found.add(next((form + "*" for _, form in forms if form not in beginnings), name))
    return found


def _is_linear(info: TensorInfo, keep: tuple[str, ...]) -> bool:
    kept = any(fnmatchcase(info.name, pattern) for pattern in (*rules().keep, *keep))
    return len(info.shape) == 2 and info.name.endswith(_WEIGHT) and info.dtype in FLOATS and not kept


def _matrix(name: str, info: TensorInfo) -> Matrix:
    return Matrix(name, info, info.shape[0], info.shape[1], _group(name))


def _group(name: str) -> str:
    """The group of a module: modules that share a scale have the same."""
    parent, _, last = name.rpartition(".")
    return next((f"{parent}.{'+'.join(names)}" for names in rules().shared if last in names), name)


def _unstacked(checkpoint: Checkpoint, tensor: ExpertTensor) -> Iterator[Matrix]:
    """The matrices of a stack, expert by expert."""
    info, into = tensor.info, checkpoint.family.nvfp4.unstack
    if into is None:
        raise Refused(
            f"family {checkpoint.family.name} stores its experts in stacks that NVFP4 cannot take apart",
            expected="nvfp4.unstack in the family file: the layout that loaders expect",
            actual=f"tensor {info.name}",
            remedy="make GGUF tiers of this model, or add the key (docs/howto/add-a-family.md)",
        )
    role, parts = checkpoint.hf.roles[tensor.role], rules().split[tensor.role]
    targets = [checkpoint.hf.layouts[into][part] for part in parts]
    prefix = info.name.removesuffix(role.tensor)
    transposed = _transposed(role, targets[0])
    _, outer, inner = info.shape
    columns, rows = (outer, inner // len(parts)) if transposed else (inner, outer // len(parts))
    for expert in range(info.shape[0]):
        for number, target in enumerate(targets):
            name = prefix + target.tensor.replace("{E}", str(expert)).removesuffix(_WEIGHT)
            yield Matrix(name, info, rows, columns, _group(name), expert, number * rows, transposed)


def _transposed(role: Role, target: Role) -> bool:
    """Whether a stack holds [inputs, outputs]; `target` is [outputs, inputs]. Raises `CheckpointError` if unclear."""
    axes = tuple(text[-1] for text in role.shape)
    if axes == ("E", target.shape[0][-1], target.shape[1][-1]):
        return False
    if axes == ("E", target.shape[1][-1], target.shape[0][-1]):
        return True
    raise CheckpointError(
        f"stack {role.tensor} has axes in an unknown order",
        expected="[E, outputs, inputs] or [E, inputs, outputs]",
        actual=str(list(role.shape)),
        remedy="correct the shapes in the family file",
    )


def _parts(matrix: Matrix, layout: str) -> list[Entry]:
    name, rows, columns = matrix.name, matrix.rows, matrix.columns
    weight, second, scalar = (
        ("weight", "weight_scale_2", ()) if layout == "modelopt" else ("weight_packed", "weight_global_scale", (1,))
    )
    return [
        Entry(f"{name}.{weight}", "U8", (rows, columns // 2), matrix=matrix, part="weight"),
        Entry(f"{name}.weight_scale", "F8_E4M3", (rows, columns // BLOCK), matrix=matrix, part="scale"),
        Entry(f"{name}.{second}", "F32", scalar, matrix=matrix, part="scale_2"),
    ]


def _files(entries: list[Entry], max_shard: int) -> tuple[File, ...]:
    """Distribute tensors to files as `plan_shards` does for a cut."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > max_shard:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    ordered = [tuple(sorted(group, key=lambda e: -ITEM_BITS[e.dtype])) for group in groups]
    return tuple(File(name, group) for name, group in zip(shard_names(len(groups)), ordered, strict=True))


def _check(matrix: Matrix) -> None:
    if matrix.info.dtype not in FLOATS:
        raise CheckpointError(
            f"tensor {matrix.info.name} is not a floating-point weight",
            expected=", ".join(FLOATS),
            actual=matrix.info.dtype,
            remedy="quantize the unquantized checkpoint",
        )
    if matrix.columns % BLOCK or not matrix.rows * matrix.columns:
        raise CheckpointError(
            f"{matrix.name} cannot be quantized to NVFP4",
            expected=f"rows of a multiple of {BLOCK} weights",
            actual=f"rows of {matrix.columns}",
            remedy="list it under nvfp4.keep in the family file, or make GGUF tiers",
        )


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    method = method_of(checkpoint.config)
    if method is not None or checkpoint.quant is not None:
        name = method or (checkpoint.quant.name if checkpoint.quant else "")
        raise BadInput(
            f"{checkpoint.path} is already quantized",
            expected="weights in BF16, F16 or F32",
            actual=f"quantization {name}",
            remedy="quantize the unquantized checkpoint",
        )


def _refuse_missing(checkpoint: Checkpoint, matrices: list[Matrix]) -> None:
    """Refuse a plan that would name a checkpoint NVFP4 and leave experts in BF16."""
    planned = {matrix.info.name for matrix in matrices}
    for name, tensor in checkpoint.expert_tensors.items():
        expert = tensor.expert is not None or tensor.role in rules().split or len(tensor.info.shape) == 3
        if expert and name not in planned and checkpoint.layer_of(name) is not None:
            raise Refused(
                f"expert tensor {name} would stay {tensor.info.dtype}",
                expected="every expert in NVFP4",
                actual=f"no rule for role {tensor.role} of family {checkpoint.family.name}",
                remedy="make GGUF tiers of this model",
            )
    if not any(checkpoint.expert_tensors.get(name) for name in planned):
        raise Refused(
            "no experts were found in the decoder layers",
            expected="a mixture of experts",
            actual="none",
            remedy="make GGUF tiers of this model",
        )
