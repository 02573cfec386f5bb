"""Plans: caches as llama.cpp allocates them, layouts as its converter writes them, candidates in a sensible order."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.blueprints import real_width
from trimoe.errors import BadInput, CheckpointError, UsageError
from trimoe.io.sizes import parse_bytes, parse_tokens
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.model.shards import read_index
from trimoe.model.tiny import path as bundled
from trimoe.quantize.plan.candidates import candidates, cost, default_keeps, fitting, size_of
from trimoe.quantize.plan.memory import Serving, compute_bytes, kv_cache_bytes
from trimoe.quantize.plan.shipped import shipped_config
from trimoe.quantize.types.blueprint import blueprint_of_gguf
from trimoe.quantize.types.config_blueprint import blueprint_of_config
from trimoe.quantize.types.tensor_types import tensors_of
from trimoe.quantize.types.tiers import all_tiers, default_ladder


def config_of(folder: Path) -> dict[str, object]:
    import json

    data: dict[str, object] = json.loads((folder / "config.json").read_text())
    return data


def test_the_layout_is_what_the_converter_writes(base: Path) -> None:
    """Names and shapes of every tensor, facts, and geometry: from config.json alone against the converted file."""
    output = any(name.endswith("lm_head.weight") for name in read_index(bundled()))
    plan = blueprint_of_config("x", config_of(bundled()), bundled() / "tokenizer.json", output=output)
    real = blueprint_of_gguf(open_gguf(base))
    assert {t.name: t for t in plan.tensors} == {t.name: t for t in real.tensors}
    assert (plan.facts, plan.attention) == (real.facts, real.attention)
    assert (plan.hidden, plan.vocabulary, plan.top_k) == (real.hidden, real.vocabulary, real.top_k)
    assert abs(plan.metadata.nbytes - real.metadata.nbytes) < 200
    assert real.metadata.exact
    assert not plan.metadata.exact


def test_pruning_a_blueprint_changes_the_expert_axis_only(base: Path) -> None:
    whole = blueprint_of_gguf(open_gguf(base))
    cut = whole.with_experts(whole.facts.experts // 2)
    changed = {t.name.split(".", 2)[-1] for t, o in zip(cut.tensors, whole.tensors, strict=True) if t != o}
    assert changed == {"ffn_gate_up_exps.weight", "ffn_down_exps.weight", "ffn_down_exps.scale", "ffn_gate_inp.weight"}
    assert cut.facts == replace(whole.facts, experts=whole.facts.experts // 2)
    for keep in (0, whole.top_k - 1, whole.facts.experts + 1):
        with pytest.raises(BadInput, match="is impossible"):
            whole.with_experts(keep)


def measured(llamacpp: LlamaCpp, base: Path, folder: Path, context: int, kind: str) -> tuple[float, float]:
    """MiB of (both caches, compute buffer), from the log of llama-perplexity."""
    (folder / "text").write_text("the fox ran home and " * (context * 2))
    command = [
        llamacpp.program("llama-perplexity"),
        "-m",
        base,
        "-f",
        folder / "text",
        "-c",
        str(context),
        "-b",
        str(context),
        "--chunks",
        "1",
        "-t",
        "1",
        "-ctk",
        kind,
        "-ctv",
        kind,
        "-fa",
        "on",
        "-v",
    ]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    caches = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", answer.stderr)
    buffers = re.findall(r"compute buffer size = +([\d.]+) MiB", answer.stderr)
    assert len(caches) in (2, 4), answer.stderr[-2000:]  # a first pass may try out what fits
    return sum(map(float, caches[-2:])), float(buffers[-1])


@pytest.mark.parametrize(("context", "kind"), [(512, "f16"), (2048, "f16"), (2048, "q8_0")])
def test_memory_is_what_llamacpp_allocates(
    llamacpp: LlamaCpp, base: Path, tmp_path: Path, context: int, kind: str
) -> None:
    blueprint, serving = blueprint_of_gguf(open_gguf(base)), Serving(context, 1, kind.upper())
    caches, compute = measured(llamacpp, base, tmp_path, context, kind)
    assert kv_cache_bytes(blueprint, serving) / 2**20 == pytest.approx(caches, abs=0.011)
    assert compute_bytes(blueprint, serving) / 2**20 == pytest.approx(compute, rel=0.15)


def test_sliding_layers_stop_growing() -> None:
    blueprint = real_width(30, 128)
    sizes = [kv_cache_bytes(blueprint, Serving(n)) for n in (2048, 32768, 65536)]
    # 5 full layers of 2 heads x 512; 25 sliding of 8 x 256 with at most 1024 + 512 cells
    assert sizes[2] - sizes[1] == 32768 * 5 * 2 * 2 * 512 * 2
    assert sizes[0] == 2048 * 5 * 2 * 2 * 512 * 2 + 1536 * 25 * 2 * 8 * 256 * 2
    assert kv_cache_bytes(blueprint, Serving(2048, 3)) == 3 * sizes[0]
    assert kv_cache_bytes(blueprint, Serving(2048, 1, "Q8_0")) * 32 == sizes[0] * 17
    assert compute_bytes(blueprint, Serving(2048)) > 512 * 262144 * 4


def test_candidates_are_ranked_and_have_rivals() -> None:
    blueprint = real_width(30, 128)
    found = candidates(blueprint, default_ladder(), [98], Serving(32768, 1, "Q8_0"))
    assert len(found) == 2 * 27
    assert [c.cost for c in found if not c.warned] == sorted(c.cost for c in found if not c.warned)
    assert all(c.warned for c in found[-sum(c.warned for c in found) :])
    pruned = {c.tier: c for c in found if c.keep == 98}
    whole = {c.tier: c for c in found if c.keep == 128}
    for tier, one in pruned.items():
        assert one.rival is None or one.rival.size.file_bytes <= one.size.file_bytes
        assert one.size.file_bytes < whole[tier].size.file_bytes
        assert one.rival is not None or one.size.file_bytes < min(w.size.file_bytes for w in whole.values())
        assert "30 of 128 experts dropped" in one.reason
    fits = fitting(found, 16 * 10**9)
    assert fits
    assert all(c.memory.total <= 16 * 10**9 for c in fits)
    assert [c for c in found if c in fits] == fits
    assert not fitting(found, 10**9)


def test_costs_fall_with_bits_and_rise_with_drops() -> None:
    assert cost(4.8, 0) < cost(3.5, 0) < cost(2.6, 0)
    assert cost(4.8, 0) < cost(4.8, 0.2) < cost(4.8, 0.5)


def test_default_keeps_never_starve_the_router() -> None:
    assert default_keeps(128, 8) == [128, 112, 96, 80, 64]
    assert default_keeps(8, 2) == [8, 7, 6, 5, 4]
    assert default_keeps(8, 4) == [8]


def test_sizes_and_contexts() -> None:
    assert [parse_bytes(t) for t in ("16GB", "12GiB", "1.5g", "900MB", "7", "300 kB", "2TiB")] == [
        16 * 10**9,
        12 << 30,
        15 * 10**8,
        9 * 10**8,
        7,
        300_000,
        2 << 40,
    ]
    assert [parse_tokens(t) for t in ("32k", "8192", "1K")] == [32768, 8192, 1024]
    for text in ("", "GB", "-1GB", "16 apples", "0", "0.5", "1ib", "9" * 400):
        with pytest.raises(UsageError, match="is not a size") as caught:
            parse_bytes(text, "--ram 8GB")
        assert caught.value.remedy == "for example --ram 8GB"
    for text in ("", "k", "-1", "1.5k", "0", "32m", "9" * 5000):
        with pytest.raises(UsageError):
            parse_tokens(text)
    with pytest.raises(UsageError, match="not a cache type"):
        Serving(1, 1, "Q6_K")


def test_configurations_that_mean_other_tensors_are_refused() -> None:
    config = shipped_config("gemma-4-26B-A4B")
    assert config is not None
    text = config["text_config"]
    with pytest.raises(CheckpointError, match="num_kv_shared_layers = 2"):
        blueprint_of_config("x", {**config, "text_config": {**text, "num_kv_shared_layers": 2}})
    with pytest.raises(CheckpointError, match="no GGUF layout for model_type qwen3_moe"):
        blueprint_of_config("x", {"model_type": "qwen3_moe"})
    with pytest.raises(CheckpointError, match=r"(?s)incomplete.*moe_intermediate_size"):
        blueprint_of_config("x", {"text_config": {k: v for k, v in text.items() if k != "moe_intermediate_size"}})
    with pytest.raises(CheckpointError, match="incomplete"):
        blueprint_of_config("x", {"text_config": {**text, "num_hidden_layers": 29}})
    assert shipped_config("unknown-model") is None


def test_the_shipped_configuration_is_the_reference(shared: Path) -> None:
    import json

    want = json.loads((shared / "reference" / "configs" / "gemma-4-26B-A4B.json").read_text())
    found = shipped_config("google/Gemma-4-26B-A4B-it")
    assert found is not None
    assert {key: value for key, value in found.items() if not key.startswith("_")} == want


def test_every_tier_of_the_bundled_model_has_a_size(base: Path) -> None:
    blueprint = blueprint_of_gguf(open_gguf(base))
    assert len(tensors_of(open_gguf(base).index)) == len(blueprint.tensors)
    sizes = {t.name: size_of(blueprint, t).file_bytes for t in all_tiers().values() if not t.broken}
    assert sizes["BF16"] > sizes["Q8_0"] > sizes["Q6_K_L"] > sizes["Q6_K"] > sizes["Q4_K_M"] > sizes["Q2_K"]


def test_the_list_says_what_the_cost_is_and_which_rows_are_unpruned(capsys: pytest.CaptureFixture[str]) -> None:
    from trimoe.cli.main import main

    for memory in ("12GB", "14GB", "16GB", "24GB"):
        assert main(["plan", "gemma-4-26B-A4B", "--memory", memory]) == 0
        text = capsys.readouterr().out
        assert "in the order of nats of KL divergence" in text
        keeps = [int(line.split()[0]) for line in text.splitlines() if line[:7].strip().isdecimal()]
        whole = next((i for i, keep in enumerate(keeps) if keep < 128), len(keeps))
        assert ("all 128 experts: a pruned model of this size" in text) == (whole > 0)
        assert whole < 2 or f"the best {whole} keep all 128" in text or "every one keeps" in text
