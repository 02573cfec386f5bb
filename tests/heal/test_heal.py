"""heal: exact factors, a refit with a known optimum, the gate, the record; what certify and infer-map say of it."""

import bisect
import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.certify_models import edit_json, edit_tensors, write_gemma4
from helpers.families import EXPERTS, MADE, Made
from helpers.quantized import ct_nvfp4, modelopt_nvfp4, plain, qwen, qwen_config, write
from trimoe.calibrate.divergence import Text
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.text.split import digests, require_disjoint, split
from trimoe.calibrate.text.windows import Document, Windows, windows_of
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cli.heal import heal as command
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CalibrationError, CheckpointError, Refused, UsageError
from trimoe.heal.edit import Edit, decode, encode, factor_edits, scaled, scaling
from trimoe.heal.heal import parse_factors
from trimoe.heal.measure import Plan, fit_and_measure
from trimoe.heal.router import Steps
from trimoe.heal.write import Healing, gate, write_healed
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import TensorInfo, header_bytes, read_bytes
from trimoe.model.shards import read_index

DENSE = "model.layers.{}.mlp.down_proj.weight"
ROUTER = "model.layers.{}.router.proj.weight"
POSITIVE = [Fraction(float(v)) for v in decode(np.arange(0x7F80, dtype="<u2").tobytes(), "BF16")]
"""Every finite bf16 value from 0 on; the place in the list is its bit pattern."""


def windows(count: int = 24, seed: int = 0, length: int = 40) -> Windows:
    """Random documents of two classes over the byte vocabulary."""
    rng = np.random.default_rng(seed)
    documents = [Document("ab"[i % 2], tuple(rng.integers(3, 250, length - i % 7).tolist())) for i in range(count)]
    return windows_of(documents, 64, 1)


def healing(base: Path, pruned: Path, edits: list[Edit] | None = None, alpha: float = 1.2) -> Healing:
    one, two = open_checkpoint(base), open_checkpoint(pruned)
    edits = factor_edits(two, "shared-alpha", alpha) if edits is None else edits
    measured = {"kl_before": 1.0, "kl_after": 0.5}
    return Healing(one, two, "shared-alpha", {"alpha": alpha}, edits, measured)


def nearest_bf16(exact: Fraction) -> int:
    """The bit pattern of the bf16 value nearest to one from 0 to the largest, ties to even, by search."""
    at = bisect.bisect_left(POSITIVE, exact)
    if POSITIVE[at] != exact:
        below, above = exact - POSITIVE[at - 1], POSITIVE[at] - exact
        if below < above or (below == above and (at - 1) % 2 == 0):
            at -= 1
    return at


@settings(max_examples=300, deadline=None)
@given(bits=st.integers(0, 0x7F7F), sign=st.sampled_from([0, 0x8000]), alpha=st.floats(0.25, 1.9375, width=32))
def test_a_scaled_bf16_value_is_the_nearest_one(bits: int, sign: int, alpha: float) -> None:
    exact = POSITIVE[bits] * Fraction(alpha)
    if exact <= POSITIVE[-1]:
        found = scaled(np.array([sign | bits], "<u2").tobytes(), "BF16", alpha, "x")
        assert int(np.frombuffer(found, "<u2")[0]) == sign | nearest_bf16(exact)


def test_every_bf16_value_times_the_factor_of_v5_is_the_nearest_one() -> None:
    bits = np.arange(0, 0x7F00, 7, dtype="<u2")
    factor = Fraction(float(np.float32(1.2)))
    found = np.frombuffer(scaled(bits.tobytes(), "BF16", 1.2, "x"), "<u2")
    assert found.tolist() == [nearest_bf16(POSITIVE[b] * factor) for b in bits.tolist()]


def test_ties_and_double_rounding() -> None:
    # 1 + 2^-8 lies between two bf16 values; a hair above must go up although float32 cannot hold the hair.
    assert (
        encode(np.array([1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 3 * 2**-8]), "BF16")
        == np.array([0x3F80, 0x3F81, 0x3F82], "<u2").tobytes()
    )


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_factor_one_gives_the_same_bytes(dtype: str) -> None:
    data = np.random.default_rng(0).normal(size=4096).astype("<f4").tobytes()
    data = encode(decode(data, "F32"), dtype)
    assert scaled(data, dtype, 1.0, "x") == data


