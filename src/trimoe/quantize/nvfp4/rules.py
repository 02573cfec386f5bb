"""nvfp4.toml: what NVFP4A16 quantizes and how the parts are called. Unknown keys are refused."""

import tomllib
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, ValidationError

from trimoe.errors import BadInput

LAYOUTS = ("modelopt", "compressed-tensors")


class Producer(BaseModel):
    """Who loaders believe made the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    version: str


class Rules(BaseModel):
    """See nvfp4.toml for the meaning of each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tier: str
    keep: tuple[str, ...]
    always_ignored: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]
    matrices: tuple[str, ...]
    split: dict[str, tuple[str, ...]]
    unstack: dict[str, str]
    producer: Producer


@cache
def rules() -> Rules:
    """The shipped rules."""
    return parse_rules(
        (resources.files("trimoe.quantize.nvfp4") / "rules.toml").read_text(encoding="utf-8"), "rules.toml"
    )


def parse_rules(text: str, source: str) -> Rules:
    """Rules from TOML text. Raises `BadInput` naming the wrong key."""
    try:
        return Rules.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as exc:
        raise BadInput(
            f"rules {source} are not valid",
            expected="the keys of quantize/nvfp4/rules.toml",
            actual=str(exc)[:400],
            remedy="correct the file",
        ) from exc
