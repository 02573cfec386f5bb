"""Every kind of damage to the weights refutes the certificate, and the finding names the tensor and its layer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.certify_models import Tensors, edit_tensors
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.model.safetensors import read_array
from trimoe.model.shards import read_index

LAYER = "model.layers.1."
GATE_UP, DOWN = LAYER + "experts.gate_up_proj", LAYER + "experts.down_proj"
ROUTER, SCALE = LAYER + "router.proj.weight", LAYER + "router.per_expert_scale"
HIDDEN_SCALE, DENSE, QUERY = LAYER + "router.scale", LAYER + "mlp.down_proj.weight", LAYER + "self_attn.q_proj.weight"
NORM = LAYER + "input_layernorm.weight"
STACKS = (GATE_UP, DOWN, ROUTER, SCALE)
Edit = Callable[[Tensors, dict[str, np.ndarray]], None]


def array(tensors: Tensors, name: str) -> np.ndarray:
    dtype, shape, data = tensors[name]
    assert dtype == "F32"
    return np.frombuffer(data, "<f4").reshape(shape).copy()


def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Replace a tensor by a function of itself."""

    def edit(tensors: Tensors, base: dict[str, np.ndarray]) -> None:
        changed = how(array(tensors, name)).astype("<f4")
        tensors[name] = ("F32", changed.shape, changed.tobytes())

    return edit


def every(names: tuple[str, ...], how: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(tensors: Tensors, base: dict[str, np.ndarray]) -> None:
        for name in names:
            change(name, how)(tensors, base)

    return edit


def rows(*order: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: a[list(order)]


def put(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def how(a: np.ndarray) -> np.ndarray:
        a[index] = value
        return a

    return how


def dropped_expert(tensors: Tensors, base: dict[str, np.ndarray]) -> None:
    """A consistent prune by another map: position 0 holds expert 0, which was to go, instead of expert 1."""
    for name in STACKS:
        changed = array(tensors, name)
        changed[0] = base[name][0]
        tensors[name] = ("F32", changed.shape, changed.tobytes())


def layers_exchanged(tensors: Tensors, base: dict[str, np.ndarray]) -> None:
    for name in (DOWN, GATE_UP):
        other = name.replace("layers.1", "layers.0")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def as_half(tensors: Tensors, base: dict[str, np.ndarray]) -> None:
    changed = array(tensors, DENSE)
    tensors[DENSE] = ("F16", changed.shape, changed.astype("<f2").tobytes())


# What was done -> how, the check that must fail, the tensor it must name; the layer is 1 throughout.
KINDS: dict[str, tuple[Edit, str, str]] = {
    "the last bits of an attention matrix": (change(QUERY, lambda a: np.nextafter(a, a + 1)), "untouched", QUERY),
    "the dense FFN scaled": (change(DENSE, lambda a: a * np.float32(1.2)), "untouched", DENSE),
    "a norm set to one": (change(NORM, np.ones_like), "untouched", NORM),
    "the router's scale per hidden unit": (change(HIDDEN_SCALE, lambda a: a[::-1]), "untouched", HIDDEN_SCALE),
    "one weight of an expert": (change(GATE_UP, put((3, 1, 2), 7.0)), "cut", GATE_UP),
    "NaN in an expert": (change(DOWN, put((0, 0, 0), float("nan"))), "cut", DOWN),
    "two experts swapped in one matrix": (change(DOWN, rows(0, 2, 1, 3, 4, 5)), "cut", DOWN),
    "two experts swapped consistently": (every(STACKS, rows(0, 1, 3, 2, 4, 5)), "cut", GATE_UP),
    "an expert twice": (every(STACKS, rows(0, 1, 2, 2, 4, 5)), "cut", GATE_UP),
    "an expert that was to go": (dropped_expert, "cut", GATE_UP),
    "an expert set to zero": (change(GATE_UP, put((5,), 0.0)), "cut", GATE_UP),
    "rows of the router swapped": (change(ROUTER, rows(1, 0, 2, 3, 4, 5)), "cut", ROUTER),
    "the router rescaled": (change(ROUTER, lambda a: a * np.float32(0.5)), "cut", ROUTER),
    "a scale of an expert": (change(SCALE, put((5,), 1.5)), "cut", SCALE),
    "the scales left uncut": (change(SCALE, lambda a: np.append(a, a[:2])), "tensors", SCALE),
    "an expert too few in one matrix": (change(GATE_UP, rows(0, 1, 2, 3, 4)), "tensors", GATE_UP),
    "experts of two layers exchanged": (layers_exchanged, "cut", DOWN),
    "a tensor missing": (lambda t, _: void(t.pop(SCALE)), "tensors", SCALE),
    "a tensor too many": (lambda t, _: t.update({LAYER + "bias": ("F32", (1,), b"\0" * 4)}), "tensors", LAYER + "bias"),
    "less precision": (as_half, "tensors", DENSE),
}


def void(_: object) -> None:
    """Nothing, of something."""


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refuted_and_located(kind: str, gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    edit, check, tensor = KINDS[kind]
    before = {name: read_array(info) for name, info in read_index(gemma).items()}
    edit_tensors(pruned, lambda tensors: edit(tensors, before))
    certificate = certify(gemma, pruned, map=drop_map, logits=False)
    assert certificate.status == "refuted"
    findings = [f for f in certificate.check(check).findings if f.tensor == tensor]
    assert findings, [str(f) for c in certificate.checks for f in c.findings]
    assert findings[0].layer == 1
    assert tensor in findings[0].subject
    named = {f.layer for c in certificate.checks for f in c.findings}
    assert named == ({0, 1} if "two layers" in kind else {1}), "no other layer is blamed"


def test_nothing_else_is_blamed(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    """The tests above would pass with a certificate that always complains."""
    edit_tensors(pruned, lambda tensors: None)
    certificate = certify(gemma, pruned, map=drop_map, logits=False)
    assert [c.status for c in certificate.checks].count("failed") == 0


def test_outside_the_layers_no_layer_is_named(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    edit_tensors(pruned, lambda t: change("model.norm.weight", np.zeros_like)(t, {}))
    [finding] = certify(gemma, pruned, map=drop_map, logits=False).check("untouched").findings
    assert (finding.tensor, finding.layer) == ("model.norm.weight", None)
    assert "layer" not in finding.subject
