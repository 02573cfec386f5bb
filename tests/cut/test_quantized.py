"""Quantized checkpoints: every scale moves with its expert, settings keep their meaning, and the rest is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import quantized as q
from helpers.certify_models import edit_json, flip_byte
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import read_bytes
from trimoe.model.shards import read_index

MAP = DropMap({0: (1, 4), 1: (0, 7)}, q.EXPERTS)
KEPT = {layer: MAP.keep(layer) for layer in MAP.drop}
Case = tuple[q.Entries, dict[str, Any]]

CASES: dict[str, Case] = {
    **{name: (q.qwen(module), q.qwen_config(method)) for name, (module, method) in q.MODULES.items()},
    "gemma, compressed-tensors": (q.gemma(q.ct_nvfp4, "experts.{E}.{M}."), q.gemma_config(q.MODULES["ct-nvfp4"][1])),
    "gemma, number last": (q.gemma(q.ct_fp8, "experts.{M}.{E}."), q.gemma_config(q.MODULES["ct-fp8"][1])),
    "gemma, Model Optimizer": (
        q.gemma(q.modelopt_nvfp4, "moe.experts.{E}.{M}."),
        q.gemma_config(q.MODULES["modelopt-nvfp4"][1]),
    ),
    "gemma, FP8 stacks": q.gemma_fp8_stacked(),
    "llama4, one global scale": q.llama4_nvfp4(),
    "llama4, a global scale per expert": q.llama4_nvfp4((q.EXPERTS,)),
    "llama4, global scales per half": q.llama4_nvfp4((q.EXPERTS, 2, 1)),
    "method not named": (q.qwen(q.fp8_block), q.qwen_config(None)),
    "a layer and two experts unquantized": (
        q.qwen(
            q.ct_nvfp4,
            {
                **{f"model.layers.0.mlp.experts.{e}.{m}_proj": q.plain for e in (2, 4) for m in ("gate", "up", "down")},
                **{
                    f"model.layers.1.mlp.experts.{e}.{m}_proj": q.plain
                    for e in range(8)
                    for m in ("gate", "up", "down")
                },
            },
        ),
        q.qwen_config(q.MODULES["ct-nvfp4"][1] | {"ignore": ["lm_head"]}),
    ),
}


def expected(source: Path) -> dict[str, bytes]:
    """The cut by names and shapes alone: a number after `experts` is an expert, a first dimension of 8 the experts'."""
    result = {}
    for name, info in read_index(source).items():
        data, layer = read_bytes(info), re.search(r"layers\.(\d)\.", name)
        numbered = re.search(r"experts\.(?:[a-z_]+\.)?(\d)\.", name)
        if layer and numbered:
            keep = KEPT[int(layer[1])]
            if int(numbered[1]) in keep:
                at = numbered.start(1)
                result[name[:at] + str(keep.index(int(numbered[1]))) + name[at + 1 :]] = data
        elif layer and info.shape[:1] == (q.EXPERTS,):
            size = info.nbytes // q.EXPERTS
            result[name] = b"".join(data[e * size : (e + 1) * size] for e in KEPT[int(layer[1])])
        else:
            result[name] = data
    return result


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_moves_with_its_expert(name: str, tmp_path: Path) -> None:
    source = q.write(tmp_path / "in", *CASES[name])
    report = prune(source, MAP, tmp_path / "out", max_shard=50_000)
    assert report.experts_after == 6
    wanted, index = expected(source), read_index(tmp_path / "out")
    assert index.keys() == wanted.keys()
    assert all(read_bytes(index[tensor]) == data for tensor, data in wanted.items())
    assert open_checkpoint(tmp_path / "out").num_experts == 6
    certificate = certify(source, tmp_path / "out", map=MAP, logits=False)
    assert [c.name for c in certificate.checks if c.status == "failed"] == []
    result = infer_map(source, tmp_path / "out")
    assert result.exact, result.problems or [str(c) for c in result.changes]
    assert result.map is not None
    assert result.map.drop == MAP.drop


