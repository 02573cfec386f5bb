"""The certificate: what was checked, what was found, and what it is bound to. Pure data, deterministic JSON.

Invariants: a certificate is `proven` only if every check ran and passed; one failed check makes it `refuted`; a check
that could not run makes it `incomplete`, never a pass. No times, paths or machine names: the same two models and the
same map give the same certificate. It is bound to the exact files by their sha256 (`pruned.files`).
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimoe.errors import BadInput
from trimoe.io.publish import read_json, write_json

CERTIFICATE = "certificate.json"
MAX_FINDINGS = 20

Outcome = Literal["passed", "failed", "not_run"]
Status = Literal["proven", "refuted", "incomplete"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(_Record):
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

    def __str__(self) -> str:
        facts = [f"{label} {text}" for label, text in (("expected", self.expected), ("found", self.actual)) if text]
        return self.subject + (": " + ", ".join(facts) if facts else "")


class Check(_Record):
    """One part of the proof. `findings` holds the first ones, `findings_total` counts all."""

    name: str
    claim: str
    """What holds if this check passed."""
    status: Outcome
    detail: str
    findings: tuple[Finding, ...] = ()
    findings_total: int = 0
    numbers: dict[str, int | float] = Field(default_factory=dict)


class ModelIdentity(_Record):
    """Which model. `files` (name -> sha256) is filled for the pruned model: exactly these files were checked."""

    fingerprint: str | None
    num_experts: int | None
    files: dict[str, str] = Field(default_factory=dict)


class MapIdentity(_Record):
    """Which experts were dropped, and how we know: the given map, the model's own metadata, or inference."""

    sha256: str | None
    source: Literal["given", "metadata", "inferred", "unknown"]


class PromptIdentity(_Record):
    """The prompts of the logit check."""

    sha256: str
    count: int
    tokens: int


class Certificate(_Record):
    """The verdict over all checks."""

    version: Literal[1] = 1
    status: Status
    checks: tuple[Check, ...]
    base: ModelIdentity
    pruned: ModelIdentity
    map: MapIdentity
    tolerance: float
    max_logit_difference: float | None = None
    prompts: PromptIdentity | None = None
    tools: dict[str, str]

    @property
    def passed(self) -> bool:
        """True only for a complete proof."""
        return self.status == "proven"

    def check(self, name: str) -> Check:
        """The check called `name`; `KeyError` if there is none."""
        return {c.name: c for c in self.checks}[name]

    def save(self, path: Path) -> None:
        """Publish as JSON, replacing an older certificate (a stale proof must not outlive a new verdict) and no other
        file."""
        require_replaceable(path)
        try:
            write_json(path, self.model_dump(mode="json"), overwrite=True)
        except OSError as exc:
            raise BadInput(
                f"certificate {path} cannot be written",
                expected="a writable place",
                actual=str(exc),
                remedy="give another file with --output",
            ) from exc

    @classmethod
    def load(cls, path: Path) -> "Certificate":
        """Read a certificate; raises `BadInput` for anything else."""
        data: Any = read_json(path, "certificate")
        try:
            return cls.model_validate(data)
        except ValidationError as exc:
            raise BadInput(f"{path} is not a certificate", actual=str(exc)[:300]) from exc


def require_replaceable(path: Path) -> None:
    """`BadInput` if there is a file at `path` that is no certificate."""
    if not path.exists():
        return
    try:
        Certificate.load(path)
    except BadInput as exc:
        raise BadInput(
            f"{path} exists and is no certificate",
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


def verdict(checks: list[Check]) -> Status:
    """Refuted beats incomplete beats proven."""
    outcomes = {c.status for c in checks}
    return "refuted" if "failed" in outcomes else "incomplete" if "not_run" in outcomes else "proven"
