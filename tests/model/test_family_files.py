"""Every family is recognised by its tensor names, and `trimoe inspect` says what there is to cut."""

import json
import re
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from helpers.families import EXPERTS, MADE, Made
from helpers.hand_made import per_expert_arrays, per_expert_config, write_checkpoint
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.family.file import SHIPPED, extra_families, families, family_of, load_family, parse_family
from trimoe.model.family.hf import form
from trimoe.model.family.recognise import recognise
from trimoe.model.shards import read_index

Checkpoints = Callable[[Made], Path]


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.name)
def test_inspect(made: Made, family_checkpoint: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    path = family_checkpoint(made)
    assert main(["inspect", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["family"], data["experts"], data["top_k"]) == (made.family, EXPERTS, made.top_k)
    assert data["moe_layers"] == len(made.moe_layers)
    assert data["shards"] == made.shards
    assert data["cannot_cut"] is None
    # Whatever a feed-forward block has along the experts is among the roles: by names and shapes, without family data.
    cut = open_checkpoint(path).expert_tensors
    for name, info in read_index(path).items():
        inside = any(part in name for part in ("mlp.", "feed_forward.", "block_sparse_moe.", "router.", ".experts."))
        if inside and "vis" not in name and (EXPERTS in info.shape or ".experts." in name):
            assert name in cut
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"family             {made.family} (" in text
    assert ("drafting blocks" in text) == bool(data["draft_blocks"])


def test_inspect_says_why_a_model_cannot_be_cut(
    family_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = family_checkpoint(next(m for m in MADE if m.name == "deepseek_v3"))
    path = Path(shutil.copytree(source, tmp_path / "grouped"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"n_group": 3}))
    assert main(["inspect", str(path)]) == 0
    assert "no: 8 experts are not 3 equal groups" in capsys.readouterr().out
    (path / "config.json").write_text(json.dumps(config | {"n_group": 4}))
    assert main(["inspect", str(path)]) == 0
    assert "groups             4, of which 1 serve a token" in capsys.readouterr().out


def test_every_family_has_a_checkpoint_here() -> None:
    with_tensors = {family.name: family.hf for family in families() if family.hf}
    assert with_tensors.keys() == {made.family for made in MADE}
    layouts = {layout for hf in with_tensors.values() for layout in hf.layouts}
    by_quantizers = {"unfused", "number_last", "moe_module"}  # tests/model/test_quant.py
    assert layouts == {"mxfp4", "transposed", "stacked", "per_expert", "renamed"} | by_quantizers


def test_each_kind_belongs_to_one_family() -> None:
    """`model_type` tells apart families that share tensor names, so no two files may have one type or name."""
    for values in ("model_types", "architectures"):
        kinds = [kind for family in families() for kind in getattr(family, values)]
        assert len(kinds) == len(set(kinds))
        for family in families():
            assert all(family_of(kind) is family for kind in getattr(family, values))
    assert {f"{family.name}.toml" for family in families()} == {
        file.name for file in SHIPPED.iterdir() if file.name.endswith(".toml")
    }
    assert family_of("a-model-of-tomorrow") is None


def test_no_two_families_answer_to_one_checkpoint(family_checkpoint: Checkpoints) -> None:
    for made in MADE:
        path = family_checkpoint(made)
        names, config = set(read_index(path)), json.loads((path / "config.json").read_text())
        forms = {form(name) for name in names}
        assert made.family in [family.name for family in families() if family.hf and family.hf.recognise(forms)]
        others = tuple(family for family in families() if family.name != made.family)
        with pytest.raises(CheckpointError, match=r"no experts that trimoe knows|dense model"):
            recognise(names, config, others)


def test_an_extra_family_precedes_the_shipped_one_of_its_kind(family_checkpoint: Checkpoints) -> None:
    path = family_checkpoint(next(m for m in MADE if m.name == "mixtral"))
    text = (SHIPPED / "mixtral.toml").read_text()
    own = parse_family(text.replace('name = "mixtral"', 'name = "own"'), "own.toml")
    other = parse_family(text.replace("w1.weight", "other.weight"), "other.toml")
    with extra_families(own):
        assert open_checkpoint(path).family is family_of("mixtral") is own
    with extra_families(other):  # its tensors are not in the checkpoint
        assert open_checkpoint(path).family.name == "mixtral"
    assert family_of("mixtral") is not own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('architectures = ["x"]', ""), "needs model_types or architectures"),
        (('architectures = ["x"]', 'architectures = ["x"]\n[nvfp4]\nunstack = "y"'), "nvfp4.unstack"),
        (("", '[[ollama]]\ntemplate = "x.gotmpl"\nstop = ["s"]'), "the template x.gotmpl cannot be read"),
        (("", '[[serving]]\nthinkin = "a"'), "did you mean `thinking`"),
    ],
)
def test_a_family_file_with_a_wrong_section(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    text = 'name = "x"\narchitectures = ["x"]\n'
    (tmp_path / "x.toml").write_text(text.replace(*change) if change[0] else text + change[1])
    with pytest.raises(CheckpointError, match=r"family file x\.toml") as caught:
        load_family(tmp_path / "x.toml")
    assert message in str(caught.value)


def test_the_example_of_the_howto_is_enough_to_cut_a_model(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "howto" / "add-a-family.md"
    [text] = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    family = parse_family(text, "example_moe.toml")
    names = {"gate.e_score_correction_bias": "gate.bias", "layers.0.mlp.gate_proj": "layers.0.mlp.down_proj"}
    arrays = per_expert_arrays()
    for old in list(arrays):
        for theirs, ours in names.items():
            if theirs in old:
                arrays[old.replace(theirs, ours)] = arrays.pop(old)
    config = per_expert_config() | {"model_type": "example_moe", "num_experts": 6}
    del config["n_routed_experts"]
    base = write_checkpoint(tmp_path / "base", arrays, config)
    drop = {1: (0, 4), 2: (3, 5)}
    with extra_families(family):
        prune(base, DropMap(drop, 6), tmp_path / "out")
        found = infer_map(base, tmp_path / "out")
        assert found.exact
        assert found.map is not None
        assert found.map.drop == drop
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 4
    cut = read_index(tmp_path / "out")
    assert cut["model.layers.1.mlp.gate.bias"].shape == (4,)
    assert "model.layers.1.mlp.experts.4.up_proj.weight" not in cut


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mtp.layers.0.mlp.experts.5.up_proj.weight", "mtp.layers.0.mlp.experts.5.up_proj.weight is missing"),
        ("mtp.layers.0.mlp.experts.0.gate_proj.weight", "mtp.layers.0.mlp.experts.0.down_proj.weight belongs to"),
        ("model.layers.1.mlp.experts.0.gate_proj.weight", "model.layers.1.mlp.experts.0.gate_proj.weight is missing"),
        ("model.layers.2.mlp.gate.weight", "model.layers.2.mlp.gate.weight is missing"),
    ],
)
def test_a_missing_tensor_is_refused_wherever_it_is(
    change: str, message: str, family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(family_checkpoint(next(m for m in MADE if m.name == "qwen3_next")), tmp_path / "base"))
    tensors = load_file(path / "model.safetensors")
    del tensors[change]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert message in str(caught.value)


