"""What a pruned GGUF must contain, by the map: every tensor and metadata key; and the checks that compare them.

Derived from the map and the names of expert tensors alone, without the code that prunes. Streamed; memory is a few MiB.
"""

from pathlib import Path

from trimoe.certify.certificate import Check, Finding, make_check
from trimoe.certify.compare import compare_bytes
from trimoe.certify.expected import Expected, fit_map, kept_count
from trimoe.certify.tensors import check_tensors, check_untouched
from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError
from trimoe.io.progress import Progress
from trimoe.model.gguf.file import Gguf, find_gguf
from trimoe.model.gguf.format import Field
from trimoe.model.gguf.model import GgufModel


def fit(base: GgufModel, drop_map: DropMap) -> DropMap:
    """`drop_map` over exactly the layers with experts. Raises `MapError` if it cannot cut `base`.

    A multi-token-prediction layer that is not in the map must drop what the last ordinary layer drops. The model that
    the map was made for is not checked: a GGUF file does not state which checkpoint it was converted from.
    """
    metadata = {key: value for key, value in drop_map.metadata.items() if key != "model"}
    ordinary = [layer for layer in base.moe_layers if layer not in base.predicting_layers]
    drop = dict(drop_map.drop)
    for layer in base.predicting_layers:
        if layer in base.moe_layers and layer not in drop and ordinary and ordinary[-1] in drop:
            drop[layer] = drop[ordinary[-1]]
    return fit_map(base, DropMap(drop, drop_map.num_experts, metadata))


def gguf_file(path: Path) -> Path:
    """The (first) file of the GGUF model at a path. Raises `CheckpointError` if there is none."""
    found = find_gguf(path)
    if found is None or not found.is_file():
        raise CheckpointError(
            f"{path} is not a GGUF model",
            expected="a .gguf file or a directory of its parts",
            actual="something else" if path.exists() else "it does not exist",
            remedy="check the path; both models must be GGUF",
        )
    return found


def expected_gguf(base: GgufModel, drop_map: DropMap) -> dict[str, Expected]:
    """Every tensor of the pruned model by name: untouched, or the kept experts on its slowest axis."""
    expected = {}
    for name, info in base.index.items():
        tensor = base.expert_tensors.get(name)
        if tensor is None:
            expected[name] = Expected(name, info.dtype, info.shape, info)
        else:
            kept = tuple(drop_map.keep(tensor.layer, base.num_experts))
            # Expert rows are contiguous: all slower axes have length 1.
            axis = tensor.axis
            shape = (*info.shape[:axis], len(kept), *info.shape[axis + 1 :])
            expected[name] = Expected(name, info.dtype, shape, info, tensor.layer, axis, kept)
    return expected


def check_metadata(base: GgufModel, cut: Gguf, drop_map: DropMap | None) -> Check:
    """Every key has the original's bytes, except the expert count and the split keys."""
    want = {key: f for key, f in base.gguf.fields.items() if not key.startswith("split.")}
    have = {key: f for key, f in cut.fields.items() if not key.startswith("split.")}
    findings = []
    for key in sorted(want.keys() | have.keys()):
        if key not in have:
            findings.append(Finding(subject=f"key {key} is missing", expected=_short(want[key])))
        elif key not in want:
            findings.append(Finding(subject=f"key {key} is extra", actual=_short(have[key])))
        elif key == base.count_key:
            kept = kept_count(drop_map) if drop_map is not None else None
            if have[key].kind != want[key].kind or (kept is not None and cut.integer(key) != kept):
                findings.append(
                    Finding(
                        subject=f"key {key} is not what it should be",
                        expected=f"{kept}, type {want[key].kind}",
                        actual=f"{_short(have[key])}, type {have[key].kind}",
                    )
                )
        elif have[key].raw != want[key].raw:
            findings.append(
                Finding(
                    subject=f"key {key} is not what it should be", expected=_short(want[key]), actual=_short(have[key])
                )
            )
    detail = f"only {base.count_key} differs: {base.num_experts} -> {cut.integer(base.count_key)}"
    claim = f"every metadata key has the original's bytes, {base.count_key} is the number of kept experts"
    return make_check("metadata", claim, detail if not findings else f"{len(findings)} keys differ", findings)


def _short(field: Field) -> str:
    text = repr(field.value())
    return text if len(text) <= 80 else text[:77] + "..."


def check_reference(reference: Gguf, cut: Gguf, progress: Progress | None = None) -> Check:
    """Every tensor is byte-identical to the reference's, which was made another way (for example pruned before
    converting)."""
    expected = {n: Expected(n, info.dtype, info.shape, info) for n, info in reference.index.items()}
    compared = compare_bytes(expected, cut.index, progress=progress)
    parts = check_tensors(expected, cut.index), check_untouched(expected, cut.index, compared)
    findings = [finding for part in parts for finding in part.findings]
    return make_check(
        "reference", "every tensor is byte-identical to the reference's", f"{len(expected)} tensors", findings
    )
