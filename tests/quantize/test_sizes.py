"""Predicted sizes against files that llama-quantize made, and against the sizes that were published."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.blueprints import real_width, write_hollow, write_imatrix
from trimoe.errors import CheckpointError
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.imatrix import open_imatrix, write_dat_imatrix
from trimoe.quantize.plan.candidates import size_of
from trimoe.quantize.plan.shipped import shipped_config
from trimoe.quantize.types.config_blueprint import blueprint_of_config
from trimoe.quantize.types.sizes import bytes_about, facts_of, imatrix_bytes, metadata_of, predict
from trimoe.quantize.types.tensor_types import Request, tensors_of
from trimoe.quantize.types.tiers import all_tiers

# GB = 10^9 bytes of the reference's 98-expert files (protocol, section 7), as published: three to four digits.
PUBLISHED = {
    "Q2_K": 8.40,
    "IQ3_XXS": 8.95,
    "IQ3_XS": 9.22,
    "Q3_K_S": 9.68,
    "IQ3_M": 9.82,
    "Q3_K_M": 10.51,
    "Q3_K_L": 10.94,
    "Q4_K_M": 13.24,
    "Q5_K_M": 15.07,
    "Q6_K": 17.81,
}
NEED_IMATRIX = ("IQ2_XS", "IQ3_XXS", "Q2_K_S")  # the others take long and differ in the same rules only


def quantize(llamacpp: LlamaCpp, folder: Path, source: Path, kind: str, *options: str) -> Path:
    out = folder / f"{kind}.gguf"
    command = [llamacpp.program("llama-quantize"), *options, source.absolute(), out, kind, "1"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-1500:]
    return out


def assert_exact(out: Path, source: Path, request: Request, about: int = 0) -> None:
    gguf = open_gguf(source)
    size = predict(tensors_of(gguf.index), facts_of(gguf), metadata_of(gguf), request, about)
    made = open_gguf(out)
    assert size.file_bytes == out.stat().st_size
    assert size.header == made.files[0].data_start
    assert {c.tensor.name: c.dtype for c in size.choices} == {name: info.dtype for name, info in made.index.items()}
    assert sum(size.type_mix().values()) == made.nbytes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_within_half_a_percent(name: str) -> None:
    config = shipped_config("google/gemma-4-26B-A4B-it")
    assert config is not None
    size = size_of(blueprint_of_config("x", config).with_experts(98), all_tiers()[name])
    assert size.file_bytes / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_L", "Q2_K", "IQ4_XS", "IQ3_M", "MXFP4_MOE"])
def test_files_without_imatrix(llamacpp: LlamaCpp, base: Path, tmp_path: Path, kind: str) -> None:
    assert_exact(quantize(llamacpp, tmp_path, base, kind), base, Request(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NEED_IMATRIX)
def test_files_with_imatrix(llamacpp: LlamaCpp, base: Path, tmp_path: Path, kind: str) -> None:
    shapes = {
        name: (info.shape[0] if len(info.shape) == 3 else 1, info.shape[-1])
        for name, info in open_gguf(base).index.items()
        if name.startswith("blk.") and len(info.shape) > 1 and "gate_inp" not in name
    }
    imatrix = write_imatrix(tmp_path / "an imatrix of another name.gguf", shapes)
    about = bytes_about(open_imatrix(imatrix), imatrix.name)
    out = quantize(llamacpp, tmp_path, base, kind, "--imatrix", imatrix.name)
    assert_exact(out, base, Request(kind, imatrix=True), about)


@pytest.mark.parametrize("trailer", [b"", struct.pack("<ii", 7, 9) + b"words.txt"])
def test_the_dat_format(llamacpp: LlamaCpp, base: Path, tmp_path: Path, trailer: bytes) -> None:
    dat = tmp_path / "imatrix.dat"
    write_dat_imatrix(dat, [("blk.0.attn_q.weight", 7, np.ones(256, np.float32))], 1, trailer)
    out = quantize(llamacpp, tmp_path, base, "Q4_0", "--imatrix", dat.name)
    assert_exact(out, base, Request("Q4_0", imatrix=True), bytes_about(open_imatrix(dat), dat.name))


def test_embeddings_of_their_own_type(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    options = ("--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0")
    out = quantize(llamacpp, tmp_path, base, "Q5_K_M", *options)
    assert_exact(out, base, Request("Q5_K_M", token_embedding="Q8_0", output="Q8_0"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0"])
def test_a_layer_of_real_width(llamacpp: LlamaCpp, tmp_path: Path, kind: str) -> None:
    """Really quantized, with few experts: the dry run (test_type_rules) covers the others."""
    hollow = write_hollow(tmp_path / "hollow.gguf", real_width(2, 9))
    assert_exact(quantize(llamacpp, tmp_path, hollow, kind), hollow, Request(kind))


def test_the_ladders_own_names_are_the_default(base: Path, tmp_path: Path) -> None:
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", {"blk.0.attn_q.weight": (1, 256)})
    assert bytes_about(open_imatrix(imatrix), "imatrix.gguf") == imatrix_bytes("imatrix.gguf", "calibration.txt", 1)
    gguf = open_gguf(base)
    args = (tensors_of(gguf.index), facts_of(gguf), metadata_of(gguf))
    want = predict(*args, Request("IQ3_M", imatrix=True), bytes_about(open_imatrix(imatrix), "imatrix.gguf"))
    assert predict(*args, Request("IQ3_M", imatrix=True)) == want
    assert want.file_bytes > predict(*args, Request("IQ3_M")).file_bytes


def test_names_of_127_bytes_and_no_dataset() -> None:
    long = imatrix_bytes("x" * 200, None, 0)
    assert long == imatrix_bytes("x" * 127, None, 0) == imatrix_bytes("", None, 0) + 127
    assert imatrix_bytes("", "d", 0) - imatrix_bytes("", None, 0) == 8 + len("quantize.imatrix.dataset") + 4 + 8 + 1


def test_another_alignment_is_refused(tmp_path: Path) -> None:
    from helpers.gguf_models import write_model

    with pytest.raises(CheckpointError, match="aligned to 64 bytes"):
        metadata_of(open_gguf(write_model(tmp_path / "a.gguf", alignment=64)))
