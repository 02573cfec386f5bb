"""An original and a pruned GGUF model, as certify and infer-map compare them."""

from collections.abc import Iterator
from pathlib import Path

from trimoe.certify.certificate import Check, ModelIdentity
from trimoe.certify.compare import Compared
from trimoe.certify.expected import Expected, Index
from trimoe.certify.files import map_of_record
from trimoe.certify.gguf.logits import CLAIMS, MaskedRun, check_logits_gguf
from trimoe.certify.gguf.tensors import check_metadata, check_reference, expected_gguf, fit, gguf_file
from trimoe.certify.logit_proof import LogitProof, LogitSettings
from trimoe.certify.pair import ModelPair
from trimoe.certify.recovery import ExpertGroup, Recovery, recover, stack_slices
from trimoe.certify.tools import tool_versions
from trimoe.choose.dropmap import DropMap
from trimoe.cut.gguf.history import find_record
from trimoe.cut.history import read_record
from trimoe.errors import CheckpointError, MissingPrerequisite
from trimoe.io.canonical import sha256_file
from trimoe.io.progress import Progress
from trimoe.io.watch import Watch
from trimoe.llamacpp.masked import MaskedLogits
from trimoe.llamacpp.tools import locate
from trimoe.model.gguf.file import Gguf, open_gguf, parts
from trimoe.model.gguf.model import GgufModel, open_gguf_model


class GgufPair(ModelPair):
    """Each is a .gguf file, any part of a split model, or a directory of its parts.

    `reference` is a GGUF made another way, from the pruned checkpoint: its tensors must be the same bytes. Raises
    `CheckpointError` if the original is unusable or the pruned one not a GGUF file.
    """

    readable_claim = "the headers of the file and all its parts are intact and fit their length"
    readable_detail = readable_claim
    logit_claims = CLAIMS
    original: GgufModel

    def __init__(self, original: Path, pruned: Path, reference: Path | None = None) -> None:
        first, self.pruned = gguf_file(original), gguf_file(pruned)
        files = [*parts(first), *parts(self.pruned), *(parts(gguf_file(reference)) if reference else [])]
        record = find_record(self.pruned)
        self.watch = Watch(f"{original} or {pruned}", "compared", lambda: files if record is None else [*files, record])
        self.original = open_gguf_model(first)
        self.index = {}
        self._reference = reference
        self._cut: Gguf | None = None
        self._run: MaskedRun | None = None
        self._cannot_run = "llama.cpp was not looked for"

    def use_llamacpp(self, folder: Path | None) -> None:
        """Find the program that computes masked logits: in `folder`, or where `trimoe llamacpp install` puts it."""
        try:
            self._run = MaskedLogits(locate(folder))
        except MissingPrerequisite as exc:
            self._cannot_run = f"{exc.subject} ({exc.remedy})"

    def read(self) -> list[CheckpointError]:
        """Open the headers of all parts."""
        try:
            self._cut = open_gguf(self.pruned)
        except CheckpointError as exc:
            return [exc]
        self.index = self._cut.index
        return []

    @property
    def cut(self) -> Gguf:
        """The pruned model. Only after `read` found no errors."""
        assert self._cut is not None
        return self._cut

    def stated_experts(self) -> int | None:
        """The metadata key that counts experts."""
        return None if self._cut is None else self._cut.integer(self.original.count_key)

    def fit(self, drop_map: DropMap) -> DropMap:
        """A multi-token-prediction layer drops what the last ordinary layer drops."""
        return fit(self.original, drop_map)

    def recorded(self) -> DropMap | None:
        """From the file beside the model, or in its directory."""
        record = find_record(self.cut.path)
        return None if record is None else map_of_record(read_record(record), self.original)

    def recover(self, progress: Progress | None) -> Recovery:
        """Every tensor is a stack."""
        layers = {layer: list(_groups(self.original, self.index, layer)) for layer in self.original.moe_layers}
        return recover(self.original.num_experts, layers, progress)

    def check_settings(self, drop_map: DropMap | None) -> list[Check]:
        """The metadata keys."""
        return [check_metadata(self.original, self.cut, drop_map)]

    def expected(self, drop_map: DropMap) -> dict[str, Expected]:
        """By name: untouched, or the kept experts on the slowest axis."""
        return expected_gguf(self.original, drop_map)

    def more_checks(self, progress: Progress | None) -> list[Check]:
        """The comparison with the reference."""
        if self._reference is None:
            return []
        return [check_reference(open_gguf(gguf_file(self._reference)), self.cut, progress)]

    def why_no_logits(self) -> str | None:
        """llama.cpp is needed."""
        return self._cannot_run if self._run is None else None

    def check_logits(self, drop_map: DropMap, settings: LogitSettings, progress: Progress | None) -> LogitProof:
        """With llama.cpp."""
        assert self._run is not None, "why_no_logits"
        return check_logits_gguf(self.original, self.cut, drop_map, settings, self._run, progress)

    def weights(self) -> list[Path]:
        """All parts."""
        return [] if self._cut is None else sorted(file.path for file in self._cut.files)

    def identity(self, compared: Compared) -> ModelIdentity:
        """All parts."""
        try:
            fingerprint = open_gguf_model(self.pruned).fingerprint
        except CheckpointError:
            fingerprint = None
        hashes = {file.name: compared.sha256.get(file) or sha256_file(file) for file in self.weights() or [self.pruned]}
        return ModelIdentity(fingerprint=fingerprint, num_experts=self.stated_experts(), files=hashes)

    def tools(self) -> dict[str, str]:
        """trimoe, and the llama.cpp that was found."""
        return tool_versions() | ({} if self._run is None else {"llama.cpp": self._run.version})


def _groups(base: GgufModel, pruned: Index, layer: int) -> Iterator[ExpertGroup]:
    for name, tensor in base.expert_tensors.items():
        if tensor.layer != layer:
            continue
        candidates = []
        info = pruned.get(name)
        count = info.shape[tensor.axis] if info is not None and len(info.shape) > tensor.axis else 0
        if info is not None and count and info.nbytes % count == 0:  # else not whole bytes per expert: unrecognised
            candidates = stack_slices(info, tensor.axis)
        originals = stack_slices(tensor.info, tensor.axis)
        yield ExpertGroup(tensor.role, tensor.info.nbytes, list(enumerate(originals)), list(enumerate(candidates)))
