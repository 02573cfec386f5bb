"""Options and report of a prune, the same for every output format."""

import errno
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.io.progress import Progress

MAX_JOBS = 4  # files written at a time by default: more do not make a disk faster


@dataclass(frozen=True)
class CutOptions:
    """How to write the output: see `trimoe.cut.prune.prune`."""

    max_shard: int | Literal["source"] | None = None
    dry_run: bool = False
    sync: bool = False
    verify: bool = False
    hashed: bool = True
    jobs: int | None = None
    progress: Progress | None = None

    @property
    def threads(self) -> int:
        """Files written at a time."""
        return self.jobs or min(MAX_JOBS, os.cpu_count() or 1)


@dataclass(repr=False)
class PruneReport:
    """What a prune did or, for a dry run, would do. Sizes are bytes of tensors."""

    out: str
    experts_before: int
    experts_after: int
    layers: int
    tensors_cut: int
    bytes_before: int
    bytes_after: int
    shards: int
    dry_run: bool
    width_before: int | None = None
    """Neurons per expert, if the cut makes experts narrower."""
    width_after: int | None = None
    bytes_resumed: int = 0
    """Written by an earlier killed or interrupted run, verified by hash and kept."""
    copied_by: list[str] = field(default_factory=list)
    files_copied: list[str] = field(default_factory=list)
    files_left_out: dict[str, str] = field(default_factory=dict)
    """Files of the original that the output does not have, with the reason."""
    warnings: list[str] = field(default_factory=list)
    """What is odd about the original and does not forbid a cut."""

    def __repr__(self) -> str:
        unit, size = ("GB", 1e9) if self.bytes_before >= 1e9 else ("MB", 1e6)
        sizes = f"{self.bytes_before / size:.1f} -> {self.bytes_after / size:.1f} {unit}"
        counts = f"{self.experts_after} of {self.experts_before} experts in {self.layers} layers"
        if self.width_after is not None:
            counts += f", {self.width_after} of {self.width_before} neurons"
        return f"PruneReport({self.out!r}, {counts}, {sizes})"

    def __fspath__(self) -> str:
        """The output's path, so that the report stands for the pruned model wherever a path is expected."""
        return self.out

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def write_error(exc: OSError, out: Path) -> BadInput | MissingPrerequisite:
    """The error to raise when `out` could not be written: a full disk, or anything else the system reports."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return MissingPrerequisite(
            f"the disk became full while {out} was written",
            expected="the space that was free before the run",
            actual=str(exc),
            remedy="free some space and run again; nothing was left behind",
        )
    return BadInput(
        f"{out} could not be written",
        expected="readable input and a writable place",
        actual=str(exc),
        remedy="check permissions and the disk; nothing was left behind",
    )
