"""Proof that a pruned checkpoint is the original minus the dropped experts and nothing else.

Two independent lines: bytes (every tensor, config, tokenizer; torch-free, streamed) and behaviour (fp32 logits against
the original with masked routers). The verdict is `proven`, `refuted` or `incomplete`; a check that could not run never
counts as passed. Not guaranteed: that the pruned model is any good (eval), or that the original was.
"""

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from trimoe import __version__
from trimoe.certify.certificate import (
    CERTIFICATE,
    Certificate,
    Check,
    Finding,
    MapIdentity,
    ModelIdentity,
    make_check,
    require_replaceable,
    verdict,
)
from trimoe.certify.files import check_config, check_files, check_map, read_config, recorded_map
from trimoe.certify.heal import CLAIM, HEAL_CHECK, check_heal
from trimoe.certify.infer import recover
from trimoe.certify.logits import LogitProof, check_logits, missing_software, not_run
from trimoe.certify.prompts import Conversation, load_prompts
from trimoe.certify.tensors import Index, check_cut, check_tensors, check_untouched, expected_tensors, fit_map
from trimoe.choose.dropmap import DropMap
from trimoe.errors import BadInput, CheckpointError, MapError, UsageError
from trimoe.heal.record import changed_tensors, read_heal
from trimoe.io.progress import Progress
from trimoe.io.publish import sha256_file
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.safetensors import read_index

MapSource = Literal["given", "metadata", "inferred", "unknown"]


