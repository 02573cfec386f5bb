"""The certificate: proven for a true cut, refuted with the place named for every damage, never a pass unchecked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.certify_models import Tensors, edit_json, edit_tensors, flip_byte, write_gemma4
from trimoe.certify import loading
from trimoe.certify.certificate import Certificate
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CheckpointError, MapError, UsageError
from trimoe.model.shards import read_index

GATE_UP = "model.layers.1.experts.gate_up_proj"
DOWN = "model.layers.0.experts.down_proj"
ROUTER = "model.layers.0.router.proj.weight"
SCALE = "model.layers.1.router.per_expert_scale"
DENSE = "model.layers.0.mlp.down_proj.weight"


def test_a_true_cut_is_proven(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    certificate = certify(gemma, pruned, map=drop_map)
    assert certificate.proven
    assert certificate.status == "proven"
    assert [c.status for c in certificate.checks] == ["passed"] * 9
    assert certificate.max_logit_difference is not None
    assert certificate.max_logit_difference < 1e-5
    numbers = certificate.check("logits").numbers
    assert numbers["masked_share"] > 0.05, "the prompts must route to dropped experts, or the check shows nothing"
    assert numbers["argmax_equal"] == numbers["positions"] == certificate.prompts.tokens
    assert certificate.map.sha256 == drop_map.content_hash
    assert certificate.map.source == "given"
    assert set(certificate.pruned.files) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert Certificate.load(pruned / "certificate.json") == certificate


def test_the_same_inputs_give_the_same_certificate(gemma: Path, pruned: Path, tmp_path: Path) -> None:
    certify(gemma, pruned)
    certify(gemma, pruned, output=tmp_path / "second.json")
    text = (pruned / "certificate.json").read_bytes()
    assert text == (tmp_path / "second.json").read_bytes()
    assert str(tmp_path).encode() not in text


def test_bf16_in_shards_is_proven(tmp_path: Path, drop_map: DropMap) -> None:
    base = write_gemma4(tmp_path / "base", dtype="bfloat16", max_shard="60KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    prune(base, drop_map, tmp_path / "out", max_shard=40_000)
    certificate = certify(base, tmp_path / "out", map=drop_map)
    assert certificate.proven, certificate.checks


def _rows(tensors: Tensors, name: str) -> np.ndarray:
    dtype, shape, data = tensors[name]
    assert dtype == "F32"
    return np.frombuffer(data, "<f4").reshape(shape).copy()


def _store(tensors: Tensors, name: str, array: np.ndarray) -> None:
    tensors[name] = ("F32", array.shape, array.astype("<f4").tobytes())


def _swap(name: str) -> Callable[[Path], None]:
    def edit(tensors: Tensors) -> None:
        rows = _rows(tensors, name)
        rows[[1, 2]] = rows[[2, 1]]
        _store(tensors, name, rows)

    return lambda folder: edit_tensors(folder, edit)


def _set(name: str, index: tuple[int, ...], value: float) -> Callable[[Path], None]:
    def edit(tensors: Tensors) -> None:
        rows = _rows(tensors, name)
        rows[index] = value
        _store(tensors, name, rows)

    return lambda folder: edit_tensors(folder, edit)


def _extra(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"model.layers.0.surprise": ("F32", (1,), b"\0" * 4)}))


def _half(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        array = _rows(tensors, DENSE)
        tensors[DENSE] = ("F16", array.shape, array.astype("<f2").tobytes())

    edit_tensors(folder, edit)


def _metadata(folder: Path) -> None:
    def edit(data: dict) -> None:
        data["per_layer_drop"]["1"] = [0, 3]
        data["per_layer_keep"]["1"] = [1, 2, 4, 5, 6, 7]

    edit_json(folder / "expert_drop_metadata.json", edit)


TAMPERING: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "byte in an untouched tensor": (
        lambda p: flip_byte(read_index(p)[DENSE], 77),
        "untouched",
        f"tensor {DENSE} differs from the original at byte 77",
    ),
    "byte in an expert slice": (
        lambda p: flip_byte(read_index(p)[GATE_UP], 3 * 4096 + 5),
        "cut",
        f"tensor {GATE_UP}: layer 1, position 3 is not original expert 4",
    ),
    "two experts swapped": (
        _swap(DOWN),
        "cut",
        f"tensor {DOWN}: layer 0, position 1 is not original expert 2: "
        "expected the bytes of expert 2, found the bytes of expert 3",
    ),
    "router rows swapped": (_swap(ROUTER), "cut", f"tensor {ROUTER}: layer 0, position 1 is not original expert 2"),
    "per-expert scale changed": (
        _set(SCALE, (5,), 1.5),
        "cut",
        f"tensor {SCALE}: layer 1, position 5 is not original expert 6",
    ),
    "NaN in an expert": (_set(GATE_UP, (0, 0, 0), float("nan")), "cut", f"tensor {GATE_UP}: layer 1, position 0"),
    "wrong count": (
        lambda p: edit_json(p / "config.json", lambda c: c.update(num_experts=7)),
        "config",
        "config.json: num_experts is not what it should be: expected 6, found 7",
    ),
    "count as text": (
        lambda p: edit_json(p / "config.json", lambda c: c.update(num_experts="6")),
        "config",
        "num_experts",
    ),
    "config key changed": (
        lambda p: edit_json(p / "config.json", lambda c: c.update(rms_norm_eps=1e-5)),
        "config",
        "rms_norm_eps",
    ),
    "config key added": (
        lambda p: edit_json(p / "config.json", lambda c: c.update(use_cache2=True)),
        "config",
        "no such key",
    ),
    "extra tensor": (_extra, "tensors", "tensor model.layers.0.surprise is extra"),
    "missing tensor": (lambda p: edit_tensors(p, lambda t: t.pop(SCALE)), "tensors", f"tensor {SCALE} is missing"),
    "dtype changed": (
        _half,
        "tensors",
        f"tensor {DENSE} has the wrong dtype: expected F32 [32, 16], found F16 [32, 16]",
    ),
    "tokenizer changed": (
        lambda p: edit_json(p / "tokenizer.json", lambda t: t.update(version="1.1")),
        "files",
        "tokenizer.json differs",
    ),
    "chat template changed": (
        lambda p: (p / "chat_template.jinja").write_text("x"),
        "files",
        "chat_template.jinja differs",
    ),
    "tokenizer config missing": (
        lambda p: (p / "tokenizer_config.json").unlink(),
        "files",
        "tokenizer_config.json is missing",
    ),
    "second weights": (
        lambda p: (p / "pytorch_model.bin").write_bytes(b"x"),
        "files",
        "pytorch_model.bin holds weights",
    ),
    "added code": (lambda p: (p / "modeling.py").write_text("x"), "files", "modeling.py is extra"),
    "other map recorded": (_metadata, "map", "layer 1 does not drop what the given map drops"),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_refuted_and_located(kind: str, gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    damage, check, place = TAMPERING[kind]
    damage(pruned)
    certificate = certify(gemma, pruned, map=drop_map)
    assert certificate.status == "refuted"
    assert not certificate.proven
    found = certificate.check(check)
    assert found.status == "failed"
    assert any(place in str(finding) for finding in found.findings), [str(f) for f in found.findings]
    assert certificate.check("logits").status == "not_run", "the bytes refute it already"


def test_another_map_is_refuted(gemma: Path, pruned: Path) -> None:
    other = DropMap({0: (1, 4), 1: (0, 6)}, 8)
    certificate = certify(gemma, pruned, map=other)
    assert certificate.status == "refuted"
    assert [f.layer for f in certificate.check("map").findings] == [1]
    where = {(f.tensor, f.position, f.expert) for f in certificate.check("cut").findings}
    assert (GATE_UP, 5, 7) in where
    assert all(layer == 1 for layer in (f.layer for f in certificate.check("cut").findings))


def test_a_truncated_file_is_refuted(gemma: Path, pruned: Path) -> None:
    file = pruned / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    certificate = certify(gemma, pruned)
    assert certificate.status == "refuted"
    assert certificate.check("readable").status == "failed"
    assert "truncated" in certificate.check("readable").findings[0].subject


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_escapes(data: st.DataObject, gemma: Path, pruned: Path) -> None:
    index = read_index(pruned)
    info = index[data.draw(st.sampled_from(sorted(index)))]
    at, mask = data.draw(st.integers(0, info.nbytes - 1)), data.draw(st.integers(1, 255))
    flip_byte(info, at, mask)
    try:
        certificate = certify(gemma, pruned, logits=False)
    finally:
        flip_byte(info, at, mask)
    assert certificate.status == "refuted"
    findings = [f for c in certificate.checks for f in c.findings]
    assert [(f.tensor, f.offset) for f in findings] == [(info.name, at)]


# ---------------------------------------------------------------- never a pass without every check


def test_without_logits_it_is_incomplete(gemma: Path, pruned: Path) -> None:
    certificate = certify(gemma, pruned, logits=False)
    assert certificate.status == "incomplete"
    assert not certificate.proven
    assert certificate.check("logits").detail == "logits not checked: switched off"
    assert certificate.max_logit_difference is None


def test_without_torch_it_is_incomplete(gemma: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    certificate = certify(gemma, pruned)
    assert certificate.status == "incomplete"
    assert "torch" in certificate.check("logits").detail
    assert "pip install" in certificate.check("logits").detail


def test_without_memory_it_is_incomplete(gemma: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_free_memory", lambda device: 1000)
    certificate = certify(gemma, pruned)
    assert certificate.status == "incomplete"
    assert "memory" in certificate.check("logits").detail


def test_a_router_that_is_not_reached_is_incomplete(gemma: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from trimoe.certify.streamed import ReferenceModel

    unused = [torch.zeros(8, 32), torch.zeros(8, 32)]
    monkeypatch.setattr(ReferenceModel, "role_tensor", lambda model, role, layer: unused[layer])
    certificate = certify(gemma, pruned)
    assert certificate.status == "incomplete"
    assert "router of layer 0 was never reached" in certificate.check("logits").detail


def test_an_original_with_nan_proves_nothing(gemma: Path, tmp_path: Path, drop_map: DropMap) -> None:
    base = Path(shutil.copytree(gemma, tmp_path / "base"))
    _set("model.norm.weight", (0,), float("nan"))(base)
    prune(base, drop_map, tmp_path / "out")
    certificate = certify(base, tmp_path / "out", map=drop_map)
    assert certificate.status == "incomplete"
    assert "not finite" in certificate.check("logits").detail


# ---------------------------------------------------------------- the logit check on its own


@pytest.mark.parametrize(
    ("damage", "check", "place"),
    [
        (_swap(ROUTER), "logits", "logits differ by"),
        (_swap(DOWN), "logits", "logits differ by"),
        (_set(SCALE, (5,), 3.0), "logits", "logits differ by"),
        (_set("model.norm.weight", (0,), float("nan")), "logits", "logits are not finite"),
        (lambda p: edit_tensors(p, lambda t: t.pop(DENSE)), "loading", f"key {DENSE} is missing"),
        (_extra, "loading", "key model.layers.0.surprise is unexpected"),
        (
            lambda p: edit_json(p / "config.json", lambda c: c.update(num_experts=7)),
            "loading",
            "does not fit config.json",
        ),
        (
            lambda p: (p / "config.json").write_text('{"model_type": "gemma4_text", "num_experts": []}'),
            "loading",
            "no usable num_hidden_layers",
        ),
    ],
)
def test_logits_and_loading_catch_damage_too(
    damage: Callable[[Path], None], check: str, place: str, gemma: Path, pruned: Path, drop_map: DropMap
) -> None:
    damage(pruned)
    certificate = certify(gemma, pruned, map=drop_map, keep_going=True)
    found = certificate.check(check)
    assert found.status == "failed"
    assert place in str(found.findings[0]), found


def test_the_mask_matters(gemma: Path, pruned: Path) -> None:
    """With one other expert masked the logits differ far beyond the tolerance: the check has power."""
    certificate = certify(gemma, pruned, map=DropMap({0: (1, 4), 1: (0, 6)}, 8), keep_going=True)
    assert certificate.check("logits").status == "failed"
    assert certificate.max_logit_difference is not None
    assert certificate.max_logit_difference > 1e-2


def test_the_tolerance_is_used(gemma: Path, pruned: Path) -> None:
    _set(SCALE, (5,), 1.0)(pruned)
    loose = certify(gemma, pruned, tolerance=1e6, keep_going=True)
    assert loose.check("logits").status == "passed"
    assert loose.status == "refuted"


def test_a_tolerance_of_zero_means_exactly_equal(gemma: Path, tmp_path: Path) -> None:
    """A cut that drops nothing runs the same sums, so it is proven; a change far below the default tolerance is not."""
    prune(gemma, DropMap({0: (), 1: ()}, 8), tmp_path / "whole")
    certificate = certify(gemma, tmp_path / "whole", tolerance=0)
    assert certificate.proven
    assert (certificate.tolerance, certificate.max_logit_difference) == (0.0, 0.0)

    def nudge(tensors: Tensors) -> None:
        _store(tensors, SCALE, np.nextafter(_rows(tensors, SCALE), np.float32(2)))

    edit_tensors(tmp_path / "whole", nudge)
    assert certify(gemma, tmp_path / "whole", keep_going=True).check("logits").status == "passed"
    exact = certify(gemma, tmp_path / "whole", tolerance=0, keep_going=True)
    assert exact.check("logits").status == "failed"
    assert 0 < exact.max_logit_difference < 1e-4


# ---------------------------------------------------------------- prompts, maps, bad input


def test_prompts_of_the_user(gemma: Path, pruned: Path, tmp_path: Path) -> None:
    files = {
        "a.txt": "one\n\ntwo\n",
        "b.json": json.dumps(["one", [{"role": "user", "content": "two"}]]),
        "c.jsonl": '{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n',
    }
    seen = set()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        certificate = certify(gemma, pruned, prompts=tmp_path / name)
        assert certificate.proven
        assert certificate.prompts is not None
        assert certificate.prompts.count == 2
        seen.add(certificate.prompts.sha256)
    assert len(seen) == 1


@pytest.mark.parametrize("text", ["", "[]", "[1]", "{", '[{"role": "user"}]', '[[{"role": "user"}]]'])
def test_prompts_that_are_none(text: str, gemma: Path, pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(BadInput):
        certify(gemma, pruned, prompts=tmp_path / "p.json")


def test_the_recorded_map_is_used(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    certificate = certify(gemma, pruned, logits=False)
    assert (certificate.map.source, certificate.map.sha256) == ("metadata", drop_map.content_hash)


def test_without_a_record_the_map_is_inferred(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    (pruned / "expert_drop_metadata.json").unlink()
    certificate = certify(gemma, pruned)
    assert certificate.proven
    assert (certificate.map.source, certificate.map.sha256) == ("inferred", drop_map.content_hash)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"per_layer_drop": {"0": ["x"]}, "per_layer_keep": {}}'])
def test_an_unusable_record_is_refuted(text: str, gemma: Path, pruned: Path) -> None:
    (pruned / "expert_drop_metadata.json").write_text(text)
    certificate = certify(gemma, pruned, logits=False)
    assert certificate.status == "refuted"
    assert certificate.check("map").status == "failed"
    assert certificate.check("cut").status == "passed", "the experts themselves still give the map"


def test_records_that_contradict_themselves(gemma: Path, pruned: Path) -> None:
    edit_json(pruned / "expert_drop_metadata.json", lambda d: d["per_layer_keep"].update({"0": [0, 1, 2, 3, 5, 6]}))
    assert "layer 0" in certify(gemma, pruned, logits=False).check("map").findings[0].subject
    edit_json(pruned / "expert_drop_metadata.json", lambda d: d.update(target_experts=5))
    assert "counts" in certify(gemma, pruned, logits=False).check("map").findings[0].subject


def test_bad_input(gemma: Path, pruned: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for base, other in (
        (tmp_path / "none", pruned),
        (gemma, tmp_path / "none"),
        (gemma, empty),
        (gemma, gemma / "config.json"),
    ):
        with pytest.raises(CheckpointError):
            certify(base, other)
    for drop in ({0: (1,), 1: (1, 2)}, {0: (1, 2)}, {0: (9,), 1: (0,)}, {0: tuple(range(7)), 1: tuple(range(7))}):
        with pytest.raises(MapError):
            certify(gemma, pruned, map=DropMap(drop, 8))
    with pytest.raises(MapError):
        certify(gemma, pruned, map=DropMap({0: (1, 4), 1: (0, 7)}, 8, {"model": "f" * 64}))
    for tolerance in (-1e-9, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="tolerance"):
            certify(gemma, pruned, tolerance=tolerance)
    with pytest.raises(BadInput):
        certify(gemma, pruned, logits=False, output=gemma / "config.json" / "certificate.json")
    (tmp_path / "bad.json").write_text('{"status": "proven"}')
    with pytest.raises(BadInput):
        Certificate.load(tmp_path / "bad.json")


def test_a_refusal_replaces_an_old_proof(gemma: Path, pruned: Path) -> None:
    assert certify(gemma, pruned).proven
    flip_byte(read_index(pruned)[DENSE], 0)
    certify(gemma, pruned)
    assert Certificate.load(pruned / "certificate.json").status == "refuted"


def _with_header(folder: Path, metadata: dict[str, str]) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length]) | {"__metadata__": metadata}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    "metadata", [{"format": "mlx"}, {"format": "tf"}, {}, {"format": "pt", "evil": "1"}], ids=lambda m: str(m)
)
def test_headers_say_what_the_original_s_say(metadata: dict[str, str], gemma: Path, pruned: Path) -> None:
    _with_header(pruned, metadata)
    certificate = certify(gemma, pruned, logits=False)
    assert certificate.check("files").status == "failed"
    assert "the header of model.safetensors" in str(certificate.check("files").findings[0])


@pytest.mark.parametrize(
    "name",
    [
        "vocab.bpe",
        "tokenizer.model.v3",
        "x.yaml",
        "model.onnx",
        "rust_model.ot",
        "X.JSON",
        "licensed.py",
        "notice_tok.json",
        "README.py",
        ".hidden.json",
        "merges",
    ],
)
def test_every_file_that_is_no_document_counts(name: str, gemma: Path, pruned: Path) -> None:
    """Extra in the cut, missing in it, or another than in the original."""
    (pruned / name).write_text("x")
    assert certify(gemma, pruned, logits=False).check("files").status == "failed"
    for card in ("README.md", "LICENSE", "NOTICE.txt", "picture.png", "README.numbers.json", ".gitattributes"):
        (pruned / card).write_text("of the cut")
    (pruned / name).unlink()
    assert certify(gemma, pruned, logits=False).check("files").status == "passed"


def test_a_key_that_stands_twice_is_refuted(gemma: Path, pruned: Path) -> None:
    text = (pruned / "config.json").read_text()
    (pruned / "config.json").write_text(text.replace('"num_experts"', '"num_experts": 5, "num_experts"', 1))
    certificate = certify(gemma, pruned, logits=False)
    assert certificate.status == "refuted"
    assert "twice" in str(certificate.check("readable").findings[0])


def test_a_certificate_replaces_certificates_only(gemma: Path, pruned: Path, tmp_path: Path) -> None:
    before = (pruned / "model.safetensors").read_bytes()
    (tmp_path / "map.json").write_text("mine")
    for place in (pruned / "model.safetensors", tmp_path / "map.json"):
        with pytest.raises(BadInput, match="not a certificate"):
            certify(gemma, pruned, logits=False, output=place)
    assert (pruned / "model.safetensors").read_bytes() == before
    assert (tmp_path / "map.json").read_text() == "mine"
    with pytest.raises(UsageError, match="more experts than the original"):
        certify(pruned, gemma, logits=False)
    assert not (gemma / "certificate.json").exists()


def test_names_of_the_checked_model_hide_nothing(gemma: Path, pruned: Path) -> None:
    name = "x could not be compared"
    edit_tensors(pruned, lambda t: t.update({name: ("F32", (1,), b"\0" * 4)}))
    found = infer_map(gemma, pruned)
    assert found.map is not None
    assert any(name in str(change) for change in found.changes)
