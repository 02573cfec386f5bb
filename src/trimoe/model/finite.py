"""Search of a checkpoint's weights for NaN and infinity."""

from collections.abc import Iterable

from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import read_bytes

_BLOCK = 8 << 20
# Exponent masks: a value is NaN or infinite exactly when all exponent bits are set.
_EXPONENT = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}


def check_finite(checkpoint: Checkpoint, roles: Iterable[str] | None = None) -> None:
    """Raise `CheckpointError` for the first floating-point tensor with NaN or infinity; reads blocks of 8 MiB.

    With `roles`, only the expert tensors of these roles are read, for example ("router",): cheap at any size.
    """
    import numpy as np

    names = (
        checkpoint.index
        if roles is None
        else [name for name, tensor in checkpoint.expert_tensors.items() if tensor.role in set(roles)]
    )
    for name in names:
        info = checkpoint.index[name]
        if info.dtype not in _EXPONENT:
            continue
        kind, mask = _EXPONENT[info.dtype]
        for offset in range(0, info.nbytes, _BLOCK):
            bits = np.frombuffer(read_bytes(info, offset, min(_BLOCK, info.nbytes - offset)), kind)
            wrong = np.flatnonzero((bits & mask) == mask)
            if wrong.size:
                at = offset // bits.itemsize + int(wrong[0])
                raise CheckpointError(
                    f"tensor {name} holds NaN or infinite values",
                    expected="finite weights",
                    actual=f"at element {at}",
                    remedy="the file is damaged or the model diverged: download it again or use another checkpoint",
                )
