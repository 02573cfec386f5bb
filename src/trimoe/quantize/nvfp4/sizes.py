"""Size of an NVFP4 checkpoint to the byte, from the headers of its source alone."""

from dataclasses import dataclass, replace

from trimoe.cut.plan import DEFAULT_SHARD
from trimoe.errors import UsageError
from trimoe.model.checkpoint import Checkpoint, bind
from trimoe.model.family.recognise import Recognised
from trimoe.model.safetensors import TensorInfo, nbytes_of
from trimoe.quantize.nvfp4.plan import Plan, plan_nvfp4


@dataclass(frozen=True)
class Nvfp4Size:
    """Bytes of all weight files with their headers, of their tensors, and of the quantized tensors.

    `values` counts weights (not scales). Not included: config, tokenizer and the index, a few MB at most.
    """

    file_bytes: int
    tensor_bytes: int
    quantized_bytes: int
    values: int
    quantized_values: int
    files: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of the files per weight (bpw)."""
        return 8 * self.file_bytes / self.values


def predict(
    checkpoint: Checkpoint, layout: str = "modelopt", *, keep: int | None = None, max_shard: int = DEFAULT_SHARD
) -> Nvfp4Size:
    """The size of `trimoe quantize --tiers NVFP4A16`; with `keep`, after pruning to this many experts per layer.

    Reads no weights. Raises the errors of `plan_nvfp4`, and `UsageError` for an impossible `keep`.
    """
    return size_of_plan(plan_nvfp4(with_experts(checkpoint, keep) if keep else checkpoint, layout, max_shard))


def size_of_plan(plan: Plan) -> Nvfp4Size:
    """The size of a plan."""
    copied = [entry for entry in plan.entries if entry.source is not None]
    tensors = sum(file.nbytes for file in plan.files)
    quantized_values = sum(matrix.rows * matrix.columns for matrix in plan.matrices)
    values = quantized_values
    for entry in copied:
        count = 1
        for length in entry.shape:
            count *= length
        values += count
    return Nvfp4Size(
        tensors + sum(len(file.header) for file in plan.files),
        tensors,
        tensors - sum(e.nbytes for e in copied),
        values,
        quantized_values,
        len(plan.files),
    )


def with_experts(checkpoint: Checkpoint, keep: int) -> Checkpoint:
    """The headers of a checkpoint pruned to its first `keep` experts; its bytes must not be read."""
    if not checkpoint.top_k <= keep <= checkpoint.num_experts:
        raise UsageError(
            f"{keep} experts cannot be kept",
            expected=f"{checkpoint.top_k} (the top-k) to {checkpoint.num_experts}",
            actual=str(keep),
            remedy="choose a count in this range",
        )
    index: dict[str, TensorInfo] = {}
    for name, info in checkpoint.index.items():
        tensor = checkpoint.expert_tensors.get(name)
        if tensor is None:
            index[name] = info
        elif tensor.expert is None:
            shape = (*info.shape[: tensor.axis], keep, *info.shape[tensor.axis + 1 :])
            index[name] = replace(info, shape=shape, end=info.start + nbytes_of(info.dtype, shape))
        elif tensor.expert < keep:
            index[name] = info
    scope = dict(checkpoint.config)
    key = checkpoint.hf.config.num_experts
    if checkpoint.config_scope:
        scope["text_config"] = {**scope["text_config"], key: keep}
    else:
        scope[key] = keep
    found = Recognised(checkpoint.family, checkpoint.hf, checkpoint.prefix)
    return bind(checkpoint.path, scope, index, found, checkpoint.quant)
