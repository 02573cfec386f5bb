"""Renumbers experts in quantization settings: ignore lists and settings of single modules.

A quantized checkpoint lists by name the modules that are not quantized (`ignore`, `modules_to_not_convert`,
`exclude_modules`), or how single modules are (`quantized_layers`, `dynamic`). An entry that names an expert by number
is renumbered, or removed with its expert; a pattern must select the same experts before and after. Invariants: entries
without expert numbers are not changed; what cannot be renumbered exactly is refused, never guessed.
"""

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from trimoe.cut.pieces import Keeps
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint

SETTINGS = ("quantization_config", "compression_config")
"""Keys of config.json that hold quantization settings."""
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Files beside config.json that hold only quantization settings."""

_REGEX = ("re:", "-:", "+:")  # compressed-tensors; GPTQModel's exceptions and additions
_CANONICAL = re.compile(r"0|[1-9][0-9]*")
_DOT = r"\\?\."  # a regular expression escapes dots


class ExpertNames:
    """Finds expert numbers in module names and patterns of a checkpoint and renumbers them."""

    def __init__(self, checkpoint: Checkpoint, keeps: Keeps) -> None:
        self._checkpoint, self._keeps = checkpoint, keeps
        # Settings may name single experts even of a stack (its modules before they were fused).
        tensors = {role.tensor for roles in checkpoint.hf.variants() for role in roles.values()}
        places = {t.partition("{E}")[0] for t in tensors if "{E}" in t}
        places |= {t[: t.index("experts.") + len("experts.")] for t in tensors if "experts." in t}
        inside = "|".join(sorted(re.escape(place).replace(r"\.", _DOT) for place in places))
        self._number = re.compile(rf"(?P<head>.*?)layers{_DOT}(?P<layer>\d+){_DOT}(?:{inside})(?P<expert>\d+)(?!\w)")
        self._loose = re.compile(rf"(?<!\w)experts{_DOT}(?:[a-z]\w*{_DOT})?\d+(?!\w)")

    def renamed(self, text: str) -> str | None:
        """`text` with the expert's new number; None if the expert was dropped; unchanged if it names none.

        Raises `CheckpointError` if it names an expert without a layer.
        """
        match = self._number.match(text)
        if match is None:
            if self._loose.search(text):
                raise _refusal(text, "it names an expert by number in every layer, and the layers drop different ones")
            return text
        if odd := next((t for t in (match["layer"], match["expert"]) if not _CANONICAL.fullmatch(t)), None):
            raise _refusal(text, f"no loader matches the number {odd!r} with a module: it is not written as {int(odd)}")
        keep = self._keeps.get(self._layer(match["head"], int(match["layer"])))
        expert = int(match["expert"])
        if keep is None or expert >= self._checkpoint.num_experts:
            return text  # not a module of this model
        if expert not in keep:
            return None
        rest = text[match.end("expert") :]
        if self._loose.search(rest):
            raise _refusal(text, "it names several experts at once")
        return text[: match.start("expert")] + str(keep.index(expert)) + rest

    @cached_property
    def modules(self) -> dict[str, str]:
        """Old -> new module name of every kept expert."""
        found = {}
        for name, tensor in self._checkpoint.expert_tensors.items():
            keep = self._keeps[tensor.layer]
            if tensor.expert is not None and tensor.expert in keep:
                new = tensor.renamed(keep.index(tensor.expert))
                found[name.rpartition(".")[0]] = new.rpartition(".")[0]
        return found

    def _layer(self, head: str, number: int) -> int:
        """The layer whose drops apply: a drafting block is cut like the last layer with experts."""
        checkpoint = self._checkpoint
        draft, plain = checkpoint.hf.draft_prefix, head.replace("\\", "")
        own = draft is not None and draft not in checkpoint.hf.layer_prefixes
        if number >= checkpoint.num_layers or (own and draft and plain.endswith(draft.partition("layers.")[0])):
            return max(self._keeps)
        return number


def renumbered(value: Any, names: ExpertNames) -> Any:
    """Quantization settings with every module name and pattern renumbered. Raises `CheckpointError`."""
    if isinstance(value, dict):
        result = {}
        for key, inner in value.items():
            new = _entry(key, names)
            if new is not None:
                result[new] = renumbered(inner, names)
        return result
    if isinstance(value, list):
        entries = [_entry(item, names) if isinstance(item, str) else renumbered(item, names) for item in value]
        return [entry for entry in entries if entry is not None]
    if isinstance(value, str):
        new = _entry(value, names)
        if new is None:
            raise _refusal(value, "it names a dropped expert in a place that must not be empty")
        return new
    return value


def _entry(text: str, names: ExpertNames) -> str | None:
    new = names.renamed(text)
    before = selector(text)
    if before is None:
        return new
    after = selector(new) if new is not None else None
    for old_name, new_name in names.modules.items():
        if before(old_name) != (after is not None and after(new_name)):
            raise _refusal(text, f"it selects {old_name} by its number, which is {new_name} now")
    return new


def selector(text: str) -> Callable[[str], bool] | None:
    """The predicate of a pattern over module names; None for a plain name. Raises `CheckpointError` for an invalid
    pattern."""
    if text.startswith(_REGEX):
        try:
            pattern = re.compile(text[text.index(":") + 1 :])
        except re.error as exc:
            raise _refusal(text, f"it is not a regular expression: {exc}") from exc
        return lambda name: pattern.match(name) is not None
    if "*" in text or "?" in text:
        return lambda name: fnmatchcase(name, text)
    return None


def _refusal(text: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the quantization setting {text[:120]!r} cannot be renumbered",
        expected="names of single experts with their layer, or patterns that treat all experts alike",
        actual=reason,
        remedy="replace it in the config with the names of the modules it selects",
    )
