"""A family that trimoe does not know goes through every command once one file describes it, without other changes.

The model is FlexOlmo's architecture in transformers with random weights; the names in GGUF and of servers are made up.
"""

import json
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from helpers.families import EXPERTS, Made, write
from helpers.gguf_models import write_model
from trimoe.cli.main import main
from trimoe.model.family.file import extra_families, family_of, load_family
from trimoe.publish.modelfile import modelfile
from trimoe.quantize.ladder.checks import blueprint_before
from trimoe.quantize.ladder.spec import load_ladder_spec

LAYERS, HIDDEN, WIDTH, KEEP = 2, 32, 16, 6
MADE = Made(
    name="new",
    family="new_family",
    model="FlexOlmoForCausalLM",
    settings={
        "vocab_size": 259,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    },
    moe_layers=tuple(range(LAYERS)),
)
FILE = """
name = "new_family"
follows = ["somebody/new-model"]
model_types = ["flex_olmo"]
architectures = ["new-arch"]

[hf]
layer_prefixes = ["model.layers.{L}."]
scopes = ["mlp.experts.", "mlp.gate."]
[hf.config]
num_layers = "num_hidden_layers"
num_experts = "num_experts"
num_experts_also = ["num_local_experts"]
top_k = "num_experts_per_tok"
hidden = "hidden_size"
expert_width = "intermediate_size"
[hf.roles]
gate = {tensor = "mlp.experts.{E}.gate_proj.weight", shape = ["I", "H"]}
up = {tensor = "mlp.experts.{E}.up_proj.weight", shape = ["I", "H"]}
down = {tensor = "mlp.experts.{E}.down_proj.weight", shape = ["H", "I"]}
router = {tensor = "mlp.gate.weight", shape = ["E", "H"]}

[gguf]
required = ["ffn_gate_inp.weight", "ffn_down_exps.weight", "ffn_new_exps.scale"]
optional = ["ffn_gate_exps.weight", "ffn_up_exps.weight"]

[nvfp4]
keep = ["*.o_proj.*"]

[[serving]]
template_has = ["<muse>"]
thinking = "muse"
vllm_parser = "new_parser"
opens = "<muse>"
closes = "</muse>"

[[ollama]]
template = "new_family.gotmpl"
stop = ["<end>"]
parameters = {temperature = 0.5, num_ctx = 100}

[converted]
metadata_bytes = 1000
outside = [
  { name = "token_embd.weight", hf = "embed_tokens.weight", shape = ["V", "H"] },
  { name = "output_norm.weight", hf = "norm.weight", shape = ["H"], f32 = true },
]
layer = [
  { name = "attn_q.weight", hf = "self_attn.q_proj.weight", shape = ["Q", "H"] },
  { name = "attn_k.weight", hf = "self_attn.k_proj.weight", shape = ["K", "H"] },
  { name = "attn_v.weight", hf = "self_attn.v_proj.weight", shape = ["K", "H"] },
  { name = "attn_output.weight", hf = "self_attn.o_proj.weight", shape = ["H", "Q"] },
  { name = "attn_q_norm.weight", hf = "self_attn.q_norm.weight", shape = ["Q"], f32 = true },
  { name = "attn_k_norm.weight", hf = "self_attn.k_norm.weight", shape = ["K"], f32 = true },
  { name = "post_attention_norm.weight", hf = "post_attention_layernorm.weight", shape = ["H"], f32 = true },
  { name = "post_ffw_norm.weight", hf = "post_feedforward_layernorm.weight", shape = ["H"], f32 = true },
  { name = "ffn_gate_inp.weight", hf = "mlp.gate.weight", shape = ["E", "H"], f32 = true },
  { name = "ffn_gate_exps.weight", shape = ["E", "I", "H"] },
  { name = "ffn_up_exps.weight", shape = ["E", "I", "H"] },
  { name = "ffn_down_exps.weight", shape = ["E", "H", "I"] },
]
"""
SET = """
name: set
window: 128
classes:
  a: [{kind: tiny, domain: code, count: 4}]
  b: [{kind: tiny, domain: math, count: 4}]
"""
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, the family file with its template, and a calibration set."""
    import torch

    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("new")
    write(MADE, work / "model")
    (work / "model" / "chat_template.jinja").write_text("{% for m in messages %}<muse>{{ m.content }}{% endfor %}")
    (work / "new_family.toml").write_text(FILE)
    (work / "new_family.gotmpl").write_text("{{ .Prompt }}<end>\n")
    (work / "set.yaml").write_text(SET)
    return work


@pytest.fixture
def known(folder: Path) -> Iterator[None]:
    with extra_families(load_family(folder / "new_family.toml")):
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def trimoe(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return trimoe


def test_without_the_file_the_model_is_read_as_one_with_its_names(folder: Path, run: Run) -> None:
    assert family_of("flex_olmo") is None
    seen = run("inspect", folder / "model")
    assert seen["family"] != "new_family"
    assert any("model_type flex_olmo is unknown" in note for note in seen["warnings"])
    config = json.loads((folder / "model" / "config.json").read_text())
    renamed = folder / "renamed"
    renamed.mkdir()
    (renamed / "model.safetensors").symlink_to(folder / "model" / "model.safetensors")
    (renamed / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": None}))
    answer = json.dumps(run("inspect", renamed, code=3))
    assert "no experts that trimoe knows" in answer
    assert "add-a-family.md" in answer


@pytest.mark.usefixtures("known")
def test_from_inspect_to_certify(folder: Path, run: Run) -> None:
    model, cut = folder / "model", folder / "cut"
    seen = run("inspect", model)
    assert (seen["family"], seen["experts"], seen["layers"], seen["top_k"]) == ("new_family", EXPERTS, LAYERS, 2)
    assert seen["roles"] == ["down", "gate", "router", "up"]
    run("calibrate", model, "--set", folder / "set.yaml", "-o", folder / "stats.safetensors")
    run("map", folder / "stats.safetensors", "--recipe", "v4", "--keep", KEEP, "-o", folder / "map.json")
    assert all(len(ids) == EXPERTS - KEEP for ids in json.loads((folder / "map.json").read_text())["drop"].values())
    run("prune", model, folder / "map.json", "-o", cut)
    assert run("inspect", cut)["experts"] == KEEP
    proof = run("certify", model, cut, "--map", folder / "map.json")
    assert proof["status"] == "proven"
    assert all(check["status"] == "passed" for check in proof["checks"]), proof["checks"]


@pytest.mark.usefixtures("known")
def test_plan_and_quantize(folder: Path, run: Run) -> None:
    model = folder / "model"
    planned = run("plan", model, "--keep", KEEP, "--tier", "Q8_0")
    assert planned["experts"] == EXPERTS
    blueprint, _ = blueprint_before(model, load_ladder_spec())  # what `quantize` checks before it converts
    assert blueprint is not None
    assert blueprint.facts.architecture == "new-arch"
    # Each expert's matrices of a checkpoint are one stack in GGUF; everything else corresponds one to one.
    tensors = run("inspect", model)["tensors"] - LAYERS * 3 * (EXPERTS - 1)
    assert len(blueprint.tensors) == tensors
    assert sum(prod(tensor.shape) for tensor in blueprint.tensors) == _weights(model)
    refused = run("quantize", model, "--tiers", "Q8_0", "-o", folder / "files", "--dry-run", code=5)
    assert "rows of 16" in json.dumps(refused)  # an expert's width: the names in GGUF come from the family file
    planned = run("quantize", model, "--tiers", "NVFP4A16", "-o", folder / "files", "--dry-run")
    assert not (folder / "files").exists()
    exact = run("plan", model, "--tier", "NVFP4A16")["file_bytes"]
    assert planned["outputs"][0]["bytes"] == exact
    made = run("quantize", model, "--tiers", "NVFP4A16", "-o", folder / "nvfp4")
    assert made["file_bytes"] == exact
    assert (folder / "nvfp4" / "model.safetensors").stat().st_size == exact
    ignored = json.loads((folder / "nvfp4" / "config.json").read_text())["quantization_config"]["ignore"]
    assert any("o_proj" in name for name in ignored)


def _weights(model: Path) -> int:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


@pytest.mark.usefixtures("known")
def test_serve_and_modelfile(folder: Path, run: Run, tmp_path: Path) -> None:
    shown = run("serve", folder / "model", "--engine", "vllm", "--thinking", "--budget", 50, "--print")
    command = shown["command"]
    assert command[command.index("--reasoning-parser") + 1] == "new_parser"
    assert shown["body"]["chat_template_kwargs"] == {"muse": True}
    assert "<muse>" in command[command.index("--reasoning-config") + 1]
    assert "--reasoning" in run("serve", folder / "model", "--engine", "transformers", "--print")["command"]

    file = write_model(
        tmp_path / "new-Q4_K_M.gguf",
        "new-arch",
        extra=("ffn_new_exps.scale",),
        metadata={"new-arch.context_length": 64, "tokenizer.chat_template": "<muse>"},
    )
    assert run("inspect", file)["family"] == "new-arch"
    text = modelfile(file, "Q4_K_M").text
    assert 'TEMPLATE """{{ .Prompt }}<end>"""' in text
    assert "PARAMETER num_ctx 64\n" in text
    assert 'PARAMETER stop "<end>"' in text


def test_a_gguf_without_the_file_has_standard_names(tmp_path: Path, run: Run) -> None:
    """A name beyond llama.cpp's is refused unless a family file declares it."""
    file = write_model(tmp_path / "new-Q4_K_M.gguf", "new-arch", extra=("ffn_new_exps.scale",))
    assert "ffn_new_exps.scale cannot be cut" in json.dumps(run("inspect", file, code=3))
