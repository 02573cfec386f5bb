"""Coverage, fit and completeness of importance matrices."""

from pathlib import Path

import pytest

from helpers.blueprints import write_imatrix
from trimoe.errors import BadInput, CheckpointError, Refused
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.quantize.ladder.importance import Coverage, coverage, fitted, require_coverage, require_entries
from trimoe.quantize.types.tensor_types import ModelFacts, Request, Tensor
from trimoe.quantize.types.type_rules import choose_types

UP, DOWN, Q = "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"


def test_the_worst_tensor_of_a_layer_counts(tmp_path: Path) -> None:
    counts = {UP: [100.0] * 10, DOWN: [100.0] * 7 + [1.0] * 3, "blk.1.ffn_down_exps.weight": [100.0] * 8 + [1.0] * 2}
    shapes = dict.fromkeys(counts, (10, 4)) | {Q: (1, 4)}
    found = coverage(open_imatrix(write_imatrix(tmp_path / "i.gguf", shapes, counts)))
    assert [(c.layer, c.thin, c.experts) for c in found] == [(0, 3, 10), (1, 2, 10)]
    with pytest.raises(Refused, match=r"(?s)in 1 of 2 layers.*layer 0: 3 of 10 experts"):
        require_coverage(found)
    require_coverage(found[1:])  # 20 % is allowed
    require_coverage([])


def test_a_layer_without_data_is_thin(tmp_path: Path) -> None:
    (found,) = coverage(open_imatrix(write_imatrix(tmp_path / "i.gguf", {DOWN: (4, 8)}, {DOWN: [0.0] * 4})))
    assert found == Coverage(0, 4, 4, 0.0)


def test_entries_of_other_models(tmp_path: Path) -> None:
    tensors = [Tensor(DOWN, "BF16", (4, 16, 8)), Tensor(Q, "BF16", (16, 8))]
    found, unknown = fitted(open_imatrix(write_imatrix(tmp_path / "a.gguf", {DOWN: (4, 8), Q: (1, 8)})), tensors)
    assert (set(found.entries), unknown) == ({DOWN, Q}, ())
    for number, shapes in enumerate(({DOWN: (5, 8)}, {Q: (1, 16)}, {UP: (4, 8)})):
        with pytest.raises(CheckpointError, match="imatrix of another model"):
            fitted(open_imatrix(write_imatrix(tmp_path / f"{number}.gguf", shapes)), tensors)


def test_entries_that_llamacpp_accepts_are_accepted(tmp_path: Path) -> None:
    """A matrix per head, a fourth axis, a drafting block, a reshaped view, the halves of a fused tensor."""
    heads, deep = "blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"
    tensors = [Tensor(DOWN, "BF16", (4, 16, 8)), Tensor(heads, "BF16", (3, 16, 8)), Tensor(deep, "BF16", (2, 3, 16, 8))]
    more = {"blk.9.nextn.eh_proj.weight": (1, 5), f"{DOWN} (reshaped)": (4, 8), "blk.0.ffn_gate_exps.weight": (4, 8)}
    shapes = {DOWN: (4, 8), heads: (3, 8), deep: (6, 8), **more}
    found, unknown = fitted(open_imatrix(write_imatrix(tmp_path / "a.gguf", shapes)), tensors)
    assert set(found.entries) == {DOWN, heads, deep}
    assert set(unknown) == set(more)


def test_missing_entries_matter_where_llamacpp_stops(tmp_path: Path) -> None:
    tensors = [Tensor(DOWN, "BF16", (4, 16, 256)), Tensor(Q, "BF16", (16, 256))]
    imatrix = open_imatrix(write_imatrix(tmp_path / "i.gguf", {DOWN: (4, 256)}))
    facts = ModelFacts("gemma4", 1, 4, 1)
    require_entries(choose_types(tensors, facts, Request("Q2_K")), "Q2_K", None, "Q2_K")
    choices = choose_types(tensors, facts, Request("IQ2_XS", imatrix=True))
    with pytest.raises(BadInput, match=r"(?s)tier IQ2_XS needs an imatrix.*entry for blk.0.attn_q.weight"):
        require_entries(choices, "IQ2_XS", imatrix, "IQ2_XS")
    with pytest.raises(BadInput, match=r"(?s)actual: no imatrix"):
        require_entries(choices, "IQ2_XS", None, "IQ2_XS")