def test_a_factor_that_overflows_is_refused() -> None:
    with pytest.raises(BadInput, match="beyond the range"):
        scaled(np.array([60000.0], "<f2").tobytes(), "F16", 1.2, "x")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_published_and_found_again(dtype: str, tmp_path: Path, drop_map: DropMap) -> None:
    base = write_gemma4(tmp_path / "base", dtype=dtype)
    prune(base, drop_map, tmp_path / "cut")
    record = write_healed(healing(base, tmp_path / "cut"), tmp_path / "healed")
    assert [t["tensor"] for t in record["tensors"]] == [DENSE.format(0), DENSE.format(1)]
    before, after = read_index(tmp_path / "cut"), read_index(tmp_path / "healed")
    assert {n for n in before if read_bytes(before[n]) != read_bytes(after[n])} == {DENSE.format(0), DENSE.format(1)}
    assert record == json.loads((tmp_path / "healed" / "trimoe.json").read_text())["facts"]["heal"]
    found = infer_map(base, tmp_path / "healed")
    assert found.map is not None
    assert found.map.drop == drop_map.drop
    assert found.scaled == {DENSE.format(i): pytest.approx(1.2, abs=5e-4) for i in range(2)}
    same = healing(base, tmp_path / "cut", alpha=1.0)
    assert write_healed(same, tmp_path / "same")["tensors"] == []
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (tmp_path / "cut/model.safetensors").read_bytes()


def test_expert_scale_is_found_again(gemma: Path, cut: Path, tmp_path: Path) -> None:
    edits = factor_edits(open_checkpoint(cut), "expert-scale", 1.2)
    write_healed(healing(gemma, cut, edits), tmp_path / "healed")
    scale = "model.layers.{}.router.per_expert_scale"
    found = infer_map(gemma, tmp_path / "healed").scaled
    assert found == {scale.format(i): pytest.approx(1.2, abs=5e-4) for i in range(2)}


@pytest.mark.parametrize("module", [modelopt_nvfp4, ct_nvfp4])
def test_nvfp4_is_scaled_by_its_one_scale(module: Callable, tmp_path: Path) -> None:
    entries, settings_ = (
        qwen(module),
        {
            modelopt_nvfp4: {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            ct_nvfp4: {"quant_method": "compressed-tensors"},
        }[module],
    )
    for layer in range(2):
        entries |= module(f"model.layers.{layer}.mlp.shared_expert.down_proj.", 64, 32)
    base = write(tmp_path / "base", entries, qwen_config(settings_) | {"model_type": "qwen2_moe"})
    prune(base, DropMap({0: (1, 4), 1: (0, 7)}, 8), tmp_path / "cut")
    edits = factor_edits(open_checkpoint(tmp_path / "cut"), "shared-alpha", 1.2)
    suffix, factor = ("weight_scale_2", 1.2) if module is modelopt_nvfp4 else ("weight_global_scale", 1 / 1.2)
    record = write_healed(healing(base, tmp_path / "cut", edits), tmp_path / "healed")
    names = [f"model.layers.{i}.mlp.shared_expert.down_proj.{suffix}" for i in range(2)]
    assert [t["tensor"] for t in record["tensors"]] == names
    assert infer_map(base, tmp_path / "healed").scaled == {n: pytest.approx(factor, abs=5e-4) for n in names}


def test_what_cannot_be_scaled_is_refused(tmp_path: Path, family_checkpoint: Callable[[Made], Path]) -> None:
    mixtral = open_checkpoint(family_checkpoint(next(m for m in MADE if m.family == "mixtral")))
    with pytest.raises(CheckpointError, match="no FFN that runs beside"):
        factor_edits(mixtral, "shared-alpha", 1.2)
    with pytest.raises(CheckpointError, match="no per_expert_scale"):
        factor_edits(mixtral, "expert-scale", 1.2)
    from helpers.quantized import gptq

    entries = qwen(plain)
    for layer in range(2):
        entries |= gptq(f"model.layers.{layer}.mlp.shared_expert.down_proj.", 64, 32)
    model = write(tmp_path / "gptq", entries, qwen_config({"quant_method": "gptq"}) | {"model_type": "qwen2_moe"})
    with pytest.raises(CheckpointError, match="cannot be scaled by one number"):
        factor_edits(open_checkpoint(model), "shared-alpha", 1.2)


FAMILIES = (
    "gemma4",
    "qwen2_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "glm4_moe",
    "llama4",
)
SHARED = [made for made in MADE if made.family in FAMILIES and not made.quantized]


@pytest.mark.parametrize("made", SHARED, ids=lambda m: m.name)
def test_every_family_with_a_shared_ffn_is_scaled_in_each_layer_and_recognised(
    made: Made, family_checkpoint: Callable[[Made], Path], tmp_path: Path
) -> None:
    base = family_checkpoint(made)
    prune(base, DropMap(made.drop, EXPERTS), tmp_path / "cut")
    edits = factor_edits(open_checkpoint(tmp_path / "cut"), "shared-alpha", 1.2)
    assert tuple(e.layer for e in edits) == made.moe_layers
    write_healed(healing(base, tmp_path / "cut", edits), tmp_path / "healed")
    found = infer_map(base, tmp_path / "healed")
    assert found.scaled == {e.info.name: pytest.approx(1.2, abs=5e-4) for e in edits}


def test_divergence_is_what_whole_models_give(gemma: Path, cut: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    text = Text(windows(6))
    one, two = (LayerModel(open_checkpoint(p), "cpu", "float32") for p in (gemma, cut))
    first, second = text.through(one), text.through(two)
    one.load_head()
    two.load_head()
    found = text.divergence(one, first, two, second)
    whole = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (gemma, cut)]
    for number, window in enumerate(text.windows.windows):
        ids = torch.from_numpy(window.tokens)[None]
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in whole)
        kl = (p.exp() * (p - q)).sum(-1)[:-1].sum()
        loss = -q[:-1].gather(-1, ids[0, 1:, None]).sum()
        assert found.kl[number] == pytest.approx(float(kl), rel=1e-4)
        assert found.loss[number] == pytest.approx(float(loss), rel=1e-5)
        assert found.tokens[number] == len(window.tokens) - 1
    assert found.mean > 0.001, "the cut must show, or nothing is tested"


