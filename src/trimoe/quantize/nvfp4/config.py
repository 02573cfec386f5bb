"""Files that describe an NVFP4 checkpoint: config.json, hf_quant_config.json, preprocessor_config.json. Pure.

Invariant: config.json is the text of the original with one key added at the end.
"""

import json
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.nvfp4 import BLOCK
from trimoe.quantize.nvfp4.plan import Plan
from trimoe.quantize.nvfp4.rules import rules

_KEY = "quantization_config"
_ALGORITHM = "W4A16_NVFP4"  # what modelopt calls 4-bit weights with 16-bit activations


def small_files(source: Path, plan: Plan) -> dict[str, bytes]:
    """Names and contents of the files that describe the quantization, and of a derived processor configuration."""
    settings = _modelopt(plan) if plan.layout == "modelopt" else _compressed_tensors(plan)
    files = {"config.json": with_settings((source / "config.json").read_bytes(), settings)}
    if plan.layout == "modelopt":
        files["hf_quant_config.json"] = _text(
            {
                "producer": to_builtins(rules().producer),
                "quantization": {
                    "quant_algo": _ALGORITHM,
                    "kv_cache_quant_algo": None,
                    "group_size": BLOCK,
                    "exclude_modules": list(plan.ignored),
                },
            }
        )
    if (derived := preprocessor(source)) is not None:
        files["preprocessor_config.json"] = _text(derived)
    return files


def _modelopt(plan: Plan) -> dict[str, Any]:
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
    group = {"weights": weights, "targets": ["Linear"]}
    return {
        "config_groups": {"group_0": group},
        "ignore": list(plan.ignored),
        "quant_algo": _ALGORITHM,
        "producer": to_builtins(rules().producer),
        "quant_method": "modelopt",
    }


def _compressed_tensors(plan: Plan) -> dict[str, Any]:
    """The settings that llm-compressor writes for its scheme NVFP4A16."""
    weights = {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "group_size": BLOCK,
        "strategy": "tensor_group",
        "dynamic": False,
        "scale_dtype": "torch.float8_e4m3fn",
        "observer": "memoryless_minmax",
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "nvfp4-pack-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(plan.ignored),
        "kv_cache_scheme": None,
    }


def with_settings(raw: bytes, settings: dict[str, Any]) -> bytes:
    """The text of a config.json with the quantization settings as its last key. Raises `CheckpointError`."""
    wanted = json.loads(raw)
    text = raw.decode("utf-8-sig").rstrip()
    body = text[:-1].rstrip()
    indented = json.dumps(settings, indent=2, ensure_ascii=False).replace("\n", "\n  ")
    text = f'{body}{"," if wanted else ""}\n  "{_KEY}": {indented}\n}}\n'
    if json.loads(text) != wanted | {_KEY: settings}:
        raise CheckpointError(
            "config.json could not be edited exactly",
            expected="one JSON object without duplicates",
            remedy="remove duplicate keys from config.json",
        )
    return text.encode()


def preprocessor(source: Path) -> dict[str, Any] | None:
    """preprocessor_config.json for loaders that do not read processor_config.json.

    It holds the settings of the feature extractor, or else of the image processor. None if the source has the file, or
    has nothing to derive it from.
    """
    file = source / "processor_config.json"
    if not file.is_file() or (source / "preprocessor_config.json").exists():
        return None
    data = read_json(file, "processor configuration", CheckpointError)
    for key in ("feature_extractor", "image_processor"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            return dict(data[key])
    return None


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=4, ensure_ascii=False) + "\n").encode()
