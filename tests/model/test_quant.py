"""The data files of quantization schemes: valid, refused with the wrong key named, and told apart."""

import dataclasses
from pathlib import Path

import pytest

from trimoe.errors import CheckpointError
from trimoe.model import quant as module
from trimoe.model.quant import all_quants, method_of, parse_quant, quant_of
from trimoe.model.safetensors import TensorInfo

FILE = Path(module.__file__).parent / "quants" / "compressed_tensors.toml"


def index(**tensors: str) -> dict[str, TensorInfo]:
    """Tensors by name and type."""
    return {name: TensorInfo(name, dtype, (2, 2), Path("x"), 0, 4) for name, dtype in tensors.items()}


def test_shipped_schemes_are_valid_and_distinct() -> None:
    schemes = all_quants()
    assert {"compressed-tensors", "modelopt", "fp8", "gptq", "awq", "mxfp4", "bitsandbytes", "quark"} == {
        q.name for q in schemes
    }
    methods = [method for q in schemes for method in q.methods]
    assert len(set(methods)) == len(methods)
    files = [file for q in schemes for file in q.files]
    assert len(set(files)) == len(files)


def test_loaders_are_classes_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="the torch extra is not installed")
    loaders = [scheme.loader for scheme in all_quants() if scheme.loader is not None]
    assert len(loaders) >= 3
    assert [name for name in loaders if not hasattr(transformers, name)] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "compressed-tensors"', 'nam = "x"'), "nam"),
        (('main = "weight_packed"', 'main = "weight_scale"'), "each named once"),
        (('required = ["weight_scale"]', "required = []"), "needs required tensors"),
        (("[[module]]", "[[modul]]"), "modul"),
        (("[[module]]", "[[module"), "not valid"),
    ],
)
def test_a_file_with_a_mistake(change: tuple[str, str], message: str) -> None:
    text = FILE.read_text()
    assert change[0] in text
    with pytest.raises(CheckpointError, match=r"quantization file bad\.toml") as caught:
        parse_quant(text.replace(*change, 1), "bad.toml")
    assert message in str(caught.value)


def test_how_a_scheme_is_found(tmp_path: Path) -> None:
    packed = index(**{"a.weight_packed": "U8", "a.weight_scale": "F8_E4M3"})
    assert method_of({}) is None
    assert method_of({"text_config": {"quantization_config": {"quant_method": "fp8"}}}) == "fp8"
    assert method_of({"quantization_config": {"quant_method": 3}}) is None

    def found(config: dict, tensors: dict[str, TensorInfo]) -> str | None:
        scheme = quant_of(config, tmp_path, tensors)
        return None if scheme is None else scheme.name

    assert found({}, {}) is None
    assert found({}, packed) == "compressed-tensors", "by its tensors"
    assert found({"quantization_config": {"quant_method": "awq"}}, packed) == "awq", "what the config says counts"
    assert found({"quantization_config": {"quant_method": "new"}}, packed) is None
    assert found({}, index(**{"a.weight": "BF16", "a.weight_scale": "F32"})) is None, "floats are not quantized"
    (tmp_path / "hf_quant_config.json").write_text("{}")
    assert found({}, packed) == "modelopt", "a file beside it"


def test_parts_are_values() -> None:
    """What a checkpoint holds is not changed by looking at it."""
    assert dataclasses.is_dataclass(module.Part)
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.Part("a", "", "a", 0, None, True).name = "b"  # type: ignore[misc]
