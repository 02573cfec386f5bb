"""Compares quantization settings of a pruned model with the original's: the same modules, under their new numbers.

Checked in reverse, deliberately without the code that renumbered: expert numbers of the pruned model are converted to
the original's, entries of dropped experts are removed from the original's settings, and the two must be equal. A
pattern without numbers must select the same experts in both.
"""

import re
from collections.abc import Callable
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.cut.renumber import selector
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint

# layers.3.mlp.experts.17 and layers.3.experts.up_proj.17, also with the dots of a regular expression
_EXPERT = re.compile(
    r"layers\\?\.(0|[1-9][0-9]*)\\?\.(?:[\w\\.]*?\\?\.)??experts\\?\.(?:[a-z]\w*\\?\.)?(0|[1-9][0-9]*)(?!\w)"
)


def in_original_numbers(settings: Any, base: Checkpoint, drop_map: DropMap) -> Any:
    """Settings of the pruned model with the original's expert numbers."""

    def back(text: str) -> str:
        match = _EXPERT.search(text)
        keep = _kept(base, drop_map, text, match)
        if match is None or keep is None or int(match[2]) >= base.num_experts:
            return text
        position = int(match[2])
        if position >= len(keep):
            return f"{text}, which the pruned model has not"
        return text[: match.start(2)] + str(keep[position]) + text[match.end(2) :]

    return _walk(settings, back)


def without_dropped(settings: Any, base: Checkpoint, drop_map: DropMap) -> Any:
    """The original's settings without the entries of dropped experts."""

    def left(text: str) -> str | None:
        match = _EXPERT.search(text)
        keep = _kept(base, drop_map, text, match)
        known = match is not None and keep is not None and int(match[2]) < base.num_experts
        return None if known and match is not None and keep is not None and int(match[2]) not in keep else text

    return _walk(settings, left)


def changed_patterns(settings: Any, pruned: Any, base: Checkpoint, drop_map: DropMap) -> list[str]:
    """Patterns that do not select the same experts in the pruned model as in the original."""
    before, after = _patterns(without_dropped(settings, base, drop_map)), _patterns(pruned)
    modules = {}
    for name, tensor in base.expert_tensors.items():
        keep = drop_map.keep(tensor.layer, base.num_experts)
        if tensor.expert is not None and tensor.expert in keep:
            modules[name.rpartition(".")[0]] = tensor.renamed(keep.index(tensor.expert)).rpartition(".")[0]
    wrong = [
        text
        for (text, old), (_, new) in zip(before, after, strict=False)
        if any(old(name) != new(renamed) for name, renamed in modules.items())
    ]
    return wrong if len(before) == len(after) else ["the number of patterns"]


def _kept(base: Checkpoint, drop_map: DropMap, text: str, match: re.Match[str] | None) -> list[int] | None:
    if match is None:
        return None
    last = max(drop_map.drop)
    layer = int(match[1])
    if layer >= base.num_layers or text[: match.start()].replace("\\", "").endswith("mtp."):
        layer = last  # a drafting block
    return drop_map.keep(layer, base.num_experts) if layer in drop_map.drop else None


def _walk(value: Any, change: Callable[[str], str | None]) -> Any:
    if isinstance(value, dict):
        return {new: _walk(inner, change) for key, inner in value.items() if (new := change(key)) is not None}
    if isinstance(value, list):
        return [new for item in value if (new := _walk(item, change)) is not None or item is None]
    return change(value) if isinstance(value, str) else value


def _patterns(value: Any) -> list[tuple[str, Callable[[str], bool]]]:
    """(text, predicate) of all patterns in settings, in order."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    _walk(value, note)
    found = []
    for text in texts:
        try:
            select = selector(text)
        except CheckpointError:  # invalid in the original too, and the same in both
            continue
        if select is not None:
            found.append((text, select))
    return found
