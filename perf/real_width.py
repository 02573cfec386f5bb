"""Sizes of really quantized layers of real width: two layers of gemma-4-26B-A4B with random weights, full and pruned.

    python perf/real_width.py DIR [--tiers Q4_K_M,CD-Q4_K_M,IQ4_XS,IQ3_XS] [--keep 98] [--vocabulary 16384]

Sizes are predicted from the header of the full model alone, before the pruned model exists. Then the model and its
imatrix (also random) are pruned to `--keep` of 128 experts, llama-quantize makes every tier of both, and file sizes are
compared. Needs about 8 GB in DIR. Says nothing about quality. Files are removed as soon as they are measured.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np

from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.llamacpp.tools import locate
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.quantize.ladder.dynamic import rank_by_imatrix
from trimoe.quantize.ladder.ladder import make_ladder
from trimoe.quantize.ladder.sources import Effort, Sources
from trimoe.quantize.ladder.spec import ImatrixOptions, LadderSpec
from trimoe.quantize.plan.candidates import size_of
from trimoe.quantize.plan.shipped import shipped_config
from trimoe.quantize.types.blueprint import blueprint_of_gguf
from trimoe.quantize.types.config_blueprint import blueprint_of_config
from trimoe.quantize.types.sizes import bytes_about
from trimoe.quantize.types.tiers import find_tiers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.blueprints import write_hollow, write_imatrix

BLOCK = 1 << 24


def make_model(path: Path, vocabulary: int) -> Path:
    """Write a BF16 file with one layer of each kind of attention and seeded normal values."""
    config = shipped_config("gemma-4-26B-A4B")
    assert config is not None
    text = config["text_config"] | {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size": vocabulary,
    }
    write_hollow(path, blueprint_of_config("real width", {**config, "text_config": text}))
    values = (np.random.default_rng(0).standard_normal(BLOCK, np.float32) * 0.02).view(np.uint32)
    halves = (values >> 16).astype("<u2")
    with path.open("r+b") as file:
        for number, info in enumerate(open_gguf(path).index.values()):
            file.seek(info.start)
            block, left = (values if info.dtype == "F32" else halves), info.nbytes
            turned = np.roll(block, 7919 * number).tobytes()
            while left:
                left -= file.write(turned[:left])
    return path


def imatrix_for(path: Path, model: Path) -> Path:
    """Write an imatrix with entries for every matrix that llama-quantize may quantize."""
    shapes = {}
    for name, info in open_gguf(model).index.items():
        if info.dtype == "BF16" and name != "token_embd.weight":
            matrices = info.shape[0] if len(info.shape) == 3 else 1
            shapes[name] = (matrices, info.shape[-1])
    return write_imatrix(path, shapes)


def main() -> None:
    """Predict, prune, quantize, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiers", default="Q4_K_M,CD-Q4_K_M,IQ4_XS,IQ3_XS")
    parser.add_argument("--keep", type=int, default=98)
    parser.add_argument("--vocabulary", type=int, default=16384)
    options = parser.parse_args()
    out, tools, names = options.folder, locate(), options.tiers.split(",")
    out.mkdir(parents=True)
    whole = make_model(out / "whole.gguf", options.vocabulary)
    imatrix = imatrix_for(out / "imatrix.gguf", whole)
    cut, cut_imatrix = out / "cut.gguf", out / "imatrix-cut.gguf"
    blueprint = blueprint_of_gguf(open_gguf(whole))
    experts, predicted = blueprint.facts.experts, {}
    for keep in (experts, options.keep):
        for tier in find_tiers(names):
            matrix = open_imatrix(imatrix)
            size = size_of(
                blueprint.with_experts(keep),
                tier,
                extra=bytes_about(matrix, imatrix.name),
                ranking=rank_by_imatrix(matrix, 2, "assumed"),
            )
            predicted[keep, tier.name] = size.file_bytes
    drop = {layer: tuple(range(layer, layer + experts - options.keep)) for layer in range(2)}
    prune(whole, DropMap(drop, experts), cut, imatrix=imatrix, imatrix_out=cut_imatrix)
    ladder = LadderSpec(tiers=tuple(names), smoke=None, imatrix=ImatrixOptions(chunks=4, context=512))
    wrong = 0
    print("| experts | tier | predicted | written | difference |\n|---|---|---|---|---|")
    for keep, model, matrix_file in ((experts, whole, imatrix), (options.keep, cut, cut_imatrix)):
        # One tier at a time: a file is removed before the next is made.
        for name in names:
            folder = out / "files"
            table = make_ladder(
                model,
                folder,
                msgspec.structs.replace(ladder, tiers=(name,)),
                tools,
                sources=Sources(imatrix=matrix_file),
                effort=Effort(1, 2),
            )
            (file,) = table.files
            written = file.path.stat().st_size
            wrong += written != predicted[keep, name]
            print(
                f"| {keep} | {name} | {predicted[keep, name]:,} | {written:,} | {written - predicted[keep, name]} |",
                flush=True,
            )
            print(json.dumps(file.types), file=sys.stderr)
            shutil.rmtree(folder)
    shutil.rmtree(out)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