@pytest.mark.slow
def test_a_router_with_a_known_optimum_is_brought_back(gemma: Path, tmp_path: Path) -> None:
    """The model is the original but for noise on its routers: the original's rows are the optimum, with error 0."""
    damaged = Path(shutil.copytree(gemma, tmp_path / "damaged"))
    rng = np.random.default_rng(0)

    def noise(tensors: dict) -> None:
        for layer in range(2):
            dtype, shape, data = tensors[ROUTER.format(layer)]
            rows = np.frombuffer(data, "<f4") + rng.normal(size=len(data) // 4).astype("<f4") * 0.2
            tensors[ROUTER.format(layer)] = (dtype, shape, rows.astype("<f4").tobytes())

    edit_tensors(damaged, noise)
    plan = Plan("router", steps=Steps(30, 0.02, 0.0))
    base, other = open_checkpoint(gemma), open_checkpoint(damaged)
    found = fit_and_measure(base, other, plan, windows(24), windows(16, seed=1))
    layers = found.details["layers"]
    assert all(row["error_after"] < 0.7 * row["error_before"] for row in layers), layers
    assert found.measured is not None
    assert found.measured["kl_after"] < 0.8 * found.measured["kl_before"]
    for edit in found.edits:
        want, bad = (decode(read_bytes(m.index[edit.info.name]), "F32") for m in (base, other))
        now = decode(edit.whole(read_bytes(edit.info)), "F32")
        assert np.linalg.norm(now - want) < np.linalg.norm(bad - want), "the rows went the right way"
    record = write_healed(found, tmp_path / "healed")
    assert {t["tensor"] for t in record["tensors"]} == {ROUTER.format(0), ROUTER.format(1)}


def test_an_undamaged_router_stays_as_it_is(gemma: Path, tmp_path: Path) -> None:
    base = open_checkpoint(gemma)
    found = fit_and_measure(base, base, Plan("router", steps=Steps(2, 0.02, 0.0)), windows(8), windows(8, seed=1))
    assert found.measured is not None
    assert found.measured["kl_after"] == pytest.approx(0, abs=1e-6)
    assert write_healed(found, tmp_path / "healed")["tensors"] == []


@pytest.fixture
def set_file(tmp_path: Path) -> Path:
    """A set of texts of which a third is held out."""
    rng = np.random.default_rng(5)
    rows = [{"text": "".join(map(chr, rng.integers(97, 122, 60)))} for _ in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "set.yaml").write_text("name: letters\nwindow: 64\nclasses:\n  a: [{kind: jsonl, path: rows.jsonl}]\n")
    return tmp_path / "set.yaml"


def test_the_gate_refuses_a_bad_heal_and_leaves_nothing(gemma: Path, cut: Path, set_file: Path) -> None:
    out = set_file.parent / "healed"
    arguments = [
        str(gemma),
        str(cut),
        "-o",
        str(out),
        "--method",
        "shared-alpha",
        "--on",
        "gain",
        "--alpha",
        "8",
        "--set",
        str(set_file),
    ]
    before = sorted(set_file.parent.iterdir())
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, Refused)
    assert result.exception.exit_code == 5
    assert "rose" in str(result.exception)
    assert sorted(set_file.parent.iterdir()) == before
    result = CliRunner().invoke(command, [*arguments, "--keep-worse", "--json"], catch_exceptions=False)
    record = json.loads(result.output)
    assert record["publishable"] is False
    assert record["measured"]["kl_after"] > record["measured"]["kl_before"]
    assert set(record["measured"]["classes"]) == {"a"}
    manifest = json.loads((out / "trimoe.json").read_text())
    assert manifest["facts"]["heal"]["publishable"] is False


