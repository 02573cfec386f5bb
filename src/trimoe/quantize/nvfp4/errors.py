"""Relative quantization errors by matrix and by kind of module, kept across interrupted runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.quantize.nvfp4.codes import Quantized


class ErrorSums:
    """Squared errors and squared norms by matrix. The journal keeps them for a run that resumes this one."""

    def __init__(self, journal: Path) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._journal = journal
        for line in journal.read_text().splitlines() if journal.exists() else ():
            try:
                name, error, norm = json.loads(line)
                self._sums[name] = (error, norm)
            except (ValueError, TypeError):
                continue  # a line that a kill cut off

    def knows(self, name: str) -> bool:
        """Whether the errors of a matrix are known."""
        return name in self._sums

    def add(self, found: dict[str, Quantized]) -> None:
        """Record the errors of some matrices."""
        new = {name: (part.error, part.norm) for name, part in found.items() if name not in self._sums}
        self._sums |= new
        with self._journal.open("a") as file:
            file.write("".join("\n" + json.dumps([name, *sums]) for name, sums in new.items()))

    def relative(self, name: str) -> float:
        """Norm of the error over the norm of the weights; 0 for a matrix of zeros."""
        return self.together([name])

    def together(self, names: list[str]) -> float:
        """The relative error of several matrices together."""
        error, norm = (sum(self._sums[name][i] for name in names) for i in (0, 1))
        return round(float(np.sqrt(error / norm)), 7) if norm else 0.0


def summary(relative: Mapping[str, float], errors: ErrorSums) -> dict[str, dict[str, Any]]:
    """Relative errors by kind of module (name without layer and expert): count, all together, and the worst matrix."""
    kinds: dict[str, list[str]] = {}
    for name in relative:
        kinds.setdefault(_kind(name), []).append(name)
    table: dict[str, dict[str, Any]] = {}
    for kind, names in sorted(kinds.items()):
        worst = max(names, key=lambda name: relative[name])
        table[kind] = {
            "count": len(names),
            "together": errors.together(names),
            "worst": relative[worst],
            "worst_matrix": worst,
        }
    return table


def _kind(name: str) -> str:
    parts = name.split(".")
    first = next((at for at, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(part for part in parts[first + 1 :] if not part.isdecimal())
