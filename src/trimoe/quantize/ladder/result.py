"""The result of a ladder: its files with sizes, types and smoke-test verdicts.

`as_dict` is the content of ladder.json and of `trimoe quantize --json`; its keys are a contract.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.quantize.ladder.smoke import Departure


@dataclass(frozen=True)
class SmokeVerdict:
    """How far a file departs from its base, and whether that is near enough.

    `failed` says why the file failed, None if it passed. `unchecked` says why the verdict means nothing, None if it
    counts.
    """

    departure: Departure
    failed: str | None
    unchecked: str | None

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {**self.departure.as_json(), "failed": self.failed, "unchecked": self.unchecked}


@dataclass(frozen=True)
class MapSummary:
    """What llama.cpp makes of a tier's tensor-type map: numbers of lines.

    `unmatched` lines name no tensor, `kept` ones a tensor whose type llama.cpp does not change; `fell_back` counts
    tensors that got another type because of their row length.
    """

    sha256: str | None
    unmatched: int
    kept: int
    fell_back: int

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values, under the keys of ladder.json."""
        return {
            "sha256": self.sha256,
            "no such tensor": self.unmatched,
            "kept by llama.cpp": self.kept,
            "fell back": self.fell_back,
        }


@dataclass(frozen=True)
class TierFile:
    """One finished GGUF file.

    `types` maps tensor types to bytes; `imatrix` is the sha256 of the imatrix it was made with; `reused` says that an
    earlier run had finished it.
    """

    tier: str
    path: Path
    file_bytes: int
    sha256: str
    bits_per_weight: float
    types: dict[str, int]
    imatrix: str | None
    fallback_tensors: int
    reused: bool
    smoke: SmokeVerdict | None = None
    map: MapSummary | None = None

    def as_dict(self, *, reused: bool = True) -> dict[str, Any]:
        """The file as JSON values; without `reused` only what is the same in every run."""
        return {
            "tier": self.tier,
            "file": self.path.name,
            "bits_per_weight": self.bits_per_weight,
            "types": self.types,
            **({"smoke": self.smoke.as_dict()} if self.smoke else {}),
            "file_bytes": self.file_bytes,
            "sha256": self.sha256,
            "imatrix": self.imatrix,
            "fallback_tensors": self.fallback_tensors,
            **({"kept": self.reused} if reused else {}),
            **({"map": self.map.as_dict()} if self.map else {}),
        }


@dataclass(frozen=True)
class ImatrixFacts:
    """The imatrix in use. `tokens` by class, if it was made here; `thin_layers`: layer -> share of starved experts."""

    file: str
    sha256: str
    tokens: dict[str, int] | None
    thin_layers: dict[int, float]
    unknown: tuple[str, ...] = ()
    """Entries for tensors that the model does not have; llama-quantize ignores them."""

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "tokens": self.tokens,
            "thin_layers": {str(layer): share for layer, share in self.thin_layers.items()},
        } | ({"unknown_entries": list(self.unknown)} if self.unknown else {})


@dataclass(frozen=True)
class BaseFacts:
    """The unquantized GGUF file that the tiers are made from."""

    file: str
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {"file": self.file, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class Ladder:
    """A finished ladder. `llamacpp` is the record of the build, or its version."""

    model: str
    base: BaseFacts
    imatrix: ImatrixFacts | None
    llamacpp: dict[str, Any]
    files: tuple[TierFile, ...]

    @property
    def findings(self) -> list[str]:
        """What a reader must know; empty if every file passed."""
        return findings(self.files)

    def as_dict(self, *, reused: bool = True) -> dict[str, Any]:
        """The ladder as JSON values; without `reused` only what is the same in every run."""
        return {
            "model": self.model,
            "base": self.base.as_dict(),
            "imatrix": self.imatrix and self.imatrix.as_dict(),
            "llamacpp": self.llamacpp,
            "files": [file.as_dict(reused=reused) for file in self.files],
            "findings": self.findings,
        }


def findings(files: Sequence[TierFile]) -> list[str]:
    """Files that fail or escape the smoke test, and files that are equal to another tier."""
    smoked = [(file.tier, file.smoke) for file in files if file.smoke is not None]
    found = [f"{tier} failed the smoke test: {smoke.failed}" for tier, smoke in smoked if smoke.failed]
    found += [
        f"{tier} was not checked: {smoke.unchecked}" for tier, smoke in smoked if smoke.unchecked and not smoke.failed
    ]
    hashes: dict[str, str] = {}
    for file in files:
        if file.sha256 in hashes:
            found.append(f"{file.tier} has the same bytes as {hashes[file.sha256]}")
        hashes.setdefault(file.sha256, file.tier)
    return found


def with_verdict(file: TierFile, failed: str | None, fault: str | None) -> TierFile:
    """The file with its smoke-test verdict; `fault` is why its base fails the test itself."""
    assert file.smoke is not None
    unchecked = fault and f"the base itself fails: {fault}"
    return replace(file, smoke=SmokeVerdict(file.smoke.departure, failed, unchecked))
