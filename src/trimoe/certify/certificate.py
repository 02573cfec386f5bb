"""The certificate: which checks ran, what they found, and which models it is bound to. Deterministic JSON.

Invariants: a certificate is `proven` only if every check ran and passed; one failed check makes it `refuted`; a check
that could not run makes it `incomplete`, never a pass. No times, paths or machine names: the same two models and the
same map give the same certificate. It is bound to the exact files by their sha256 (`pruned.files`).
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec

from trimoe.errors import BadInput, TrimoeError
from trimoe.io.canonical import sha256_file
from trimoe.io.datafile import Data, convert, read
from trimoe.io.jsonfile import write_json
from trimoe.model.files import WRITTEN_LATER, files_read

CERTIFICATE = "certificate.json"
MAX_FINDINGS = 20

Outcome = Literal["passed", "failed", "not_run"]
Status = Literal["proven", "refuted", "incomplete"]
MapSource = Literal["given", "metadata", "inferred", "unknown"]


class Finding(Data, frozen=True, kw_only=True):
    """One place where the pruned model is not what it should be. `offset` is a byte offset inside the tensor."""

    subject: str
    expected: str = ""
    actual: str = ""
    tensor: str | None = None
    layer: int | None = None
    position: int | None = None
    """Expert position in the pruned model."""
    expert: int | None = None
    """Expert id in the original model that belongs at this position."""
    offset: int | None = None

    @classmethod
    def of(cls, error: TrimoeError) -> "Finding":
        """An error about the pruned model, as a finding."""
        return cls(subject=error.subject, expected=error.expected, actual=error.actual)

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    def __str__(self) -> str:
        facts = [f"{label} {text}" for label, text in (("expected", self.expected), ("found", self.actual)) if text]
        return self.subject + (": " + ", ".join(facts) if facts else "")


class Check(Data, frozen=True, kw_only=True):
    """One part of the proof. `findings` holds the first `MAX_FINDINGS`, `findings_total` counts all."""

    name: str
    claim: str
    """What holds if this check passed."""
    status: Outcome
    detail: str
    findings: tuple[Finding, ...] = ()
    findings_total: int = 0
    numbers: dict[str, int | float] = msgspec.field(default_factory=dict)


class ModelIdentity(Data, frozen=True, kw_only=True):
    """Which model. `files` (name -> sha256) is filled for the pruned model: exactly these files were checked."""

    fingerprint: str | None
    num_experts: int | None
    files: dict[str, str] = msgspec.field(default_factory=dict)


class MapIdentity(Data, frozen=True, kw_only=True):
    """Which experts were dropped, and where the map came from: the caller, the model's own metadata, or inference."""

    sha256: str | None
    source: MapSource
    width: int | None = None
    """Neurons that each kept expert keeps, where the map makes experts narrower."""
    width_before: int | None = None


class PromptIdentity(Data, frozen=True, kw_only=True):
    """The prompts of the logit check: sha256 of their token ids, and their number."""

    sha256: str
    count: int
    tokens: int


