"""The claims about GGUF cuts, with llama.cpp itself: cut then quantized is quantized then cut; behaviour is masking.

Two independent roads lead from the bundled model to a pruned quantized file: cutting the safetensors checkpoint,
converting and quantizing it; and cutting the quantized GGUF of the whole model. They must meet in every byte.
"""

import random
import subprocess
from pathlib import Path

import pytest

from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.llamacpp.tools import LlamaCpp, run_converter
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.model.gguf.model import open_gguf_model
from trimoe.model.safetensors import read_bytes
from trimoe.model.tiny import path as bundled

CHECKPOINT = bundled()
PLAIN = ("BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K", "IQ4_XS")
WITH_IMATRIX = (pytest.param("IQ3_XXS", marks=pytest.mark.slow), "Q2_K")
TEXT = "def add(a, b):\\n    return a + b\\nThe sky is blue. 12 + 30 = 42. Once upon a time there was a fox. "


@pytest.fixture(scope="module")
def drop_map() -> DropMap:
    """A quarter of the bundled model's experts, other ones in each layer."""
    model, draw = open_checkpoint(CHECKPOINT), random.Random(3)
    count = model.num_experts // 4
    drop = {i: tuple(sorted(draw.sample(range(model.num_experts), count))) for i in range(model.num_layers)}
    return DropMap(drop, model.num_experts)


