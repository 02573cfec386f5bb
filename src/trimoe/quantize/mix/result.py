"""The result of a measured mix: the chosen types, predicted and measured KL divergence, and the file.

KL divergences are in nats per token. `as_dict` is the content of NAME.mix.json and of `trimoe quantize --mix --json`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from trimoe.quantize.ladder.result import BaseFacts, ImatrixFacts, TierFile, findings


@dataclass(frozen=True)
class GroupChoice:
    """The choice for one group of tensors: `type` was asked for, `stored` are the types after fallbacks."""

    type: str
    stored: list[str]
    bytes: int
    kld: float


@dataclass(frozen=True)
class Forecast:
    """What was chosen within `target_bytes`, and what it should cost.

    The interval of the prediction is over chunks of the text. `gap` bounds how much cheaper another choice could be; 0
    is proven optimal.
    """

    target_bytes: int
    file_bytes: int
    predicted_kld: float
    predicted_kld_interval: list[float]
    gap: float
    costs_sha256: str
    groups: dict[str, GroupChoice]

    def as_dict(self) -> dict[str, Any]:
        """The forecast as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Mix:
    """A finished mix. `identity` is everything that the measurements depend on."""

    model: str
    base: BaseFacts
    identity: dict[str, Any]
    imatrix: ImatrixFacts | None
    forecast: Forecast
    measured_kld: float
    file: TierFile

    @property
    def findings(self) -> list[str]:
        """What a reader must know; empty if the file passed."""
        return findings([self.file])

    def as_dict(self, *, reused: bool = True) -> dict[str, Any]:
        """The mix as JSON values; without `reused` only what is the same in every run."""
        return {
            "model": self.model,
            "base": self.base.as_dict(),
            "identity": self.identity,
            "imatrix": self.imatrix and {"file": self.imatrix.file, "sha256": self.imatrix.sha256},
            **self.forecast.as_dict(),
            "measured_kld": self.measured_kld,
            "files": [self.file.as_dict(reused=reused)],
            "findings": self.findings,
        }
