"""The measured mix: groups cover every tensor, sizes add up to the byte, measurements are kept and refused rightly."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.blueprints import dry_run, real_width, write_hollow, write_imatrix
from trimoe.errors import BadInput, Refused, UsageError
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.quantize.ladder.dynamic import map_text, normal
from trimoe.quantize.ladder.sources import Effort, Sources
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.mix.knapsack import solve
from trimoe.quantize.mix.mix import Space, make_mix, space_of
from trimoe.quantize.mix.options import TYPES, groups_of, overrides_of_mix, tier_of
from trimoe.quantize.mix.target import MixTarget
from trimoe.quantize.types.sizes import predict
from trimoe.quantize.types.tensor_types import allows_quantization

QUICK = Effort(1, 1)
WORDS = "The sky is blue and the fox ran home. 12 plus 30 is 42. def add(a, b): return a + b. "


@pytest.mark.parametrize("experts", [128, 98])
def test_every_tensor_is_in_one_group(experts: int) -> None:
    blueprint = real_width(30, experts)
    names = {tensor.name for tensor in blueprint.tensors}
    groups = groups_of(blueprint, TYPES, names)
    inside = [tensor.name for group in groups for tensor in group.tensors]
    assert sorted(inside) == sorted(t.name for t in blueprint.tensors if allows_quantization(t))
    assert len(groups) == 30 * 4 + 1
    down = next(group for group in groups if group.name == "7-experts-down")
    # Rows of 704: what falls back to the same type is measured once.
    assert [o.dtypes for o in down.options] == [("Q8_0",), ("Q5_1",), ("Q5_0",), ("IQ4_NL",), ("Q4_0",)]
    up = next(group for group in groups if group.name == "7-experts-up")
    assert [o.wanted for o in up.options] == list(TYPES)


def test_without_an_imatrix_the_lowest_types_are_no_options() -> None:
    groups = groups_of(real_width(2, 9), TYPES, [])
    kinds = {kind for group in groups for option in group.options for kind in option.dtypes}
    assert not kinds & {"IQ2_XS", "IQ3_XXS"}
    assert "Q2_K" in kinds


def chosen(space: Space, step: int) -> tuple[int, ...]:
    return tuple((step + 3 * i) % len(group.options) for i, group in enumerate(space.groups))


@pytest.mark.parametrize("experts", [128, 98])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_sizes_add_up_at_real_widths(llamacpp: LlamaCpp, tmp_path: Path, experts: int, step: int) -> None:
    """Fixed part plus options is the size of the file, and llama-quantize's dry run chooses every type so."""
    blueprint = real_width(2, experts)
    names = {tensor.name for tensor in blueprint.tensors if tensor.name.startswith("blk.")}
    space = space_of(blueprint, TYPES, names, 50)
    picks = chosen(space, step)
    lines = overrides_of_mix(space.groups, picks)
    tier = tier_of("x", space.groups, picks)
    size = predict(
        blueprint.tensors, blueprint.facts, blueprint.metadata, tier.request(normal(lines), imatrix=True), 50
    )
    assert size.file_bytes == space.fixed + sum(g.options[p].nbytes for g, p in zip(space.groups, picks, strict=True))
    hollow = write_hollow(tmp_path / "x.gguf", blueprint)
    (tmp_path / "map.txt").write_text(map_text(lines))
    imatrix = write_imatrix(
        tmp_path / "imatrix.gguf",
        {
            t.name: (t.shape[0] if len(t.shape) == 3 else 1, t.row)
            for t in blueprint.tensors
            if t.name.startswith("blk.") and allows_quantization(t)
        },
    )
    options = ("--tensor-type-file", str(tmp_path / "map.txt"), "--imatrix", str(imatrix))
    found = dry_run(llamacpp, hollow, tier.file_type, *options)
    assert {c.tensor.name: c.dtype for c in size.choices} == {c.tensor.name: found[c.tensor.name] for c in size.choices}


def test_a_target_for_the_real_model_is_met_closely() -> None:
    """With costs that fall with bits, the choice for 12.9 GB leaves less than one option's step unused."""
    blueprint = real_width(30, 98)
    space = space_of(blueprint, TYPES, {t.name for t in blueprint.tensors}, 50)
    table = [
        [(o.nbytes, 4.0 ** -(8 * o.nbytes / group.options[0].nbytes)) for o in group.options] for group in space.groups
    ]
    found = solve(table, 12_900_000_000 - space.fixed)
    total = space.fixed + found.nbytes
    assert 12_850_000_000 < total <= 12_900_000_000
    assert found.gap < 0.01 * found.cost


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(WORDS * 30)
    return path


NO_SMOKE = LadderSpec()
FEW = ("Q8_0", "Q4_0")