def certify(
    base: Path | str,
    pruned: Path | str,
    *,
    map: DropMap | Path | None = None,
    prompts: Path | None = None,
    tolerance: float = 1e-4,
    logits: bool = True,
    keep_going: bool = False,
    device: str = "cpu",
    output: Path | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Check `pruned` against `base` and publish the certificate (`output`, default: certificate.json in `pruned`).

    Without `map` the recorded one is used, and without a record one inferred from the experts' bytes. The logit check
    is skipped once the bytes refute the cut, unless `keep_going`. A pruned model that is damaged is refuted; raises
    `CheckpointError` only if `base` is unusable or `pruned` is no checkpoint directory, `MapError` if the given map
    does not fit the original, `BadInput` for bad prompts or an output that cannot be written.
    """
    if not 0 < tolerance < float("inf"):
        raise UsageError("the tolerance is impossible", expected="a number above 0", actual=str(tolerance))
    original, pruned = open_checkpoint(base), _directory(pruned)
    require_replaceable(output or pruned / CERTIFICATE)
    given = DropMap.load(map) if isinstance(map, Path) else map
    given = fit_map(original, given) if given is not None else None
    conversations = load_prompts(prompts)

    index, config, readable = _read(pruned)
    if index is None or config is None:
        checks, drop_map, source = [readable], given, _source(given)
    else:
        _require_smaller(original, pruned, config)
        drop_map, source, map_check = _resolve_map(original, pruned, index, given, progress)
        checks = [readable, map_check, check_config(original, config, drop_map)]
        checks.append(check_files(original, pruned, index, drop_map))
        healed, heal_check = _heal_check(pruned, index)
        checks += _byte_checks(original, index, drop_map, healed, progress) + heal_check
    proof = _logit_proof(
        original, pruned, index, drop_map, conversations, checks, logits, keep_going, tolerance, device, progress
    )

    certificate = Certificate(
        status=verdict(checks + proof.checks),
        checks=tuple(checks + proof.checks),
        base=ModelIdentity(fingerprint=original.fingerprint, num_experts=original.num_experts),
        pruned=_identity(original, pruned, index, config),
        map=MapIdentity(sha256=drop_map.content_hash if drop_map else None, source=source),
        tolerance=tolerance,
        max_logit_difference=proof.max_difference,
        prompts=proof.prompts,
        tools=tool_versions(),
    )
    certificate.save(output or pruned / CERTIFICATE)
    return certificate


def _require_smaller(base: Checkpoint, pruned: Path, config: dict[str, Any]) -> None:
    """The original in the place of the cut would get a verdict that means nothing, in its own folder."""
    scope: Any = config
    for key in base.config_scope:
        scope = scope.get(key) if isinstance(scope, dict) else None
    count = scope.get(base.hf.config.num_experts) if isinstance(scope, dict) else None
    if type(count) is int and count > base.num_experts:
        raise UsageError(
            f"{pruned} has more experts than the original",
            expected=f"at most {base.num_experts}",
            actual=str(count),
            remedy="give the original first, then what was cut out of it",
        )


def _source(given: DropMap | None) -> MapSource:
    return "unknown" if given is None else "given"


def _directory(pruned: Path | str) -> Path:
    pruned = Path(pruned)
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


def _read(pruned: Path) -> tuple[Index | None, dict[str, Any] | None, Check]:
    """Index and config of the pruned model; damage is a finding, not an exception."""
    findings: list[Finding] = []
    index: Index | None = None
    config: dict[str, Any] | None = None
    try:
        config = read_config(pruned)
    except CheckpointError as exc:
        findings.append(Finding(subject=exc.subject, expected=exc.expected, actual=exc.actual))
    try:
        index = read_index(pruned)
    except CheckpointError as exc:
        findings.append(Finding(subject=exc.subject, expected=exc.expected, actual=exc.actual))
    detail = "config and every shard header" if not findings else "the pruned model is damaged"
    return (
        index,
        config,
        make_check("readable", "config, shard index and every shard's header are intact", detail, findings),
    )


def _resolve_map(
    base: Checkpoint, pruned: Path, index: Index, given: DropMap | None, progress: Progress | None
) -> tuple[DropMap | None, MapSource, Check]:
    """The map that the other checks use: the given one, else the recorded one, else one inferred from the bytes."""
    recorded: DropMap | None = None
    problem: BadInput | None = None
    try:
        recorded = recorded_map(pruned, base)
    except MapError as exc:
        problem = exc
    check = check_map(given, recorded, problem)
    if given is not None:
        return given, "given", check
    if recorded is not None:
        return recorded, "metadata", check
    try:
        inferred = fit_map(base, recover(base, index, progress).drop_map())
    except MapError as exc:
        finding = Finding(subject=exc.subject, expected=exc.expected, actual=exc.actual)
        return None, "unknown", make_check("map", check.claim, "no map is known", [*check.findings, finding])
    return inferred, "inferred", check


def _heal_check(pruned: Path, index: Index) -> tuple[set[str], list[Check]]:
    """The tensors that a heal record names, and the check that the record is true, which never passes."""
    try:
        record = read_heal(pruned)
    except BadInput as exc:
        finding = Finding(subject=exc.subject, expected=exc.expected, actual=exc.actual)
        return set(), [make_check(HEAL_CHECK, CLAIM, "the heal record is unusable", [finding])]
    if record is None:
        return set(), []
    return set(changed_tensors(record)), [check_heal(record, index)]


def _byte_checks(
    base: Checkpoint, index: Index, drop_map: DropMap | None, healed: set[str], progress: Progress | None
) -> list[Check]:
    if drop_map is None:
        reason = "not compared: no map is known"
        return [make_check(name, "needs a map", reason, not_run=True) for name in ("tensors", "untouched", "cut")]
    expected = expected_tensors(base, drop_map)
    return [
        check_tensors(expected, index, base.layer_of),
        check_untouched(expected, index, progress, healed),
        check_cut(expected, index, progress, healed),
    ]


def _logit_proof(
    base: Checkpoint,
    pruned: Path,
    index: Index | None,
    drop_map: DropMap | None,
    prompts: list[Conversation],
    checks: list[Check],
    wanted: bool,
    keep_going: bool,
    tolerance: float,
    device: str,
    progress: Progress | None,
) -> LogitProof:
    reason = None
    if not wanted:
        reason = "switched off"
    elif index is None or drop_map is None:
        reason = "the pruned model or its map cannot be read"
    elif verdict(checks) == "refuted" and not keep_going:
        reason = "the cut is refuted already"
    elif any(check.name == HEAL_CHECK for check in checks):
        reason = "the model was healed, so its logits differ on purpose"
    else:
        reason = missing_software()
    if reason is not None or index is None or drop_map is None:
        return LogitProof(not_run(reason or ""))
    return check_logits(base, pruned, index, drop_map, prompts, tolerance=tolerance, device=device, progress=progress)


def _identity(base: Checkpoint, pruned: Path, index: Index | None, config: dict[str, Any] | None) -> ModelIdentity:
    """What exactly was checked: the fingerprint (None for a damaged model) and each file's sha256."""
    names = {info.file.name for info in (index or {}).values()}
    names |= {p.name for p in pruned.iterdir() if p.is_file() and p.suffix in (".json", ".jinja", ".model", ".txt")}
    names -= {CERTIFICATE}
    scope: Any = config or {}
    for key in base.config_scope:
        scope = scope.get(key) if isinstance(scope, dict) else None
    count = scope.get(base.hf.config.num_experts) if isinstance(scope, dict) else None
    try:
        fingerprint = open_checkpoint(pruned).fingerprint
    except CheckpointError:
        fingerprint = None
    return ModelIdentity(
        fingerprint=fingerprint,
        num_experts=count if type(count) is int else None,
        files={name: sha256_file(pruned / name) for name in sorted(names)},
    )


def tool_versions() -> dict[str, str]:
    """Versions of what took part in the proof."""
    packages = [p for p in ("numpy", "torch", "transformers", "tokenizers") if find_spec(p) is not None]
    return {"trimoe": __version__, **{p: metadata.version(p) for p in packages}}
