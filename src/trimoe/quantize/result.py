"""The result of `quantize`: a GGUF ladder or a measured mix, and an NVFP4 checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.io.frames import data_frame
from trimoe.quantize.dry_run import DryRun
from trimoe.quantize.ladder.result import Ladder, TierFile
from trimoe.quantize.mix.result import Mix


@dataclass(frozen=True)
class Nvfp4Checkpoint:
    """A finished NVFP4 checkpoint in the directory `out`.

    `facts` are sizes and errors by kind of matrix, `errors` the relative error of each matrix; `reused` says that an
    earlier run had finished it.
    """

    tier: str
    layout: str
    out: Path
    facts: dict[str, Any]
    errors: dict[str, float]
    reused: bool

    def as_dict(self) -> dict[str, Any]:
        """The checkpoint as JSON values."""
        return {
            "tier": self.tier,
            "layout": self.layout,
            "out": str(self.out),
            "kept": self.reused,
            **self.facts,
            "relative_error_by_matrix": self.errors,
        }


@dataclass(frozen=True, repr=False)
class Quantized:
    """What `quantize` made, or would make; only the parts that were asked for are set."""

    ladder: Ladder | None = None
    mix: Mix | None = None
    nvfp4: Nvfp4Checkpoint | None = None
    planned: DryRun | None = None
    """The result of a dry run."""

    def __repr__(self) -> str:
        names = ", ".join(path.name for path in self.paths)
        return f"Quantized({names}{f'; {len(self.findings)} findings' if self.findings else ''})"

    @property
    def files(self) -> tuple[TierFile, ...]:
        """The GGUF files, in the order of the ladder."""
        return self.ladder.files if self.ladder else (self.mix.file,) if self.mix else ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every model that was made: GGUF files, and the directory of an NVFP4 checkpoint."""
        return (*(file.path for file in self.files), *((self.nvfp4.out,) if self.nvfp4 else ()))

    @property
    def findings(self) -> list[str]:
        """Failed or missing smoke tests and equal files; empty if all is well."""
        part = self.ladder or self.mix
        return part.findings if part else []

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values: the output of `trimoe quantize --json`."""
        if self.planned is not None:
            return self.planned.as_dict()
        part = self.ladder or self.mix
        if part is None:
            return self.nvfp4.as_dict() if self.nvfp4 else {}
        return {**part.as_dict(), **({"nvfp4": self.nvfp4.as_dict()} if self.nvfp4 else {})}

    def to_pandas(self) -> Any:
        """One line per model: tier, path, bytes, bits per weight, smoke test. `MissingPrerequisite` without pandas."""
        rows: list[dict[str, Any]] = [
            {
                "tier": file.tier,
                "path": str(file.path),
                "file_bytes": file.file_bytes,
                "bits_per_weight": file.bits_per_weight,
                "sha256": file.sha256,
                "failed": file.smoke and file.smoke.failed,
            }
            for file in self.files
        ]
        if self.nvfp4:
            keys = ("file_bytes", "bits_per_weight")
            rows.append({"tier": self.nvfp4.tier, "path": str(self.nvfp4.out)} | {k: self.nvfp4.facts[k] for k in keys})
        names = ("tier", "path", "file_bytes", "bits_per_weight", "sha256", "failed")
        return data_frame({name: [row.get(name) for row in rows] for name in names})
