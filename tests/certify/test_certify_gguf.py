"""The GGUF certificate's byte line: right cuts pass, twelve kinds of tampering are each refuted by name; infer-map."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.gguf_models import EXPERTS, write_model
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CheckpointError, MapError, UsageError
from trimoe.model.gguf.format import Field, header_bytes, scalar_field
from trimoe.model.gguf.header import GgufFile, read_gguf
from trimoe.model.safetensors import read_bytes

MAP = DropMap({0: (1, 4), 1: (0, 7), 2: (2, 3)}, EXPERTS)
Parts = dict[str, tuple[str, tuple[int, ...], bytes]]
BYTES = ("readable", "map", "metadata", "tensors", "untouched", "cut")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certify") / "base.gguf"
    return write_model(path, "gemma4", fused=True, extra=("ffn_down_exps.scale",))


@pytest.fixture(autouse=True)
def no_llamacpp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the byte checks run here, with or without a built llama.cpp."""
    monkeypatch.setenv("TRIMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("TRIMOE_LLAMACPP", raising=False)


@pytest.fixture
def pruned(base: Path, tmp_path: Path) -> Path:
    prune(base, MAP, tmp_path / "pruned.gguf")
    return tmp_path / "pruned.gguf"


def rewrite(path: Path, edit: Callable[[dict[str, Field], Parts], None]) -> None:
    """Change keys and tensors of a file."""
    file: GgufFile = read_gguf(path)
    fields = dict(file.fields)
    parts: Parts = {name: (info.dtype, info.shape, read_bytes(info)) for name, info in file.tensors.items()}
    edit(fields, parts)
    tensors = {name: (dtype, shape) for name, (dtype, shape, _) in parts.items()}
    body = b"".join(data + bytes(-len(data) % file.alignment) for _, _, data in parts.values())
    path.write_bytes(header_bytes(file.version, fields.values(), tensors, file.alignment) + body)


def swap(data: bytes, rows: int, a: int, b: int) -> bytes:
    size = len(data) // rows
    parts = [data[i * size : (i + 1) * size] for i in range(rows)]
    parts[a], parts[b] = parts[b], parts[a]
    return b"".join(parts)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DOWN, ROUTER, SCALE = "blk.1.ffn_down_exps.weight", "blk.2.ffn_gate_inp.weight", "blk.0.ffn_down_exps.scale"


def _edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, Field], Parts], None]:
    def edit(fields: dict[str, Field], parts: Parts) -> None:
        dtype, shape, data = parts[name]
        parts[name] = (dtype, shape, change(data))

    return edit


def _unsliced_scale(fields: dict[str, Field], parts: Parts) -> None:
    dtype, _, data = parts[SCALE]
    parts[SCALE] = (dtype, (EXPERTS,), data + data[:8])