@pytest.mark.slow
def test_measured_chosen_built(
    llamacpp: LlamaCpp, base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full workflow with two types; a rerun measures nothing; another target uses the same measurements."""
    target = MixTarget(bits=6.0, text=text, types=FEW, chunks=4, context=64)
    first = make_mix(base, tmp_path, target, NO_SMOKE, llamacpp, effort=QUICK)
    file = tmp_path / "tiny-AUTO-6bpw.gguf"
    assert file.stat().st_size == first.forecast.file_bytes <= first.forecast.target_bytes
    assert first.forecast.gap == 0
    assert {one.type for one in first.forecast.groups.values()} == {"Q8_0", "Q4_0"}
    costs = json.loads((tmp_path / "tiny.mix-costs.json").read_text())
    assert len(costs["means"]) == 2 * len(first.forecast.groups) + 1
    # What harms most when coarse is what stays fine, per byte: nothing coarse could be swapped for something fine.
    types = {name: info.dtype for name, info in open_gguf(file).index.items()}
    for name, one in first.forecast.groups.items():
        inside = [t for t in types if t.startswith("blk.0.attn_q.weight")] if name == "0-attention" else []
        assert all(types[t] == one.type for t in inside)
    sidecar = json.loads((tmp_path / "tiny-AUTO-6bpw.tensor-types.txt.json").read_text())
    assert sidecar["groups"] == first.as_dict()["groups"]

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("trimoe.quantize.mix.measure._quantized", never)
    again = make_mix(base, tmp_path, target, NO_SMOKE, llamacpp, effort=QUICK)
    assert again.file.reused
    assert not first.file.reused
    assert again.as_dict(reused=False) == first.as_dict(reused=False)
    smaller = make_mix(base, tmp_path, replace(target, bits=5.5), NO_SMOKE, llamacpp, effort=QUICK)
    assert smaller.forecast.file_bytes < first.forecast.file_bytes
    assert smaller.forecast.predicted_kld >= first.forecast.predicted_kld
    other = tmp_path / "other.txt"
    other.write_text(WORDS * 31)
    with pytest.raises(BadInput, match=r"(?s)measurements in .* belong to other inputs.*the same text"):
        make_mix(base, tmp_path, replace(target, text=other), NO_SMOKE, llamacpp, effort=QUICK)
    map_file = tmp_path / "tiny-AUTO-6bpw.tensor-types.txt"
    map_file.write_text(map_file.read_text().replace("q4_0", "q8_0", 1))
    with pytest.raises(Refused, match="is stale"):
        make_mix(base, tmp_path, target, NO_SMOKE, llamacpp, effort=QUICK)


@pytest.mark.slow
def test_a_killed_measurement_goes_on(
    llamacpp: LlamaCpp, base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimoe.quantize.mix import measure as mix_measure

    target = MixTarget(bits=6.0, text=text, types=FEW, chunks=4, context=64)
    real, count = mix_measure._quantized, [0]

    def dies(*arguments: object) -> Path:
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mix_measure, "_quantized", dies)
    with pytest.raises(KeyboardInterrupt):
        make_mix(base, tmp_path, target, NO_SMOKE, llamacpp, effort=QUICK)
    kept = json.loads((tmp_path / "tiny.mix-costs.json").read_text())["means"]
    assert len(kept) == 4
    assert not list(tmp_path.glob(".mix-*"))
    groups = len(space_of_base(base).groups)
    make_mix(base, tmp_path, target, NO_SMOKE, llamacpp, effort=QUICK)
    assert count[0] == 4 + 2 * groups - 3
    assert {
        k: v for k, v in json.loads((tmp_path / "tiny.mix-costs.json").read_text())["means"].items() if k in kept
    } == kept


def space_of_base(base: Path) -> Space:
    from trimoe.quantize.types.blueprint import blueprint_of_gguf

    return space_of(blueprint_of_gguf(open_gguf(base)), FEW, [], None)


def test_refused_before_anything(llamacpp: LlamaCpp, base: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options in (
        {},
        {"nbytes": 1, "bits": 2.0},
        {"bits": 4.0, "types": ("Q4_K_M",)},
        {"bits": 4.0, "types": ("X",)},
    ):
        with pytest.raises(UsageError):
            MixTarget(text=text, **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"(?s)no mix of these types is that small.*at least [\d,]+ bytes"):
        make_mix(base, out, MixTarget(bits=1.5, text=text), NO_SMOKE, llamacpp, effort=QUICK)
    with pytest.raises(UsageError, match="measured on a text"):
        make_mix(base, out, MixTarget(bits=5.0), NO_SMOKE, llamacpp, effort=QUICK)
    with pytest.raises(BadInput, match="cannot be read"):
        make_mix(base, out, MixTarget(bits=5.0, text=tmp_path / "no.txt"), NO_SMOKE, llamacpp, effort=QUICK)
    with pytest.raises(BadInput, match="no type is left for"):
        make_mix(
            base, out, MixTarget(bits=5.0, text=text, types=("IQ2_XS", "IQ3_XXS")), NO_SMOKE, llamacpp, effort=QUICK
        )
    foreign = write_imatrix(tmp_path / "foreign.gguf", {"blk.0.attn_q.weight": (1, 2816)})
    with pytest.raises(BadInput, match="an imatrix of another model"):
        make_mix(base, out, MixTarget(bits=5.0, text=text), NO_SMOKE, llamacpp, sources=Sources(foreign), effort=QUICK)
    assert not out.exists()


def test_names() -> None:
    assert [MixTarget(nbytes=n).name for n in (12_900_000_000, 2_695_360)] == ["AUTO-12.9GB", "AUTO-2.69536MB"]
    assert re.fullmatch(r"AUTO-4\.8bpw", MixTarget(bits=4.8).name)
