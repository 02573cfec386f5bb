"""The drop map of a GGUF prune that somebody else made, from hashes of experts; and what else they changed.

As for safetensors (see infer): streamed, an expert is recognised by the bytes of all its tensors together. Both files
must have the same quantization, because a requantized expert has other bytes.
"""

from pathlib import Path

from trimoe.certify.certificate import Check, Finding
from trimoe.certify.gguf.tensors import check_metadata, expected_gguf, fit, gguf_file
from trimoe.certify.infer import Inference, Recovery, Slice, digest_slice, elect
from trimoe.certify.tensors import Index, check_cut, check_tensors, check_untouched, is_not_compared
from trimoe.choose.dropmap import DropMap
from trimoe.errors import MapError
from trimoe.io.progress import Progress
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.model import GgufModel, open_gguf_model
from trimoe.model.safetensors import TensorInfo


def infer_map_gguf(base: Path | str, pruned: Path | str, *, progress: Progress | None = None) -> Inference:
    """Recover the map that leads from `base` to `pruned`, and list everything besides experts that changed.

    Raises `CheckpointError` if either is not a GGUF model.
    """
    original, cut = open_gguf_model(gguf_file(Path(base))), open_gguf(gguf_file(Path(pruned)))
    recovery = recover_gguf(original, cut.index, progress)
    if recovery.problems:
        return Inference(None, recovery.problems, [])
    try:
        drop_map = fit(original, recovery.drop_map())
    except MapError as exc:
        return Inference(None, [f"{exc.subject}: {exc.actual}"], [])
    expected = expected_gguf(original, drop_map)
    checks: list[Check] = [
        check_metadata(original, cut, drop_map),
        check_tensors(expected, cut.index),
        check_untouched(expected, cut.index, progress),
        check_cut(expected, cut.index, progress),
    ]
    changes = [
        Finding(
            subject=f"layer {layer}: the kept experts stand in another order",
            actual=str(recovery.order[layer]),
            layer=layer,
        )
        for layer in recovery.reordered
    ]
    changes += [f for c in checks for f in c.findings if not is_not_compared(f)]
    drop_map = DropMap(drop_map.drop, drop_map.num_experts, {"recipe": "inferred", "model": original.fingerprint})
    return Inference(drop_map, [], changes)


def recover_gguf(base: GgufModel, pruned: Index, progress: Progress | None = None) -> Recovery:
    """The original expert at every position of every layer of `pruned`, by hashes of slices."""
    recovery = Recovery(base.num_experts)
    total = sum(tensor.info.nbytes for tensor in base.expert_tensors.values())
    done = 0
    for layer in base.moe_layers:
        votes: list[dict[int, set[str]]] = []
        signatures: dict[int, list[bytes]] = {e: [] for e in range(base.num_experts)}
        for name, tensor in base.expert_tensors.items():
            if tensor.layer != layer:
                continue
            by_digest: dict[bytes, list[int]] = {}
            for expert, part in enumerate(_slices(tensor.info, tensor.axis)):
                digest = digest_slice(part)
                by_digest.setdefault(digest, []).append(expert)
                signatures[expert].append(digest)
            for position, part in enumerate(_slices(pruned[name], tensor.axis) if name in pruned else ()):
                while len(votes) <= position:
                    votes.append({})
                for expert in by_digest.get(digest_slice(part), ()):
                    votes[position].setdefault(expert, set()).add(tensor.role)
            done += tensor.info.nbytes
            if progress is not None:
                progress(done, total, "hashing experts")
        recovery.order[layer] = elect(votes, signatures)
    return recovery


def _slices(info: TensorInfo, axis: int) -> list[Slice]:
    """The experts of a tensor in position order; empty if they are not whole bytes."""
    count = info.shape[axis] if len(info.shape) > axis else 0
    if not count or info.nbytes % count:
        return []
    row = info.nbytes // count
    return [(info, expert * row, row, 0) for expert in range(count)]
