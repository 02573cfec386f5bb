"""Which tensors of a checkpoint find their place when it is loaded part by part, in the terms of transformers' report.

A tensor that is used as it is stored is compared by name and shape; one that is converted (stacked, split) is loaded,
and transformers' own report of each part is taken.
"""

import re
from collections.abc import Mapping
from typing import Any

from trimoe.model.dequantize.parts import FloatTensor


class LoadingReport:
    """Collects what is missing, unexpected or of the wrong size."""

    def __init__(self) -> None:
        self._missing: set[str] | None = None
        self._fitting: set[str] = set()
        self._unexpected: set[str] = set()
        self._mismatched: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
        self._errors: list[str] = []
        self._model: Any = None

    def read_headers(
        self, index: Mapping[str, FloatTensor], targets: Mapping[str, str], converted: set[str], model: Any
    ) -> None:
        """Compare every tensor of the checkpoint with the parameter that it is loaded into, by name and shape."""
        self._model = model
        state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._missing = set(state)
        for name, info in index.items():
            target = targets[name]
            if target not in state:
                self._unexpected.add(name)
            elif name not in converted:
                self._fitting.add(target)
                if state[target] != tuple(info.shape):
                    self._mismatched.add((target, tuple(info.shape), state[target]))

    def add(self, info: Any) -> None:
        """Take transformers' report of one part."""
        assert self._missing is not None
        self._missing &= info.missing_keys
        self._mismatched |= {(str(name), tuple(have), tuple(want)) for name, have, want in info.mismatched_keys}
        self._errors += [str(error) for error in info.conversion_errors.values()]

    def keys(self) -> dict[str, Any]:
        """As `from_pretrained` reports it, when every part was loaded."""
        missing = (self._missing or set()) - self._fitting - set(self._model.all_tied_weights_keys)
        return {
            "missing_keys": _without(missing, self._model._keys_to_ignore_on_load_missing),
            "unexpected_keys": _without(
                self._unexpected,
                [*(self._model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"],
            ),
            "mismatched_keys": self._mismatched,
            "error_msgs": self._errors,
        }


def _without(names: set[str], patterns: Any) -> set[str]:
    """The names that match none of the patterns."""
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}