@pytest.mark.parametrize("name", [n for n in CASES if "llama4" in n or n == "gemma, FP8 stacks"])
def test_a_scale_for_all_stays_and_the_others_are_cut(name: str, tmp_path: Path) -> None:
    source = q.write(tmp_path / "in", *CASES[name])
    cut = open_checkpoint(source).expert_tensors
    for tensor, info in read_index(source).items():
        if "experts." in tensor:
            assert (tensor in cut) == (info.shape != ())


DAMAGE = {
    "a scale of another expert": ("weight_scale", "cut"),
    "a global scale": ("weight_global_scale", "cut"),
    "an input scale": ("input_global_scale", "cut"),
    "packed values": ("weight_packed", "cut"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_companions_is_located(kind: str, tmp_path: Path) -> None:
    suffix, check = DAMAGE[kind]
    source = q.write(tmp_path / "in", *CASES["ct-nvfp4"])
    prune(source, MAP, tmp_path / "out")
    name = f"model.layers.1.mlp.experts.3.up_proj.{suffix}"
    flip_byte(read_index(tmp_path / "out")[name], 0)
    [finding] = certify(source, tmp_path / "out", map=MAP, logits=False).check(check).findings
    assert (finding.tensor, finding.layer, finding.position, finding.expert) == (name, 1, 3, 4)


def test_a_scale_for_all_that_was_changed_is_found(tmp_path: Path) -> None:
    source = q.write(tmp_path / "in", *CASES["llama4, one global scale"])
    prune(source, MAP, tmp_path / "out")
    name = "language_model.model.layers.1.feed_forward.experts.down_proj_weight_scale_2"
    flip_byte(read_index(tmp_path / "out")[name], 2)
    [finding] = certify(source, tmp_path / "out", map=MAP, logits=False).check("untouched").findings
    assert (finding.tensor, finding.layer) == (name, 1)


GATE = "model.layers.1.mlp.experts.5.gate_proj."
ROUTER = "model.layers.0.mlp.gate."


def changed(entries: q.Entries, remove: tuple[str, ...] = (), **add: Any) -> q.Entries:
    return {n: e for n, e in entries.items() if n not in remove} | add


REFUSED: dict[str, tuple[Case, str]] = {
    "a scale is missing": (
        (changed(q.qwen(q.ct_nvfp4), (GATE + "weight_scale",)), CASES["ct-nvfp4"][1]),
        f"{GATE}weight_scale is missing",
    ),
    "the values are missing": (
        (changed(q.qwen(q.gptq), (GATE + "qweight",)), CASES["gptq"][1]),
        f"{GATE}weight is missing",
    ),
    "an FP8 weight without scale": (
        (changed(q.qwen(q.fp8_block), (GATE + "weight_scale_inv",)), CASES["fp8-block"][1]),
        f"{GATE}weight_scale_inv is missing",
    ),
    "a weight twice": (
        (changed(q.qwen(q.ct_nvfp4), **{GATE + "weight": ("BF16", (32, 64))}), CASES["ct-nvfp4"][1]),
        "are stored twice",
    ),
    "a companion that no rule names": (
        (changed(q.qwen(q.ct_nvfp4), **{GATE + "weight_secret": ("U8", (3,))}), CASES["ct-nvfp4"][1]),
        f"{GATE}weight_secret belongs to the experts",
    ),
    "a method that no file describes": (
        (
            changed(q.qwen(q.plain), (GATE + "weight",), **{GATE + "W_q": ("U8", (32, 32))}),
            q.qwen_config({"quant_method": "hqq"}),
        ),
        "is missing",
    ),
    "a method that no file describes, beside the weight": (
        (changed(q.qwen(q.plain), **{GATE + "W_q": ("U8", (32, 32))}), q.qwen_config({"quant_method": "hqq"})),
        "quantization hqq",
    ),
    "another method in the config": (
        (q.qwen(q.gptq), q.qwen_config({"quant_method": "fp8"})),
        "no experts that trimoe knows",
    ),
    "a router packed by GPTQ": (
        (changed(q.qwen(q.gptq), (ROUTER + "weight",), **q.gptq(ROUTER, 8, 64)), CASES["gptq"][1]),
        f"{ROUTER}qweight cannot be cut by expert",
    ),
    "a router packed by AWQ": (
        (changed(q.qwen(q.awq), (ROUTER + "weight",), **q.awq(ROUTER, 8, 64)), CASES["awq"][1]),
        f"{ROUTER}qweight cannot be cut by expert",
    ),
    "a router with blocks over experts": (
        (
            changed(
                q.qwen(q.fp8_block),
                (ROUTER + "weight",),
                **{ROUTER + "weight": ("F8_E4M3", (8, 64)), ROUTER + "weight_scale_inv": ("F32", (1, 2))},
            ),
            CASES["fp8-block"][1],
        ),
        f"{ROUTER}weight_scale_inv cannot be cut by expert",
    ),
    "a stack whose scales are not by expert": (
        (
            lambda t, c: (
                {
                    **t,
                    "language_model.model.layers.1.feed_forward.experts.down_proj_weight_scale": (
                        "F8_E4M3",
                        (2, 4, 64),
                    ),
                },
                c,
            )
        )(*q.llama4_nvfp4()),
        "down_proj_weight_scale cannot be cut by expert",
    ),
    "a stack packed along the experts": (
        (lambda t, c: ({**t, "language_model.model.layers.1.feed_forward.experts.down_proj": ("U8", (4, 32, 64))}, c))(
            *q.llama4_nvfp4()
        ),
        "experts.down_proj cannot be cut by expert",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut_exactly_is_refused(kind: str, tmp_path: Path) -> None:
    (entries, config), message = REFUSED[kind]
    source = q.write(tmp_path / "in", entries, config)
    with pytest.raises(CheckpointError) as caught:
        prune(source, MAP, tmp_path / "out")
    assert message in str(caught.value)
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_router_in_eight_bits_is_cut(tmp_path: Path) -> None:
    """Its outputs are the experts: rows and their scales go together."""
    entries = changed(
        q.qwen(q.ct_fp8), **{ROUTER + "weight": ("F8_E4M3", (8, 64)), ROUTER + "weight_scale": ("BF16", (8, 1))}
    )
    source = q.write(tmp_path / "in", entries, CASES["ct-fp8"][1])
    prune(source, MAP, tmp_path / "out")
    wanted, index = expected(source), read_index(tmp_path / "out")
    assert {n: read_bytes(i) for n, i in index.items()} == wanted
    assert index[ROUTER + "weight_scale"].shape == (6, 1)


# ---------------------------------------------------------------- settings that name experts


def cut_settings(tmp_path: Path, value: Any, file: str = "config.json") -> Any:
    """`value` as quantization settings of a cut model; certify must agree with what became of them."""
    method = q.MODULES["ct-nvfp4"][1]
    source = q.write(
        tmp_path / "in", q.qwen(q.ct_nvfp4), q.qwen_config(method | (value if file == "config.json" else {}))
    )
    if file != "config.json":
        (source / file).write_text(json.dumps(value))
    prune(source, MAP, tmp_path / "out")
    certificate = certify(source, tmp_path / "out", map=MAP, logits=False)
    assert [str(f) for c in certificate.checks for f in c.findings] == []
    content = json.loads((tmp_path / "out" / file).read_text())
    return content["quantization_config"] if file == "config.json" else content


EXPERT = "model.layers.{}.mlp.experts.{}"


def test_ignored_experts_are_renumbered(tmp_path: Path) -> None:
    """As llm-compressor writes it: patterns are expanded to the names of modules."""
    ignore = [
        "lm_head",
        "model.layers.0.mlp.gate",
        EXPERT.format(0, 0) + ".up_proj",
        EXPERT.format(0, 1) + ".up_proj",
        EXPERT.format(0, 7) + ".up_proj",
        EXPERT.format(1, 0),
        EXPERT.format(1, 6) + ".down_proj",
        "re:.*self_attn.*",
    ]
    settings_after = cut_settings(tmp_path, {"ignore": ignore})
    assert settings_after["ignore"] == [
        "lm_head",
        "model.layers.0.mlp.gate",
        EXPERT.format(0, 0) + ".up_proj",
        EXPERT.format(0, 5) + ".up_proj",
        EXPERT.format(1, 5) + ".down_proj",
        "re:.*self_attn.*",
    ]


def test_settings_of_single_modules_are_renumbered(tmp_path: Path) -> None:
    """As Model Optimizer writes mixed precision, in a file beside config.json."""
    layers = {EXPERT.format(0, e) + ".up_proj": {"quant_algo": f"A{e}"} for e in range(q.EXPERTS)}
    value = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers},
    }
    after = cut_settings(tmp_path, value, "hf_quant_config.json")["quantization"]["quantized_layers"]
    assert after == {EXPERT.format(0, p) + ".up_proj": {"quant_algo": f"A{e}"} for p, e in enumerate(KEPT[0])}


@pytest.mark.parametrize(
    "entry",
    [
        "re:.*mlp.gate$",
        "re:model\\.layers\\.0\\..*",
        "re:.*layers\\.1\\.mlp\\.experts\\..*",
        "*",
        "*self_attn*",
        "Linear",
        "model.layers.0.mlp.experts*",
        "lm_head",
        "experts",
        "re:.*\\.experts\\.\\d+\\.gate_proj",
        "model.layers.0*",
    ],
)
def test_patterns_that_treat_experts_alike_stay(entry: str, tmp_path: Path) -> None:
    config = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}, "ignore": [entry]}
    assert cut_settings(tmp_path, config) == q.MODULES["ct-nvfp4"][1] | config


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("re:.*layers\\.0\\.mlp\\.experts\\.3\\..*", "re:.*layers\\.0\\.mlp\\.experts\\.2\\..*"),
        ("re:.*layers\\.0\\.mlp\\.experts\\.4\\..*", None),
        ("model.layers.1.mlp.experts.2.*", "model.layers.1.mlp.experts.1.*"),
        ("language_model.model.layers.1.mlp.experts.7.up_proj", None),
        ("layers.1.mlp.experts.5", "layers.1.mlp.experts.4"),
    ],
)
def test_patterns_of_one_expert_follow_it(entry: str, wanted: str | None, tmp_path: Path) -> None:
    assert cut_settings(tmp_path, {"ignore": [entry]})["ignore"] == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("re:.*experts\\.[0-3]\\..*", "by its number"),
        ("re:.*experts\\.(1|5)\\..*", "by its number"),
        ("*.experts.?.up_proj", None),  # all experts have one digit, before and after
        ("*.experts.2.up_proj", "in every layer"),
        ("experts.2", "in every layer"),
        ("re:.*layers\\.(0|1)\\.mlp\\.experts\\.3\\..*", "in every layer"),
        ("re:.*layers\\.0\\.mlp\\.experts\\.3\\..*|.*layers\\.0\\.mlp\\.experts\\.5\\..*", "several experts"),
        ("re:(", "not a regular expression"),
        ("model.layers.1.mlp.experts.02", "no loader matches the number '02'"),
        ("model.layers.01.mlp.experts.2.up_proj", "no loader matches the number '01'"),
        ("model.layers.1.mlp.experts.\N{ARABIC-INDIC DIGIT TWO}", "no loader matches"),
        ("model.layers.\N{FULLWIDTH DIGIT ONE}.mlp.experts.2", "no loader matches"),
        ("re:.*layers\\.0\\.mlp\\.experts\\.003\\..*", "no loader matches the number '003'"),
    ],
)
def test_patterns_that_cannot_be_kept_true_are_refused(entry: str, reason: str | None, tmp_path: Path) -> None:
    if reason is None:
        assert cut_settings(tmp_path, {"ignore": [entry]})["ignore"] == [entry]
        return
    source = q.write(tmp_path / "in", q.qwen(q.ct_nvfp4), q.qwen_config(q.MODULES["ct-nvfp4"][1] | {"ignore": [entry]}))
    with pytest.raises(CheckpointError, match="cannot be renumbered") as caught:
        prune(source, MAP, tmp_path / "out")
    assert reason in caught.value.actual


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_list_of_modules_means_the_same_after_a_cut(data: st.DataObject, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
    module = st.tuples(st.integers(0, 1), st.integers(0, 9), st.sampled_from(["", ".up_proj", ".down_proj.x"]))
    named = data.draw(st.lists(module, max_size=12, unique=True))
    ignore = [EXPERT.format(layer, e) + rest for layer, e, rest in named]
    after = cut_settings(tmp_path / "work", {"ignore": ignore})["ignore"]
    back = []
    for entry in after:
        _, layer, position, *_ = re.split(r"\D+", entry)
        original = KEPT[int(layer)][int(position)] if int(position) < 6 else int(position)
        back.append(EXPERT.format(layer, original) + entry.removeprefix(EXPERT.format(layer, position)))
    assert [b for b in back if not re.search(r"\.[89](\.|$)", b)] == [
        EXPERT.format(layer, e) + rest for layer, e, rest in named if e in KEPT[layer]
    ]


def test_the_text_of_the_config_is_kept_around_the_settings(tmp_path: Path) -> None:
    value = q.MODULES["ct-nvfp4"][1] | {"ignore": [EXPERT.format(0, 7)]}
    source = q.write(tmp_path / "in", q.qwen(q.ct_nvfp4), q.qwen_config(value))
    text = (source / "config.json").read_text().replace('"model_type"', '"eps": 1e-06,\n  "model_type"')
    (source / "config.json").write_text(text)
    prune(source, MAP, tmp_path / "out")
    wanted = text.replace("experts.7", "experts.5").replace('"num_experts": 8', '"num_experts": 6')
    assert (tmp_path / "out" / "config.json").read_text() == wanted


WRONG = {
    "not renumbered": lambda s: s.update(ignore=[EXPERT.format(0, 7)]),
    "one more": lambda s: s["ignore"].append(EXPERT.format(0, 0)),
    "one less": lambda s: s["ignore"].clear(),
    "another pattern": lambda s: s.update(ignore=[EXPERT.format(0, 5), "re:.*down_proj"]),
    "another format": lambda s: s.update(format="dense"),
    "a leading zero": lambda s: s.update(ignore=[EXPERT.format(0, "05")]),
    "another digit": lambda s: s.update(ignore=[EXPERT.format(0, "\N{ARABIC-INDIC DIGIT FIVE}")]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_settings_that_mean_something_else_are_refuted(kind: str, tmp_path: Path) -> None:
    value = q.MODULES["ct-nvfp4"][1] | {"ignore": [EXPERT.format(0, 7)]}
    source = q.write(tmp_path / "in", q.qwen(q.ct_nvfp4), q.qwen_config(value))
    prune(source, MAP, tmp_path / "out")
    edit_json(tmp_path / "out" / "config.json", lambda c: WRONG[kind](c["quantization_config"]))
    check = certify(source, tmp_path / "out", map=MAP, logits=False).check("config")
    assert check.status == "failed"
    assert "quantization_config" in check.findings[0].subject


def test_a_pattern_that_selects_others_after_the_cut_is_refuted(tmp_path: Path) -> None:
    """As a naive prune leaves it."""
    value = q.MODULES["ct-nvfp4"][1] | {"ignore": ["re:.*experts\\.[0-3]\\..*"]}
    source = q.write(tmp_path / "in", q.qwen(q.ct_nvfp4), q.qwen_config(q.MODULES["ct-nvfp4"][1]))
    prune(source, MAP, tmp_path / "out")
    for folder in (source, tmp_path / "out"):
        edit_json(folder / "config.json", lambda c: c.update(quantization_config=value))
    [finding] = certify(source, tmp_path / "out", map=MAP, logits=False).check("config").findings
    assert "does not select the same experts" in finding.subject