def test_not_a_number_does_not_pass_the_gate(gemma: Path, cut: Path, tmp_path: Path) -> None:
    one = replace(healing(gemma, cut), measured={"kl_before": 1.0, "kl_after": float("nan")})
    with pytest.raises(Refused):
        gate(one, tmp_path / "x", keep_worse=False)
    with pytest.raises(Refused, match="not measured"):
        gate(replace(one, measured=None), tmp_path / "x", keep_worse=False)


def test_a_sweep_chooses_on_the_calibration_part(gemma: Path, cut: Path) -> None:
    plan = Plan("shared-alpha", (0.5, 1.0, 4.0), "gain")
    found = fit_and_measure(open_checkpoint(gemma), open_checkpoint(cut), plan, windows(8), windows(8, seed=1))
    rows = found.details["sweep"]
    assert [row["alpha"] for row in rows] == [0.5, 1.0, 4.0]
    assert found.settings["alpha"] == min(rows, key=lambda r: r["kl"])["alpha"]


def test_a_factor_before_a_norm_cancels(gemma: Path, cut: Path) -> None:
    """Gemma 4 normalises the dense FFN's output, so the factor of v5 changes next to nothing; its gain does."""
    base, pruned = open_checkpoint(gemma), open_checkpoint(cut)
    down, gain = (
        fit_and_measure(base, pruned, Plan("shared-alpha", (1.2,), on), windows(8), windows(8, seed=1)).measured
        for on in ("down", "gain")
    )
    assert down is not None
    assert gain is not None
    assert abs(down["kl_change"]) < 1e-3 * down["kl_before"]
    assert abs(gain["kl_change"]) > 10 * abs(down["kl_change"])