class Certificate(Data, frozen=True, kw_only=True):
    """The verdict over all checks.

    >>> proof = trimoe.Certificate.load("small/certificate.json")
    >>> proof.status, proof.proven
    ('proven', True)
    >>> proof.check("logits").status
    'passed'
    """

    version: Literal[1] = 1
    status: Status
    checks: tuple[Check, ...]
    base: ModelIdentity
    pruned: ModelIdentity
    map: MapIdentity
    tolerance: float
    max_logit_difference: float | None = None
    prompts: PromptIdentity | None = None
    logit_method: str | None = None
    """How the models were run for the logit check, such as `layer by layer`; None if they were not."""
    tools: dict[str, str]

    @property
    def proven(self) -> bool:
        """True only for a complete proof: every check ran and passed."""
        return self.status == "proven"

    def check(self, name: str) -> Check:
        """The check called `name`; `KeyError` if there is none."""
        return {c.name: c for c in self.checks}[name]

    def as_dict(self) -> dict[str, Any]:
        """The content of certificate.json."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Publish as JSON. Replaces an older certificate (an outdated proof must not outlive a new verdict) and no
        other file. Raises `BadInput`."""
        path = Path(path)
        require_replaceable(path)
        try:
            write_json(path, self.as_dict(), overwrite=True)
        except OSError as exc:
            raise BadInput(
                f"certificate {path} cannot be written",
                expected="a writable place",
                actual=str(exc),
                remedy="give another file with --output",
            ) from exc

    def stale(self, model: str | os.PathLike[str]) -> list[Finding]:
        """Where the files of `model` are not those that were checked: changed, missing or new ones.

        Empty if the certificate is about exactly these files. Reads and hashes all of them (about 1 GB/s and thread).
        `model` is a checkpoint directory, a GGUF file or a directory of its parts.
        """
        place = Path(model)
        folder = place if place.is_dir() else place.parent
        wanted = {name: hashed for name, hashed in self.pruned.files.items() if name not in WRITTEN_LATER}
        there = [folder / name for name in wanted if (folder / name).is_file()]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = dict(
                zip((p.relative_to(folder).as_posix() for p in there), pool.map(sha256_file, there), strict=True)
            )
        return self.stale_hashes(model, found)

    def stale_hashes(self, model: str | os.PathLike[str], found: Mapping[str, str]) -> list[Finding]:
        """As `stale`, by hashes that are known: `found` is sha256 by name."""
        place = Path(model)
        findings = [] if self.pruned.files else [Finding(subject="the certificate names no files")]
        for name, wanted in sorted(self.pruned.files.items()):
            if name in WRITTEN_LATER or found.get(name) == wanted:
                continue
            actual = f"sha256 {found[name][:16]}" if name in found else "no such file"
            findings.append(
                Finding(
                    subject=f"{name} is not the file that was checked", expected=f"sha256 {wanted[:16]}", actual=actual
                )
            )
        if (place / "config.json").is_file():  # else GGUF files, which lie among others
            new = {file.relative_to(place).as_posix() for file in files_read(place)} - self.pruned.files.keys()
            findings += [Finding(subject=f"{name} is not covered by the certificate") for name in sorted(new)]
        return findings

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Certificate":
        """Read a certificate. Raises `BadInput` for anything else."""
        what = f"certificate {path}"
        remedy = "give a file that `trimoe certify` wrote"
        return convert(read(Path(path), what, format="json", remedy=remedy), cls, what, remedy=remedy)

    def __repr__(self) -> str:
        passed = sum(check.status == "passed" for check in self.checks)
        experts = f"{self.pruned.num_experts} of {self.base.num_experts} experts"
        return f"<Certificate {self.status}: {passed} of {len(self.checks)} checks passed, {experts}>"


def certificate_path(pruned: Path) -> Path:
    """The default place: certificate.json in a directory, PRUNED.gguf.certificate.json beside a file."""
    return pruned / CERTIFICATE if pruned.is_dir() else pruned.with_name(f"{pruned.name}.{CERTIFICATE}")


def require_replaceable(path: Path) -> None:
    """Raise `BadInput` if there is a file at `path` that is not a certificate."""
    if not path.exists():
        return
    try:
        Certificate.load(path)
    except BadInput as exc:
        raise BadInput(
            f"{path} exists and is not a certificate",
            expected="a new name, or an older certificate",
            remedy="choose another --output",
        ) from exc


def make_check(
    name: str,
    claim: str,
    detail: str,
    findings: list[Finding] | None = None,
    *,
    not_run: bool = False,
    numbers: dict[str, int | float] | None = None,
) -> Check:
    """A check that failed if there are findings, was not run if `not_run`, and passed otherwise."""
    found = findings or []
    status: Outcome = "failed" if found else "not_run" if not_run else "passed"
    return Check(
        name=name,
        claim=claim,
        status=status,
        detail=detail,
        findings=tuple(found[:MAX_FINDINGS]),
        findings_total=len(found),
        numbers=numbers or {},
    )


def with_numbers(check: Check, numbers: dict[str, int | float]) -> Check:
    """The check with more numbers."""
    return msgspec.structs.replace(check, numbers={**check.numbers, **numbers})


def verdict(checks: list[Check]) -> Status:
    """Refuted beats incomplete beats proven."""
    outcomes = {c.status for c in checks}
    return "refuted" if "failed" in outcomes else "incomplete" if "not_run" in outcomes else "proven"
