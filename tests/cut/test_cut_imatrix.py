"""Importance matrices that llama.cpp accepts are cut: matrices per head, unknown tensors, fused and reshaped names."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from helpers.gguf_models import EXPERTS, HIDDEN, WIDTH, write_model
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.gguf.imatrix import open_imatrix, write_dat_imatrix

MAP = DropMap({0: (1, 4), 1: (0, 7), 2: (2, 3)}, EXPERTS)
DOWN = "blk.1.ffn_down_exps.weight"
Tensors = dict[str, np.ndarray]


def write(path: Path, tensors: Tensors) -> Path:
    """An imatrix file with the gguf package."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.kv_data[0].pop("general.architecture")
    writer.add_type("imatrix")
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry(name: str, matrices: int, inputs: int, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        f"{name}.in_sum2": rng.random((matrices, inputs), np.float32),
        f"{name}.counts": rng.integers(1, 900, (matrices, 1)).astype(np.float32),
    }


def cut(tmp_path: Path, tensors: Tensors) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of the cut imatrix by the gguf package, and the warnings of the cut."""
    model = write_model(tmp_path / "before.gguf")
    matrix = write(tmp_path / "i.gguf", tensors)
    made = prune(model, MAP, tmp_path / "after.gguf", imatrix=matrix, imatrix_out=tmp_path / "o.gguf")
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "o.gguf").tensors}, made.warnings


def test_unknown_entries_are_carried_and_reported(tmp_path: Path) -> None:
    known = entry(DOWN, EXPERTS, WIDTH)
    more = (
        entry("blk.0.attn_k_b.weight", 3, 5) | entry("blk.9.nextn.eh_proj.weight", 1, 6) | entry("output.weight", 1, 4)
    )
    found, warnings = cut(tmp_path, known | more)
    for name, array in more.items():
        np.testing.assert_array_equal(found[name].reshape(-1), array.reshape(-1))
    np.testing.assert_array_equal(found[f"{DOWN}.in_sum2"], np.delete(known[f"{DOWN}.in_sum2"], [0, 7], axis=0))
    assert "3 entries for tensors that this model does not have" in warnings[0]
    assert "attn_k_b" in warnings[0]


@pytest.mark.parametrize(
    "name", ["blk.1.ffn_gate_up_exps.weight", f"{DOWN} (reshaped)", "blk.1.ffn_up_exps.weight (reshaped)"]
)
def test_unknown_entries_of_experts_are_cut_with_their_layer(name: str, tmp_path: Path) -> None:
    more = entry(name, EXPERTS, 7)
    found, warnings = cut(tmp_path, entry(DOWN, EXPERTS, WIDTH) | more)
    for key, array in more.items():
        np.testing.assert_array_equal(found[key], np.delete(array, [0, 7], axis=0))
    assert "1 of them are of cut layers' experts and were cut" in warnings[0]


def test_an_expert_entry_of_a_layer_beyond_the_model_is_copied(tmp_path: Path) -> None:
    more = entry("blk.9.ffn_up_exps.weight", EXPERTS, 7)
    found, _ = cut(tmp_path, entry(DOWN, EXPERTS, WIDTH) | more)
    for key, array in more.items():
        np.testing.assert_array_equal(found[key], array)


def test_a_further_tensor_of_an_entry_is_cut_with_it(tmp_path: Path) -> None:
    """Later versions of llama.cpp write more than sums and counts; llama.cpp itself ignores what it does not know."""
    means = np.arange(EXPERTS * WIDTH, dtype=np.float32).reshape(EXPERTS, WIDTH)
    alone = np.arange(5, dtype=np.float32)
    found, _ = cut(tmp_path, entry(DOWN, EXPERTS, WIDTH) | {f"{DOWN}.in_sum": means, "other": alone})
    np.testing.assert_array_equal(found[f"{DOWN}.in_sum"], np.delete(means, [0, 7], axis=0))
    np.testing.assert_array_equal(found["other"], alone)


def test_an_entry_without_counts_per_expert_is_cut_by_its_values(tmp_path: Path) -> None:
    """llama-imatrix makes one flat vector and one count of an entry that it reads from a .dat file."""
    flat = np.arange(EXPERTS * WIDTH, dtype=np.float32)
    found, _ = cut(tmp_path, {f"{DOWN}.in_sum2": flat, f"{DOWN}.counts": np.ones(1, np.float32)})
    kept = np.delete(flat.reshape(EXPERTS, WIDTH), [0, 7], axis=0)
    np.testing.assert_array_equal(found[f"{DOWN}.in_sum2"].reshape(-1, WIDTH), kept)
    np.testing.assert_array_equal(found[f"{DOWN}.counts"], [1])


def test_what_is_not_of_this_model_stays_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "before.gguf")
    counts = {f"{DOWN}.counts": np.ones((EXPERTS, 1), np.float32)}
    for number, (tensors, message) in enumerate(
        [
            (entry(DOWN, EXPERTS - 1, WIDTH), "of another model"),
            (entry("blk.1.attn_q.weight", 2, HIDDEN), "of another model"),
            (entry("blk.7.other.weight", 1, 3), "none of its tensors"),
            (counts, "not an imatrix"),
            (entry(DOWN, EXPERTS, WIDTH) | {"x.counts": np.ones((1, 1), np.float32)}, "not an imatrix"),
            ({f"{DOWN}.in_sum2": np.ones((3, WIDTH), np.float32)} | counts, "malformed"),
        ]
    ):
        matrix = write(tmp_path / f"{number}.gguf", tensors)
        with pytest.raises(CheckpointError, match=message):
            prune(model, MAP, tmp_path / "after.gguf", imatrix=matrix, imatrix_out=tmp_path / "o.gguf")
    assert not (tmp_path / "after.gguf").exists()


def test_a_dat_file_with_a_matrix_per_head(tmp_path: Path) -> None:
    model = write_model(tmp_path / "before.gguf")
    heads, down = np.arange(15, dtype=np.float32), np.arange(EXPERTS * WIDTH, dtype=np.float32)
    write_dat_imatrix(tmp_path / "i.dat", [("blk.0.attn_k_b.weight", 4, heads), (DOWN, 4, down)], 2, b"")
    prune(model, MAP, tmp_path / "after.gguf", imatrix=tmp_path / "i.dat", imatrix_out=tmp_path / "o.dat")
    found = open_imatrix(tmp_path / "o.dat").entries
    np.testing.assert_array_equal(found["blk.0.attn_k_b.weight"].read_sums(), heads)
    assert found[DOWN].read_sums().size == down.size * 6 // 8
