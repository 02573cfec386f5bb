"""Edits config.json after a cut: the expert count, and expert numbers in quantization settings.

Invariants: the text is kept except for what must change; every edit is checked by parsing the result.
"""

import json
import re
from typing import Any

from trimoe.cut.narrow import shared_experts
from trimoe.cut.pieces import Keeps
from trimoe.cut.renumber import FILES, SETTINGS, ExpertNames, renumbered
from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import Checkpoint

Scope = tuple[str, ...]
PARAMS = "params.json"


def edited_files(checkpoint: Checkpoint, keeps: Keeps, width: int | None = None) -> dict[str, bytes]:
    """The files that a cut changes: name -> new content. config.json, and others only if they name experts by number.

    `keeps` are the kept experts of each layer, `width` the neurons per expert if they become narrower. Raises
    `CheckpointError` for settings that cannot be renumbered exactly.
    """
    names = ExpertNames(checkpoint, keeps)
    kept = len(next(iter(keeps.values())))
    files = {"config.json": edited_config(checkpoint, kept, names, width)}
    for file in (checkpoint.path / name for name in FILES):
        if file.is_file():
            old = read_json(file, "quantization settings", CheckpointError)
            new = renumbered(old, names)
            if new != old:
                files[file.name] = (json.dumps(new, indent=4, ensure_ascii=False) + "\n").encode()
    if (params := _edited_params(checkpoint, kept)) is not None:
        files[PARAMS] = params
    return files


def _edited_params(checkpoint: Checkpoint, kept: int) -> bytes | None:
    """params.json, Mistral's own configuration, with its expert count; None where it has none."""
    file = checkpoint.path / PARAMS
    if not file.is_file():
        return None
    data = read_json(file, "model parameters", CheckpointError)
    count = data["moe"].get("num_experts") if isinstance(data, dict) and isinstance(data.get("moe"), dict) else None
    if count is None:
        return None
    if count != checkpoint.num_experts:
        raise CheckpointError(
            f"{file} and config.json disagree",
            expected=f"moe.num_experts = {checkpoint.num_experts}",
            actual=str(count),
            remedy="correct or remove the file that does not belong to these weights",
        )
    data["moe"]["num_experts"] = kept
    try:
        text = _with_value(file.read_bytes().decode("utf-8-sig"), "num_experts", kept, ("moe",))
    except UnicodeDecodeError as exc:
        raise CheckpointError(
            f"{file} cannot be edited", expected="UTF-8", actual=str(exc)[:80], remedy="write it as UTF-8"
        ) from exc
    if json.loads(text) != data:
        raise CheckpointError(
            f"{file} could not be edited exactly",
            expected="one moe.num_experts in it",
            remedy="write its keys once each, and plainly",
        )
    return text.encode()


def edited_config(checkpoint: Checkpoint, kept: int, names: ExpertNames, width: int | None = None) -> bytes:
    """The original config.json with the expert count (and width) replaced and quantization settings renumbered where
    they name experts."""
    raw = (checkpoint.path / "config.json").read_bytes()
    keys = checkpoint.hf.config
    try:
        text, wanted = raw.decode("utf-8-sig"), json.loads(raw)
    except UnicodeDecodeError as exc:
        raise CheckpointError(
            "config.json cannot be edited", expected="UTF-8", actual=str(exc)[:80], remedy="save it as UTF-8"
        ) from exc
    for where in dict.fromkeys((checkpoint.config_scope, (), ("text_config",))):
        scope = _at(wanted, where)
        if not isinstance(scope, dict):
            continue
        for key in sorted({keys.num_experts, *keys.num_experts_also} & scope.keys()):
            # A copy of the count in the other scope is edited if it says the same; loaders read either.
            if where == checkpoint.config_scope or scope[key] == checkpoint.num_experts:
                scope[key] = kept
                text = _with_value(text, key, kept, where)
    for key, value in ({} if width is None else narrowed_settings(checkpoint, width)).items():
        for where in dict.fromkeys((checkpoint.config_scope, (), ("text_config",))):
            scope = _at(wanted, where)
            if isinstance(scope, dict) and scope.get(key) == checkpoint.setting(key):
                scope[key] = value
                text = _with_value(text, key, value, where)
    for where in ((), ("text_config",)):
        holder = _at(wanted, where)
        for key in SETTINGS:
            if isinstance(holder, dict) and key in holder:
                new = renumbered(holder[key], names)
                if new != holder[key]:
                    holder[key] = new
                    text = _with_value(text, key, new, where)
    if json.loads(text) != wanted:
        raise CheckpointError(
            "config.json could not be edited exactly",
            expected=f"one key {keys.num_experts}",
            remedy="write each of its keys once, without escapes",
        )
    return text.encode()


def narrowed_settings(checkpoint: Checkpoint, width: int) -> dict[str, int]:
    """Keys of config.json that change when the experts become `width` wide, with their new values."""
    keys = checkpoint.hf.config
    assert keys.expert_width is not None
    return {keys.expert_width: width, **dict(filter(None, [shared_experts(checkpoint, width)]))}


def _at(config: Any, scope: Scope) -> Any:
    for part in scope:
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _with_value(text: str, key: str, value: Any, scope: Scope) -> str:
    """`text` with the value at scope.key replaced. If the key occurs several times, the right place is the one whose
    edit changes the parsed value at scope.key and nothing else."""
    wanted = json.loads(text)
    _at(wanted, scope)[key] = value
    for match in re.finditer(rf'"{re.escape(key)}"\s*:\s*', text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:  # not a key, but part of a string
            continue
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        margin = line[: len(line) - len(line.lstrip())]
        new = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n" + margin)
        candidate = text[: match.end()] + new + text[end:]
        if json.loads(candidate) == wanted:
            return candidate
    return text
