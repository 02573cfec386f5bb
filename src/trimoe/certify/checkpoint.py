"""An original and a pruned safetensors checkpoint, as certify and infer-map compare them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimoe.certify.certificate import Check, Finding, ModelIdentity, make_check
from trimoe.certify.compare import Compared
from trimoe.certify.expected import Expected, Index, expected_tensors, fit_map
from trimoe.certify.files import check_config, check_files, read_config, recorded_map
from trimoe.certify.heal import CLAIM, HEAL_CHECK, check_heal
from trimoe.certify.infer_neurons import find_neurons
from trimoe.certify.loading import why_not
from trimoe.certify.logit_proof import LogitProof, LogitSettings
from trimoe.certify.logits import CLAIMS, check_logits
from trimoe.certify.pair import ModelPair
from trimoe.certify.recovery import ExpertGroup, Recovery, Slice, recover, stack_slices, whole
from trimoe.certify.scaling import factor_between
from trimoe.certify.tools import tool_versions
from trimoe.choose.dropmap import DropMap
from trimoe.errors import BadInput, CheckpointError
from trimoe.heal.manifest import changed_tensors, read_heal
from trimoe.io.canonical import sha256_file
from trimoe.io.progress import Progress
from trimoe.io.watch import Watch
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.files import files_read
from trimoe.model.neurons import cannot_narrow
from trimoe.model.safetensors import TensorInfo
from trimoe.model.shards import read_index


class CheckpointPair(ModelPair):
    """Both are directories. Raises `CheckpointError` if the original is unusable, or the pruned one not a directory of
    safetensors."""

    readable_claim = "config, shard index and every shard's header are intact"
    readable_detail = "config and every shard header"
    logit_claims = CLAIMS
    original: Checkpoint

    def __init__(self, original: Path, pruned: Path, device: str = "cpu") -> None:
        self.pruned, self.device = _directory(pruned), device
        self.watch = Watch(f"{original} or {pruned}", "compared", lambda: [*files_read(original), *files_read(pruned)])
        self.original = open_checkpoint(original)
        self.index = {}
        self._config: dict[str, Any] | None = None
        self._was_healed = False

    def read(self) -> list[CheckpointError]:
        """Open config.json and every shard's header."""
        errors = []
        try:
            self._config = read_config(self.pruned)
        except CheckpointError as exc:
            errors.append(exc)
        try:
            notes: list[str] = []
            self.index = read_index(self.pruned, notes)
            errors += [CheckpointError(f"its shards and its index disagree: {note}") for note in notes]
        except CheckpointError as exc:
            errors.append(exc)
        return errors

    def stated_experts(self) -> int | None:
        """The expert count of the pruned model's config.json."""
        return self._stated(self.original.hf.config.num_experts)

    def _stated(self, key: str | None) -> int | None:
        """An integer of the pruned model's config.json, beside its expert count."""
        scope: Any = self._config or {}
        for part in self.original.config_scope:
            scope = scope.get(part) if isinstance(scope, dict) else None
        count = scope.get(key) if isinstance(scope, dict) else None
        return count if type(count) is int else None

    def fit(self, drop_map: DropMap) -> DropMap:
        """Layers without experts may be absent from the map or drop nothing."""
        return fit_map(self.original, drop_map)

    def recorded(self) -> DropMap | None:
        """From expert_drop_metadata.json."""
        return recorded_map(self.pruned, self.original)

    def recover(self, progress: Progress | None) -> Recovery:
        """Stacked experts by slices, single ones by tensors; neurons where the experts are narrower."""
        recovery = recover_experts(self.original, self.index, progress)
        key = self.original.hf.config.expert_width
        width, before = self._stated(key), self.original.setting(key)
        if width is not None and before is not None and width < before and cannot_narrow(self.original) is None:
            found = find_neurons(self.original, self.index, recovery.order, width)
            recovery.narrow, recovery.narrow_problems = found.narrow, found.problems
        return recovery

    def check_settings(self, drop_map: DropMap | None) -> list[Check]:
        """config.json, and the files besides weights."""
        config = check_config(self.original, self._config or {}, drop_map)
        return [config, check_files(self.original, self.pruned, self.index, drop_map)]

    def expected(self, drop_map: DropMap) -> dict[str, Expected]:
        """By name: untouched, stacked and cut, or one expert's under its new number."""
        return expected_tensors(self.original, drop_map)

    def layer_of(self, tensor: str) -> int | None:
        """By the family's layer prefix."""
        return self.original.layer_of(tensor)

    def read_heal(self) -> list[Check]:
        """A healed model is never proven: a true record makes the certificate incomplete, a false one refutes it."""
        try:
            record = read_heal(self.pruned)
        except BadInput as exc:
            self._was_healed = True
            return [make_check(HEAL_CHECK, CLAIM, "the heal record is unusable", [Finding.of(exc)])]
        if record is None:
            return []
        self._was_healed = True
        self.healed = frozenset(changed_tensors(record))
        return [check_heal(record, self.index)]

    def factor(self, want: Expected, have: TensorInfo) -> float | None:
        """Of tensors of floats."""
        return factor_between(want, have)

    def why_no_logits(self) -> str | None:
        """A healed model's logits differ; otherwise torch, transformers and weights that load as floats are needed."""
        healed = "the model was healed, so its logits differ on purpose"
        return healed if self._was_healed else why_not(self.original.path)

    def check_logits(self, drop_map: DropMap, settings: LogitSettings, progress: Progress | None) -> LogitProof:
        """In fp32 with transformers."""
        return check_logits(
            self.original, self.pruned, self.index, drop_map, settings, device=self.device, progress=progress
        )

    def weights(self) -> list[Path]:
        """The shards."""
        return sorted({info.file for info in self.index.values()})

    def identity(self, compared: Compared) -> ModelIdentity:
        """Shards, and every other file except documents."""
        try:
            fingerprint = open_checkpoint(self.pruned).fingerprint
        except CheckpointError:
            fingerprint = None
        return ModelIdentity(
            fingerprint=fingerprint,
            num_experts=self.stated_experts(),
            files={
                file.relative_to(self.pruned).as_posix(): compared.sha256.get(file) or sha256_file(file)
                for file in files_read(self.pruned)
            },
        )

    def tools(self) -> dict[str, str]:
        """trimoe, and the packages that the logit check uses."""
        return tool_versions("numpy", "torch", "transformers", "tokenizers")