def test_certify_names_the_factor_and_never_says_proven(gemma: Path, cut: Path, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    write_healed(healing(gemma, cut), healed)
    certificate = certify(gemma, healed)
    assert certificate.status == "incomplete"
    check = certificate.check("healed")
    assert DENSE.format(0) in check.detail
    assert "times 1.2" in check.detail
    assert certificate.check("untouched").status == certificate.check("cut").status == "passed"
    record = (healed / "trimoe.json").read_text()
    edit_json(healed / "trimoe.json", lambda m: m["facts"]["heal"]["tensors"].pop(0))
    assert DENSE.format(0) in str(certify(gemma, healed).check("untouched").findings[0]), "it is not in the record"
    (healed / "trimoe.json").write_text(record)
    edit_json(healed / "trimoe.json", lambda m: m["facts"]["heal"]["tensors"][0].update(xxh3_128_after="0" * 32))
    assert certify(gemma, healed).check("healed").status == "failed"
    edit_json(healed / "trimoe.json", lambda m: m["facts"]["heal"].update(tensors=7))
    assert certify(gemma, healed).status == "refuted"
    edit_json(healed / "trimoe.json", lambda m: m["facts"]["heal"].update(tensors=[]))
    assert certify(gemma, healed).status == "refuted"
    (healed / "trimoe.json").unlink()
    assert certify(gemma, healed).status == "refuted"


def test_healing_twice_keeps_both_records(gemma: Path, cut: Path, tmp_path: Path) -> None:
    write_healed(healing(gemma, cut), tmp_path / "one")
    edits = factor_edits(open_checkpoint(tmp_path / "one"), "expert-scale", 1.5)
    record = write_healed(healing(gemma, tmp_path / "one", edits), tmp_path / "two")
    assert len(record["earlier"]) == 1
    certificate = certify(gemma, tmp_path / "two")
    assert certificate.status == "incomplete"
    assert "times 1.2" in certificate.check("healed").detail
    assert "times 1.5" in certificate.check("healed").detail


def test_parts_share_no_document() -> None:
    both = windows(40)
    again = windows_of(
        [
            Document("c", tuple(map(int, both.windows[0].tokens))),
            *(Document("ab"[w.category], tuple(map(int, w.tokens))) for w in both.windows),
        ],
        64,
        1,
    )
    fit, held = split(again)
    one, two = set(digests(fit).values()), set(digests(held).values())
    assert one.isdisjoint(two)
    assert one | two == set(digests(again).values())
    require_disjoint(fit, held)
    with pytest.raises(CalibrationError, match="shares documents"):
        require_disjoint(again, held)
    with pytest.raises(CalibrationError, match="too few"):
        split(windows(1))


def test_a_stranger_is_no_cut(
    gemma: Path, cut: Path, family_checkpoint: Callable[[Made], Path], tmp_path: Path
) -> None:
    other = family_checkpoint(next(m for m in MADE if m.family == "olmoe"))
    result = CliRunner().invoke(
        command, [str(other), str(cut), "-o", str(tmp_path / "x"), "--method", "shared-alpha", "--unmeasured"]
    )
    assert isinstance(result.exception, CheckpointError)


def test_factors() -> None:
    assert parse_factors("1.2") == (1.2,)
    assert parse_factors("1.0:1.3:0.05") == (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
    for text in ("", "x", "0", "-1", "nan", "inf", "1:2", "1:2:0", "2:1:0.1", "1:2:1e-9"):
        with pytest.raises(UsageError):
            parse_factors(text)


def test_large_tensors_are_streamed(tmp_path: Path) -> None:
    size = 64 << 20
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_bytes({"w": ("BF16", (size // 2,))}, {}) + bytes(size))
    info: TensorInfo = read_index(tmp_path)["w"]
    from trimoe.heal.write import _append
    from trimoe.io.copying import Copier

    tracemalloc.start()
    try:
        with Copier(tmp_path / "out") as copier:
            for _ in _append([info], {"w": scaling(info, 0, 1.2)}, copier):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size == file.stat().st_size
    # A block of 4 MiB is 2 Mi values: 16 MiB as float64, a few times; the tensor whole would be 512 MiB.
    assert peak < 200 << 20


KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from trimoe.heal.write import Healing, write_healed
from trimoe.heal.edit import factor_edits
from trimoe.model.checkpoint import open_checkpoint
base, cut, out, number = *map(Path, sys.argv[1:4]), int(sys.argv[4])
model = open_checkpoint(cut)
edits = factor_edits(model, "shared-alpha", 1.2)
if number >= 0:
    edits[number] = replace(edits[number], apply=lambda data, at: os.kill(os.getpid(), signal.SIGKILL))
measured = {"kl_before": 1.0, "kl_after": 0.5}
write_healed(Healing(open_checkpoint(base), model, "shared-alpha", {"alpha": 1.2}, edits, measured), out)
"""


def test_a_kill_leaves_nothing_under_the_name(gemma: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "healed"
    write_healed(healing(gemma, cut), tmp_path / "undisturbed")
    for number in (0, 1, -1):
        answer = subprocess.run(
            [sys.executable, "-c", KILLED, str(gemma), str(cut), str(out), str(number)], check=False
        )
        if number >= 0:
            assert answer.returncode == -signal.SIGKILL
            assert not out.exists()
    for file in (tmp_path / "undisturbed").iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list(tmp_path.glob(".*partial"))


def test_an_error_leaves_nothing(gemma: Path, cut: Path, tmp_path: Path) -> None:
    def broken(data: bytes, at: int) -> bytes:
        raise OSError(28, "No space left on device")

    edits = factor_edits(open_checkpoint(cut), "shared-alpha", 1.2)
    with pytest.raises(OSError, match="No space"):
        write_healed(healing(gemma, cut, [replace(edits[0], apply=broken)]), tmp_path / "healed")
    assert list(tmp_path.iterdir()) == []
