"""An original and a pruned model in one file format: what certify and infer-map need to know about both.

`CheckpointPair` and `GgufPair` implement it. The order of checks and the verdict are in `certify` and `infer`, once.
"""

from abc import ABC, abstractmethod
from pathlib import Path

from trimoe.certify.certificate import Check, ModelIdentity
from trimoe.certify.compare import Compared
from trimoe.certify.expected import Expected, Index
from trimoe.certify.logit_proof import LogitClaims, LogitProof, LogitSettings
from trimoe.certify.recovery import Recovery
from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError, UsageError
from trimoe.io.progress import Progress
from trimoe.io.watch import Watch
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.gguf.model import GgufModel
from trimoe.model.safetensors import TensorInfo


class ModelPair(ABC):
    """The original is opened and valid. `read` opens the pruned model, whose damage is a finding and not an error."""

    readable_claim: str
    readable_detail: str
    logit_claims: LogitClaims
    original: Checkpoint | GgufModel
    pruned: Path
    index: Index
    """Tensors of the pruned model; empty until `read`."""
    healed: frozenset[str] = frozenset()
    """Tensors that a heal record says were changed; the byte comparison leaves them out."""
    watch: Watch
    """Made before the first byte of either model is read; asked after each part of the proof."""

    @abstractmethod
    def read(self) -> list[CheckpointError]:
        """Open the pruned model; returns what is wrong with it."""

    @abstractmethod
    def stated_experts(self) -> int | None:
        """The expert count that the pruned model states, if it is a number."""

    def require_smaller(self) -> None:
        """Guards against swapped arguments: the verdict would mean nothing, and be written beside the original."""
        count = self.stated_experts()
        if count is not None and count > self.original.num_experts:
            raise UsageError(
                f"{self.pruned} has more experts than the original",
                expected=f"at most {self.original.num_experts}",
                actual=str(count),
                remedy="give the original first, then the pruned model",
            )

    @abstractmethod
    def fit(self, drop_map: DropMap) -> DropMap:
        """`drop_map` over exactly the layers with experts. Raises `MapError` if it cannot cut the original."""

    @abstractmethod
    def recorded(self) -> DropMap | None:
        """The map that the pruned model records, or None. Raises `MapError` for an unusable record."""

    @abstractmethod
    def recover(self, progress: Progress | None) -> Recovery:
        """Which original expert is at each position of the pruned model, by hashes of the experts' bytes."""

    @abstractmethod
    def check_settings(self, drop_map: DropMap | None) -> list[Check]:
        """The checks of everything besides tensors: configuration and files, or metadata keys."""

    @abstractmethod
    def expected(self, drop_map: DropMap) -> dict[str, Expected]:
        """Every tensor that the pruned model must have, by name."""

    def layer_of(self, tensor: str) -> int | None:
        """The layer to name in findings about an unexpected tensor, if its name tells."""
        return None

    def read_heal(self) -> list[Check]:
        """The check of a heal record, if there is one; sets `healed`."""
        return []

    def more_checks(self, progress: Progress | None) -> list[Check]:
        """Checks that only this format has, after those of the tensors."""
        return []

    def factor(self, want: Expected, have: TensorInfo) -> float | None:
        """The factor if a changed tensor is the original's times one number; None if not, or not looked for."""
        return None

    @abstractmethod
    def why_no_logits(self) -> str | None:
        """Why logits cannot be compared here, or None."""

    @abstractmethod
    def check_logits(self, drop_map: DropMap, settings: LogitSettings, progress: Progress | None) -> LogitProof:
        """Compare the logits with those of the original with its dropped experts masked."""

    @abstractmethod
    def weights(self) -> list[Path]:
        """The files with the pruned model's tensors, as far as they could be opened."""

    @abstractmethod
    def identity(self, compared: Compared) -> ModelIdentity:
        """Exactly which pruned model was checked: fingerprint (None for a damaged one) and each file's sha256.

        The hashes of weights are those of `compared`, so they are of the bytes that were compared."""

    @abstractmethod
    def tools(self) -> dict[str, str]:
        """Versions of everything that took part in the proof."""