def _directory(pruned: Path) -> Path:
    if not pruned.is_dir():
        raise CheckpointError(
            f"{pruned} is not a checkpoint directory",
            expected="the directory of the pruned model",
            actual="a file" if pruned.exists() else "it does not exist",
            remedy="check the path",
        )
    if not (pruned / "config.json").exists() and not any(pruned.glob("*.safetensors*")):
        raise CheckpointError(
            f"{pruned} is not a safetensors checkpoint",
            expected="config.json and model*.safetensors",
            remedy="give the directory of the pruned model",
        )
    return pruned


def recover_experts(base: Checkpoint, pruned: Index, progress: Progress | None = None) -> Recovery:
    """The original expert at every position of every layer of `pruned`."""
    layers = {layer: list(_groups(base, pruned, layer)) for layer in base.moe_layers}
    return recover(base.num_experts, layers, progress)


def _groups(base: Checkpoint, pruned: Index, layer: int) -> Iterator[ExpertGroup]:
    """The expert tensors of a layer by name template: one stack, or one tensor per expert in ascending order.

    Drafting blocks are left out: their drops follow those of the last layer.
    """
    groups: dict[str, list[ExpertTensor]] = {}
    for name, tensor in base.expert_tensors.items():
        if tensor.layer == layer and base.layer_of(name) == layer:
            groups.setdefault(tensor.template, []).append(tensor)
    for template, group in sorted(groups.items()):
        size = sum(tensor.info.nbytes for tensor in group)
        yield ExpertGroup(
            template, size, list(_originals(group)), list(_candidates(group[0], pruned, base.num_experts))
        )


def _originals(group: list[ExpertTensor]) -> Iterator[tuple[int, Slice]]:
    """(expert, its slice) of a group."""
    if group[0].expert is None:
        yield from enumerate(stack_slices(group[0].info, group[0].axis))
    for tensor in group:
        if tensor.expert is not None:
            yield tensor.expert, whole(tensor.info)


def _candidates(like: ExpertTensor, pruned: Index, most: int) -> Iterator[tuple[int, Slice]]:
    """(position, slice) of what the pruned model has under the names of a group."""
    if like.expert is None:
        info = pruned.get(like.template)
        if info is not None and len(info.shape) > like.axis:
            yield from enumerate(stack_slices(info, like.axis))
        return
    for position in range(most):
        info = pruned.get(like.renamed(position))
        if info is not None:
            yield position, whole(info)
