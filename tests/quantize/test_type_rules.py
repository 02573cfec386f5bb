"""Type choice against llama-quantize's own dry run, tensor by tensor, at real widths and on the bundled model."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.blueprints import dry_run, real_width, write_hollow, write_imatrix
from trimoe.errors import BadInput, CheckpointError
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.format import NUMBERS, TYPES
from trimoe.quantize.ladder.dynamic import Ranking, map_text, normal, overrides_of
from trimoe.quantize.types.fallback import fallback
from trimoe.quantize.types.sizes import facts_of
from trimoe.quantize.types.tensor_types import (
    FILE_TYPES,
    ModelFacts,
    Request,
    Tensor,
    allows_quantization,
    requires_imatrix,
    tensors_of,
)
from trimoe.quantize.types.tiers import all_tiers
from trimoe.quantize.types.type_rules import choose_types

SHAPES = {"all experts": (30, 128), "pruned": (30, 98), "eight experts": (30, 8), "two layers": (2, 98)}
KINDS = sorted(set(FILE_TYPES) - {"Q1_0"})  # Q1_0 has no fallback for rows of 2112: see its own test


def assert_agree(llamacpp: LlamaCpp, model: Path, request: Request, *options: str) -> None:
    gguf = open_gguf(model)
    choices = choose_types(tensors_of(gguf.index), facts_of(gguf), request)
    wanted = dry_run(llamacpp, model, request.file_type, *options)
    assert {c.tensor.name: c.dtype for c in choices} == wanted
    assert [c.tensor.name for c in choices] == list(wanted)


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hollow")
    return {name: write_hollow(folder / f"{name}.gguf", real_width(*shape)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_file_type_as_the_dry_run_says(llamacpp: LlamaCpp, hollow: dict[str, Path], shape: str) -> None:
    for kind in KINDS:
        assert_agree(llamacpp, hollow[shape], Request(kind))


def test_with_an_imatrix(llamacpp: LlamaCpp, hollow: dict[str, Path], tmp_path: Path) -> None:
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", {"blk.0.attn_q.weight": (1, 2816)})
    for kind in ("IQ3_XXS", "IQ4_NL", "IQ4_XS", "Q4_0", "Q5_0", "IQ3_M"):
        assert_agree(llamacpp, hollow["pruned"], Request(kind, imatrix=True), "--imatrix", str(imatrix))


@pytest.mark.parametrize("name", [n for n, t in all_tiers().items() if t.dynamic and not t.broken])
def test_dynamic_tiers(llamacpp: LlamaCpp, hollow: dict[str, Path], tmp_path: Path, name: str) -> None:
    tier = all_tiers()[name]
    overrides = overrides_of(tier, Ranking(tuple(reversed(range(30))), "file", ""))
    (tmp_path / "map.txt").write_text(map_text(overrides))
    assert_agree(
        llamacpp,
        hollow["pruned"],
        tier.request(normal(overrides), imatrix=False),
        "--tensor-type-file",
        str(tmp_path / "map.txt"),
    )


def test_types_of_embeddings_and_output(llamacpp: LlamaCpp, hollow: dict[str, Path], base: Path) -> None:
    request = Request("Q4_K_M", token_embedding="Q8_0", output="Q5_K")
    for model in (hollow["two layers"], base):
        assert_agree(llamacpp, model, request, "--token-embedding-type", "q8_0", "--output-tensor-type", "q5_k")
    assert_agree(llamacpp, hollow["two layers"], Request("IQ2_M", output="Q4_0"), "--output-tensor-type", "q4_0")


def test_the_bundled_model(llamacpp: LlamaCpp, base: Path) -> None:
    for kind in KINDS:
        assert_agree(llamacpp, base, Request(kind))


def test_first_matching_override_wins_and_patterns_are_lower_cased(llamacpp: LlamaCpp, base: Path) -> None:
    request = Request("Q4_K_M", (("ATTN_Q", "Q8_0"), (r"blk\.[01]\.attn", "Q6_K"), ("attn_q", "Q2_K")))
    options = [word for pattern, kind in request.overrides for word in ("--tensor-type", f"{pattern}={kind}")]
    assert_agree(llamacpp, base, request, *options)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("Q2_K", "Q4_0"),
        ("Q3_K", "Q4_0"),
        ("Q4_K", "Q5_0"),
        ("Q5_K", "Q5_1"),
        ("Q6_K", "Q8_0"),
        ("IQ2_XS", "IQ4_NL"),
        ("IQ3_S", "IQ4_NL"),
        ("IQ4_XS", "IQ4_NL"),
        ("Q8_0", "Q8_0"),
    ],
)
def test_fallbacks_of_704(kind: str, want: str) -> None:
    assert fallback(kind, 704) == want
    assert fallback(kind, 2816) == kind
    assert fallback(kind, 33) == "F16"


@given(st.sampled_from(sorted(set(FILE_TYPES.values()))), st.integers(1, 5000))
def test_a_fallback_always_fits_the_rows(kind: str, row: int) -> None:
    try:
        found = fallback(kind, row)
    except CheckpointError:
        assert TYPES[NUMBERS[kind]][1] > 32
        return
    assert row % TYPES[NUMBERS[found]][1] == 0


def test_no_fallback_is_an_error_as_in_llamacpp() -> None:
    facts = ModelFacts("gemma4", 1, 8, 2)
    with pytest.raises(CheckpointError, match="rows of 2112 values cannot be quantized to Q1_0"):
        choose_types([Tensor("blk.0.ffn_down.weight", "BF16", (8, 2112))], facts, Request("Q1_0"))


def test_embeddings_have_no_fallback() -> None:
    tensors, facts = [Tensor("token_embd.weight", "BF16", (8, 704))], ModelFacts("gemma4", 1, 8, 2)
    assert choose_types(tensors, facts, Request("Q6_K", token_embedding="Q8_0"))[0].dtype == "Q8_0"
    with pytest.raises(CheckpointError, match=r"token_embd\.weight cannot be quantized to Q4_K"):
        choose_types(tensors, facts, Request("Q6_K", token_embedding="Q4_K"))


def test_mixes_and_unknown_types_are_refused_as_types_of_tensors() -> None:
    with pytest.raises(BadInput, match=r"(?s)IQ3_M is not a type.*a mix of several.*use IQ3_S"):
        Request("IQ3_M", (("ffn_up", "IQ3_M"),))
    with pytest.raises(BadInput, match="Q9_K is not a type"):
        Request("Q6_K", output="Q9_K")
    with pytest.raises(BadInput, match="file type Q4_K_XL is unknown"):
        Request("Q4_K_XL")


def test_own_rules_are_refused() -> None:
    with pytest.raises(CheckpointError, match="special quantization rules for falcon"):
        choose_types([], ModelFacts("falcon", 1, 0, 1), Request("Q6_K"))


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("blk.0.attn_q.weight", (4, 4), True),
        ("blk.0.attn_q.bias", (4, 4), False),
        ("blk.0.attn_norm.weight", (4,), False),
        ("blk.0.ffn_gate_inp.weight", (4, 4), False),
        ("blk.0.ffn_down_exps.scale", (4, 4), False),
        ("blk.0.x.weight", (1, 4), False),
        ("output_norm.weight", (4, 4), False),
        ("token_embd.weight", (4, 4), True),
    ],
)
def test_which_tensors_are_touched(name: str, shape: tuple[int, ...], want: bool) -> None:
    assert allows_quantization(Tensor(name, "BF16", shape)) is want


def test_what_needs_an_imatrix() -> None:
    facts = ModelFacts("gemma4", 1, 8, 2)
    names = ("token_embd.weight", "blk.0.ffn_up_exps.weight")
    tensors = [Tensor(name, "BF16", (2, 256)) for name in names]
    needs = {
        kind: [c.tensor.name for c in choose_types(tensors, facts, Request(kind)) if requires_imatrix(c, kind)]
        for kind in ("IQ2_XS", "Q2_K_S", "Q2_K", "IQ3_S")
    }
    assert needs == {"IQ2_XS": [names[1]], "Q2_K_S": [names[1]], "Q2_K": [], "IQ3_S": []}