@pytest.fixture(scope="module")
def files(llamacpp: LlamaCpp, drop_map: DropMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole.gguf and pruned.gguf in BF16, both from llama.cpp's converter."""
    folder = tmp_path_factory.mktemp("acceptance")
    prune(CHECKPOINT, drop_map, folder / "checkpoint")
    run_converter(llamacpp, CHECKPOINT, folder / "whole.gguf")
    run_converter(llamacpp, folder / "checkpoint", folder / "pruned.gguf")
    return folder


def quantize(llamacpp: LlamaCpp, source: Path, out: Path, kind: str, imatrix: Path | None = None) -> Path:
    options = ["--imatrix", str(imatrix)] if imatrix else []
    command = [llamacpp.program("llama-quantize"), *options, source, out, kind, "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return out


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = open_gguf(a), open_gguf(b)
    assert list(first.index) == list(second.index)
    for name, info in first.index.items():
        other = second.index[name]
        assert (info.dtype, info.shape) == (other.dtype, other.shape), name
        assert read_bytes(info) == read_bytes(other), name


@pytest.mark.parametrize("kind", PLAIN)
def test_cutting_and_quantizing_commute(kind: str, llamacpp: LlamaCpp, files: Path, drop_map: DropMap) -> None:
    whole = quantize(llamacpp, files / "whole.gguf", files / f"whole-{kind}.gguf", kind)
    want = quantize(llamacpp, files / "pruned.gguf", files / f"want-{kind}.gguf", kind)
    prune(whole, drop_map, files / f"cut-{kind}.gguf")
    assert_same_tensors(want, files / f"cut-{kind}.gguf")


@pytest.fixture(scope="module")
def imatrix(llamacpp: LlamaCpp, files: Path) -> Path:
    """An imatrix of the whole model, measured by llama-imatrix."""
    (files / "text.txt").write_text(TEXT * 60)
    command = [
        llamacpp.program("llama-imatrix"),
        "-m",
        files / "whole.gguf",
        "-f",
        files / "text.txt",
        "-o",
        files / "imatrix.gguf",
        "-c",
        "128",
        "-t",
        "1",
        "--chunks",
        "4",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return files / "imatrix.gguf"


@pytest.mark.parametrize("kind", WITH_IMATRIX)
def test_they_commute_with_an_imatrix_cut_alike(
    kind: str, llamacpp: LlamaCpp, files: Path, imatrix: Path, drop_map: DropMap
) -> None:
    whole = quantize(llamacpp, files / "whole.gguf", files / f"whole-i-{kind}.gguf", kind, imatrix)
    cut, matrix = files / f"cut-i-{kind}.gguf", files / f"imatrix-{kind}.gguf"
    prune(whole, drop_map, cut, imatrix=imatrix, imatrix_out=matrix)
    want = quantize(llamacpp, files / "pruned.gguf", files / f"want-i-{kind}.gguf", kind, matrix)
    assert_same_tensors(want, cut)


def test_the_dat_format_leads_to_the_same_file(
    llamacpp: LlamaCpp, files: Path, imatrix: Path, drop_map: DropMap
) -> None:
    dat = files / "imatrix.dat"
    command = [
        llamacpp.program("llama-imatrix"),
        "-m",
        files / "whole.gguf",
        "--in-file",
        imatrix,
        "-o",
        dat,
        "--output-format",
        "dat",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert dat.exists(), answer.stderr[-2000:]
    prune(files / "whole.gguf", drop_map, files / "x.gguf", imatrix=dat, imatrix_out=files / "cut.dat")
    assert open_imatrix(files / "cut.dat").legacy
    whole = quantize(llamacpp, files / "whole.gguf", files / "whole-dat.gguf", "Q2_K", dat)
    prune(whole, drop_map, files / "cut-dat.gguf")
    want = quantize(llamacpp, files / "pruned.gguf", files / "want-dat.gguf", "Q2_K", files / "cut.dat")
    assert_same_tensors(want, files / "cut-dat.gguf")


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
def test_the_certificate_is_proven_bit_for_bit(
    kind: str, llamacpp: LlamaCpp, files: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    whole = quantize(llamacpp, files / "whole.gguf", tmp_path / "whole.gguf", kind)
    prune(whole, drop_map, tmp_path / "cut.gguf")
    certificate = certify(whole, tmp_path / "cut.gguf", map=drop_map)
    assert certificate.status == "proven", certificate.checks
    assert certificate.max_logit_difference == 0
    numbers = certificate.check("logits").numbers
    assert numbers["argmax_equal"] == numbers["positions"] > 100
    assert 0 < numbers["masked_share"] < 1, "the prompts must need the mask, or it proves nothing"
    assert numbers["kept_routed"] > numbers["kept_total"] / 2
    assert certificate.prompts is not None
    assert certificate.prompts.tokens == numbers["positions"]


def test_behaviour_finds_what_the_bytes_are_not_asked_for(
    llamacpp: LlamaCpp, files: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    """Two kept experts swapped in one tensor: the logits alone, with the byte line's verdict ignored, refute it."""
    prune(files / "whole.gguf", drop_map, tmp_path / "cut.gguf")
    info = open_gguf_model(tmp_path / "cut.gguf").index["blk.1.ffn_down_exps.weight"]
    size = info.nbytes // info.shape[0]
    rows = [read_bytes(info, e * size, size) for e in range(info.shape[0])]
    with info.file.open("r+b") as handle:
        handle.seek(info.start)
        handle.write(b"".join(rows[::-1]))
    certificate = certify(files / "whole.gguf", tmp_path / "cut.gguf", map=drop_map, keep_going=True)
    assert certificate.check("loading").status == "passed"
    assert certificate.check("logits").status == "failed"
    assert certificate.max_logit_difference is not None
    assert certificate.max_logit_difference > 0.01


def test_a_model_that_does_not_load_is_refuted(
    llamacpp: LlamaCpp, files: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    prune(files / "whole.gguf", drop_map, tmp_path / "cut.gguf")
    data = (tmp_path / "cut.gguf").read_bytes()
    assert data.count(b"token_embd.weight") == 1
    (tmp_path / "cut.gguf").write_bytes(data.replace(b"token_embd.weight", b"token_embd.wrong!"))
    certificate = certify(files / "whole.gguf", tmp_path / "cut.gguf", map=drop_map, keep_going=True)
    assert certificate.check("loading").status == "failed"
    assert "token_embd" in certificate.check("loading").findings[0].actual


def test_split_output_is_what_llamacpp_joins(
    llamacpp: LlamaCpp, files: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    """llama-gguf-split merges our parts into our single file, and splits it into parts that we cut alike."""
    prune(files / "whole.gguf", drop_map, tmp_path / "cut.gguf")
    prune(files / "whole.gguf", drop_map, tmp_path / "parts", max_shard=2_000_000)
    split = llamacpp.program("llama-gguf-split")
    first = sorted((tmp_path / "parts").glob("*.gguf"))[0]
    subprocess.run([split, "--merge", first, tmp_path / "merged.gguf"], check=True, capture_output=True)
    assert_same_tensors(tmp_path / "cut.gguf", tmp_path / "merged.gguf")
    (tmp_path / "theirs").mkdir()
    command = [split, "--split", "--split-max-size", "2M", files / "whole.gguf", tmp_path / "theirs" / "whole"]
    subprocess.run(command, check=True, capture_output=True)
    prune(sorted((tmp_path / "theirs").glob("*.gguf"))[0], drop_map, tmp_path / "again.gguf")
    assert_same_tensors(tmp_path / "cut.gguf", tmp_path / "again.gguf")


def test_the_map_of_a_quantized_prune_is_recovered(files: Path, drop_map: DropMap, tmp_path: Path) -> None:
    prune(files / "whole.gguf", drop_map, tmp_path / "cut.gguf")
    found = infer_map(files / "whole.gguf", tmp_path / "cut.gguf")
    assert found.exact
    assert found.map is not None
    assert found.map.drop == drop_map.drop
