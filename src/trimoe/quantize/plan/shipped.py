"""Configurations of known models, so that plans need no download; one config.json per model in `configs/`."""

import json
from importlib import resources
from typing import Any


def shipped_configs() -> tuple[str, ...]:
    """Names of the models whose configuration is shipped."""
    folder = resources.files("trimoe.quantize.plan") / "configs"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def shipped_config(name: str) -> dict[str, Any] | None:
    """The shipped configuration of this name, or None; case, a leading owner/ and a trailing -it are ignored."""
    plain = name.rpartition("/")[2].lower().removesuffix("-it")
    for known in shipped_configs():
        if known.lower() == plain:
            text = (resources.files("trimoe.quantize.plan") / "configs" / f"{known}.json").read_text(encoding="utf-8")
            config: dict[str, Any] = json.loads(text)
            return config
    return None