def _requantized(fields: dict[str, Field], parts: Parts) -> None:
    _, shape, data = parts[DOWN]
    parts[DOWN] = ("Q8_0", shape, bytes(len(data) // 144 * 8 * 34))


def _rename(fields: dict[str, Field], parts: Parts) -> None:
    for name in list(parts):
        parts[name.replace("blk.0.attn_q", "blk.0.attn_k")] = parts.pop(name)


QUERY, INPUT_SCALE = "blk.2.attn_q.weight", "blk.0.ffn_gate_inp.scale"
Edit = Callable[[dict[str, Field], Parts], None]
TAMPERING: dict[str, tuple[Edit, str, str, int | None]] = {
    "one bit of an expert": (_edit(DOWN, lambda d: flip(d, 7)), "cut", DOWN, 1),
    "two experts swapped": (_edit(DOWN, lambda d: swap(d, 6, 0, 1)), "cut", DOWN, 1),
    "router rows swapped": (_edit(ROUTER, lambda d: swap(d, 6, 2, 5)), "cut", ROUTER, 2),
    "per-expert scale changed": (_edit(SCALE, lambda d: flip(d, 3)), "cut", SCALE, 0),
    "per-expert scale left uncut": (_unsliced_scale, "tensors", SCALE, 0),
    "one bit of a tensor that stays": (_edit(QUERY, lambda d: flip(d, 100)), "untouched", QUERY, None),
    "router scale changed": (_edit(INPUT_SCALE, lambda d: flip(d, 0)), "untouched", INPUT_SCALE, None),
    "another quantization": (_requantized, "tensors", DOWN, 1),
    "a tensor is missing": (lambda f, p: p.pop("output_norm.weight") and None, "tensors", "output_norm.weight", None),
    "a tensor is extra": (lambda f, p: p.update({"blk.9.x": ("F32", (1,), bytes(4))}), "tensors", "blk.9.x", None),
    "a tensor has another name": (_rename, "tensors", "blk.0.attn_q.weight", None),
}


def _number(key: str, value: int) -> Edit:
    return lambda fields, parts: fields.update({key: scalar_field(key, 4, value)})


KEYS: dict[str, tuple[Edit, str]] = {
    "expert count": (_number("gemma4.expert_count", 7), "gemma4.expert_count"),
    "another key": (_number("gemma4.block_count", 2), "gemma4.block_count"),
    "a key is missing": (lambda f, p: f.pop("general.name") and None, "general.name"),
    "a key is extra": (_number("x", 1), "key x is extra"),
}


def test_a_right_cut_passes_every_byte_check_and_is_incomplete_without_llamacpp(base: Path, pruned: Path) -> None:
    certificate = certify(base, pruned)
    assert [certificate.check(name).status for name in BYTES] == ["passed"] * 6
    assert (certificate.status, certificate.map.source) == ("incomplete", "metadata")
    assert "trimoe llamacpp install" in certificate.check("logits").detail
    assert json.loads((pruned.parent / "pruned.gguf.certificate.json").read_text())["status"] == "incomplete"
    assert list(certificate.pruned.files) == ["pruned.gguf"]


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_refuted_by_name(kind: str, base: Path, pruned: Path) -> None:
    edit, check, tensor, layer = TAMPERING[kind]
    rewrite(pruned, edit)
    certificate = certify(base, pruned, map=MAP)
    assert certificate.status == "refuted"
    findings = certificate.check(check).findings
    assert any(f.tensor == tensor and f.layer == layer for f in findings), findings
    assert "refuted already" in certificate.check("logits").detail


@pytest.mark.parametrize("kind", KEYS)
def test_changed_metadata_are_refuted(kind: str, base: Path, pruned: Path) -> None:
    edit, key = KEYS[kind]
    rewrite(pruned, edit)
    certificate = certify(base, pruned, map=MAP)
    assert certificate.status == "refuted"
    assert any(key in finding.subject for finding in certificate.check("metadata").findings)


def test_a_truncated_file_is_refuted(base: Path, pruned: Path) -> None:
    pruned.write_bytes(pruned.read_bytes()[:-4096])
    certificate = certify(base, pruned, map=MAP)
    assert certificate.status == "refuted"
    assert "truncated" in certificate.check("readable").findings[0].subject


def test_another_map_is_refuted(base: Path, pruned: Path) -> None:
    other = DropMap(MAP.drop | {1: (0, 6)}, EXPERTS)
    certificate = certify(base, pruned, map=other)
    assert {certificate.check(name).status for name in ("map", "cut")} == {"failed"}
    with pytest.raises(MapError):
        certify(base, pruned, map=DropMap({0: (1,), 1: (2,)}, EXPERTS))


def test_a_cut_without_a_record_is_inferred(base: Path, pruned: Path) -> None:
    (pruned.parent / "pruned.gguf.expert_drop_metadata.json").unlink()
    certificate = certify(base, pruned)
    assert certificate.map.source == "inferred"
    assert certificate.map.sha256 == MAP.content_hash
    assert {certificate.check(name).status for name in BYTES} == {"passed"}


def test_parts_are_certified_like_one_file(base: Path, tmp_path: Path) -> None:
    prune(base, MAP, tmp_path / "parts", max_shard=300_000)
    certificate = certify(base, tmp_path / "parts", map=MAP)
    assert {certificate.check(name).status for name in BYTES} == {"passed"}
    assert len(certificate.pruned.files) > 2
    assert (tmp_path / "parts" / "certificate.json").exists()


def test_a_reference_made_another_way_must_be_the_same_bytes(base: Path, pruned: Path, tmp_path: Path) -> None:
    reference = Path(shutil.copy(pruned, tmp_path / "reference.gguf"))
    assert certify(base, pruned, reference=reference).check("reference").status == "passed"
    rewrite(reference, _edit("blk.0.attn_norm.weight", lambda d: flip(d, 1)))
    check = certify(base, pruned, reference=reference).check("reference")
    assert check.status == "failed"
    assert check.findings[0].tensor == "blk.0.attn_norm.weight"


def test_swapped_arguments_are_refused(base: Path, pruned: Path) -> None:
    with pytest.raises(UsageError, match="more experts than the original"):
        certify(pruned, base)
    assert not base.with_name(f"{base.name}.certificate.json").exists()


def test_wrong_requests(base: Path, pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a GGUF model"):
        certify(base, tmp_path / "absent")
    with pytest.raises(UsageError, match="tolerance"):
        certify(base, pruned, tolerance=-1)
    with pytest.raises(BadInput, match="prompts"):
        certify(base, pruned, prompts=tmp_path / "absent")


def test_infer_map_finds_the_map_and_what_else_changed(base: Path, pruned: Path) -> None:
    found = infer_map(base, pruned)
    assert found.exact
    assert found.map is not None
    assert found.map.drop == MAP.drop
    rewrite(pruned, _edit("blk.2.attn_q.weight", lambda d: flip(d, 5)))
    found = infer_map(base, pruned)
    assert found.map is not None
    assert found.map.drop == MAP.drop
    assert [change.tensor for change in found.changes] == ["blk.2.attn_q.weight"]


def test_infer_map_says_when_there_is_no_map(base: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", "gemma4", fused=True, extra=("ffn_down_exps.scale",), seed=5)
    found = infer_map(base, other)
    assert found.map is None
    assert "none of the original's" in found.problems[0]