def test_names_with_impossible_numbers_are_refused(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = family_checkpoint(next(m for m in MADE if m.name == "deepseek_v3"))
    for number, digits in enumerate(("9" * 5000, "٣", "03", "-1")):
        path = Path(shutil.copytree(source, tmp_path / str(number)))
        file = path / "model-00001-of-00002.safetensors"
        name = f"model.layers.{digits}.mlp.experts.0.up_proj.weight"
        tensors = load_file(file)
        tensors[name] = next(iter(tensors.values())).clone()
        save_file(tensors, file)
        index = json.loads((path / "model.safetensors.index.json").read_text())
        index["weight_map"][name] = file.name
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="belongs to the experts"):
            open_checkpoint(path)


def test_experts_in_a_drafting_block_alone_are_nothing_to_prune(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = family_checkpoint(next(m for m in MADE if m.name == "deepseek_v3"))
    path = Path(shutil.copytree(source, tmp_path / "base"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match="no decoder layer"):
        open_checkpoint(path)


TEXT = [made for made in MADE if made.name == made.family and made.name not in ("gemma4", "llama4", "granitemoe")]


@pytest.mark.parametrize("made", TEXT, ids=lambda made: made.name)
def test_the_layout_of_transformers_itself(made: Made, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """What transformers 5 writes with save_original_format=False has the same experts under its own names."""
    from transformers import AutoModelForCausalLM

    source = family_checkpoint(made)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "own", save_original_format=False)
    published, own = open_checkpoint(source), open_checkpoint(tmp_path / "own")
    assert own.family is published.family
    assert not any(role.per_expert for role in own.hf.roles.values())
    assert own.moe_layers == published.moe_layers
    elements = [
        sum(
            prod(tensor.info.shape) for name, tensor in model.expert_tensors.items() if model.layer_of(name) is not None
        )
        for model in (published, own)
    ]
    assert elements[0] == elements[1]


@pytest.mark.parametrize("name", ["mixtral", "ernie4_5_moe", "minimax_m2"])
def test_a_cut_in_the_layout_of_transformers_is_proven(
    name: str, family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """These families have other names for the router or its correction in that layout."""
    from transformers import AutoModelForCausalLM

    source, own = family_checkpoint(next(m for m in MADE if m.name == name)), tmp_path / "own"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(own, save_original_format=False)
    for file in source.glob("*token*"):
        shutil.copy(file, own)
    drop = DropMap(dict.fromkeys(open_checkpoint(own).moe_layers, (1, 4)))
    prune(own, drop, tmp_path / "cut")
    proof = certify(own, tmp_path / "cut")
    assert proof.status == "proven", proof.checks
