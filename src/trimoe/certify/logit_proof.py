"""The logit check as data: its settings, its result, and why it could not run. The same for both formats."""

from dataclasses import dataclass, field

from trimoe.certify.certificate import Check, PromptIdentity, make_check
from trimoe.certify.prompts import Conversation, load_prompts
from trimoe.errors import UsageError


class CannotCheck(Exception):
    """Internal: why the logit check has no result. Becomes a check that was not run, never a pass."""


@dataclass(frozen=True)
class LogitSettings:
    """How to compare logits. `tolerance` is the largest allowed difference; 0 means exactly equal."""

    tolerance: float = 1e-4
    prompts: list[Conversation] = field(default_factory=lambda: load_prompts(None))
    wanted: bool = True
    keep_going: bool = False
    """Compare logits even if the bytes already refute the cut."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise UsageError(
                "the tolerance is not possible",
                expected="a finite number from 0 (exactly equal) upwards",
                actual=str(self.tolerance),
                remedy="leave --tolerance out for the default",
            )


@dataclass(frozen=True)
class LogitProof:
    """Result of the logit check: `loading` and `logits`, the largest difference, and which prompts were compared."""

    checks: list[Check]
    max_difference: float | None = None
    prompts: PromptIdentity | None = None
    method: str | None = None
    """How the models were run; None if they were not."""


@dataclass(frozen=True)
class LogitClaims:
    """What the two checks claim, for one format."""

    loading: str
    logits: str

    def not_run(self, reason: str, loading: Check | None = None) -> LogitProof:
        """A result without a comparison; `loading` is that check if it ran."""
        return LogitProof(
            [
                loading or make_check("loading", self.loading, f"loading not checked: {reason}", not_run=True),
                make_check("logits", self.logits, f"logits not checked: {reason}", not_run=True),
            ]
        )
