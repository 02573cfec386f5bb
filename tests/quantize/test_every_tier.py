"""Predicted equals actual for every tier, ContribDynamic included: made for the bundled model, dry at real widths."""

from pathlib import Path

import pytest

from helpers.blueprints import dry_run, real_width, write_hollow, write_imatrix
from trimoe.io.canonical import sha256_file
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.quantize.ladder.dynamic import map_text, overrides_of, rank_by_imatrix
from trimoe.quantize.ladder.ladder import make_ladder
from trimoe.quantize.ladder.sources import Effort, Sources
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.plan.candidates import size_of
from trimoe.quantize.types.blueprint import Blueprint, blueprint_of_gguf
from trimoe.quantize.types.sizes import bytes_about
from trimoe.quantize.types.tensor_types import allows_quantization
from trimoe.quantize.types.tiers import all_tiers

TIERS = [tier for tier in all_tiers().values() if not tier.broken]


def imatrix_for(blueprint: Blueprint, path: Path) -> Path:
    """An imatrix with an entry for every matrix of the layers; later layers contribute more."""
    shapes, counts = {}, {}
    for tensor in blueprint.tensors:
        if tensor.name.startswith("blk.") and allows_quantization(tensor):
            matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
            shapes[tensor.name] = (matrices, tensor.row)
            counts[tensor.name] = [64.0 / (1 + int(tensor.name.split(".")[1]))] * matrices
    return write_imatrix(path, shapes, counts)


@pytest.mark.slow
def test_every_tier_of_the_bundled_model(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    """Sizes predicted from the base's header alone, before anything is made."""
    blueprint = blueprint_of_gguf(open_gguf(base))
    path = imatrix_for(blueprint, tmp_path / "imatrix.gguf")
    imatrix = open_imatrix(path)
    ranking = rank_by_imatrix(imatrix, blueprint.facts.layers, sha256_file(path))
    about = bytes_about(imatrix, "imatrix.gguf")
    want = {tier.name: size_of(blueprint, tier, ranking=ranking, extra=about).file_bytes for tier in TIERS}
    ladder = LadderSpec(tiers=tuple(tier.name for tier in TIERS))
    made = make_ladder(base, tmp_path / "o", ladder, llamacpp, sources=Sources(imatrix=path), effort=Effort(2, 1))
    sizes = {file.tier: file.path.stat().st_size for file in made.files}
    assert sizes == {name: size for name, size in want.items() if name != "BF16"}
    assert len(sizes) >= 30
    assert not made.findings, "no dynamic tier equals its plain one"


@pytest.mark.parametrize("experts", [128, 98])
def test_every_tier_at_real_widths(llamacpp: LlamaCpp, tmp_path: Path, experts: int) -> None:
    """llama-quantize's own dry run gives every tensor the predicted type; a type and a shape are a size."""
    blueprint = real_width(2, experts)
    model = write_hollow(tmp_path / "x-BF16.gguf", blueprint)
    path = imatrix_for(blueprint, tmp_path / "imatrix.gguf")
    ranking = rank_by_imatrix(open_imatrix(path), 2, "")
    for tier in TIERS:
        options = ["--imatrix", str(path)] if tier.imatrix == "use" else []
        for option, kind in (("--token-embedding-type", tier.token_embedding), ("--output-tensor-type", tier.output)):
            options += [option, kind.lower()] if kind else []
        if tier.dynamic is not None:
            (tmp_path / "map.txt").write_text(
                map_text(overrides_of(tier, ranking, [t.name for t in blueprint.tensors]))
            )
            options += ["--tensor-type-file", str(tmp_path / "map.txt")]
        found = dry_run(llamacpp, model, tier.file_type, *options)
        size = size_of(blueprint, tier, ranking=ranking)
        assert {c.tensor.name: c.dtype for c in size.choices} == {
            c.tensor.name: found[c.tensor.name] for c in size.choices
        }, tier.name
