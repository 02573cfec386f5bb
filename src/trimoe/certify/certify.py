"""Proof that a pruned model is the original minus the dropped experts and nothing else, for safetensors and GGUF.

Two independent lines: bytes (every tensor and all settings; torch-free, streamed) and behaviour (logits against the
original with masked routers). The verdict is `proven`, `refuted` or `incomplete`; a check that could not run never
counts as passed. Not guaranteed: that the pruned model is any good (eval), or that the original was.
"""

import os
from collections.abc import Callable
from pathlib import Path

from trimoe.certify.certificate import (
    Certificate,
    Check,
    Finding,
    MapIdentity,
    MapSource,
    ModelIdentity,
    certificate_path,
    make_check,
    require_replaceable,
    verdict,
)
from trimoe.certify.checkpoint import CheckpointPair
from trimoe.certify.compare import Compared, compare_bytes
from trimoe.certify.files import check_map
from trimoe.certify.gguf.pair import GgufPair
from trimoe.certify.loading import why_not
from trimoe.certify.logit_proof import LogitProof, LogitSettings
from trimoe.certify.pair import ModelPair
from trimoe.certify.prompts import load_prompts
from trimoe.certify.tensors import check_cut, check_tensors, check_untouched
from trimoe.choose.dropmap import DropMap
from trimoe.errors import BadInput, MapError, UsageError
from trimoe.io.progress import Progress
from trimoe.model.device import require_device
from trimoe.model.gguf.file import find_gguf

PathLike = str | os.PathLike[str]


def certify(
    original: PathLike,
    pruned: PathLike,
    *,
    map: DropMap | PathLike | None = None,
    prompts: PathLike | None = None,
    tolerance: float = 1e-4,
    logits: bool = True,
    keep_going: bool = False,
    reference: PathLike | None = None,
    llamacpp: PathLike | None = None,
    device: str = "cpu",
    output: PathLike | None = None,
    warn: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Check `pruned` against `original` and publish the certificate at `output` (default: see `certificate_path`).

    Both are checkpoint directories or both GGUF models. Without `map` (a map or its file) the recorded one is used, and
    without a record one inferred from the experts' bytes. `tolerance` is the largest allowed difference of a logit; 0
    means exactly equal. The logit check is skipped if `logits` is False, and once the bytes refute the cut unless
    `keep_going`. `prompts` is a file (see `load_prompts`); `device` is where checkpoints run. For GGUF, `reference` is
    the same cut made another way, which must have the same bytes, and `llamacpp` the directory of the programs.

    `warn` is told before the work if the logits cannot be compared, so that the verdict cannot be `proven`.

    A damaged pruned model is refuted. Raises `CheckpointError` if a file of either model is written to meanwhile (no
    certificate is written then), if `original` is unusable or `pruned` not a model of
    the same format, `MapError` if the given map does not fit the original, `UsageError` for options that contradict
    each other, `BadInput` for bad prompts or an output that cannot be written.

    >>> trimoe.certify(model, small)
    <Certificate proven: 9 of 9 checks passed, 24 of 32 experts>
    """
    if warn is not None and logits and (reason := obstacle(original)) is not None:
        warn(f"the logit check will not run: {reason}. The verdict will be NOT CERTIFIED, even if every byte is right.")
    if logits:
        require_device(device)
    settings = LogitSettings(float(tolerance), load_prompts(_path(prompts)), logits, keep_going)
    pair = open_pair(original, pruned, logits=logits, reference=reference, llamacpp=llamacpp, device=device)
    where = _path(output) or certificate_path(Path(pruned))
    require_replaceable(where)
    given = None if map is None else pair.fit(map if isinstance(map, DropMap) else DropMap.load(Path(map)))

    errors = pair.read()
    detail = "the pruned model is damaged" if errors else pair.readable_detail
    checks = [make_check("readable", pair.readable_claim, detail, [Finding.of(error) for error in errors])]
    drop_map, compared = given, Compared()
    source: MapSource = "unknown" if given is None else "given"
    if not errors:
        pair.require_smaller()
        drop_map, source, map_check = _resolve_map(pair, given, progress)
        more, compared = _byte_checks(pair, drop_map, progress)
        checks += [map_check, *more]
    pair.watch.require_unchanged()
    proof = _logit_proof(pair, None if errors else drop_map, checks, settings, progress)

    certificate = Certificate(
        status=verdict(checks + proof.checks),
        checks=tuple(checks + proof.checks),
        base=ModelIdentity(fingerprint=pair.original.fingerprint, num_experts=pair.original.num_experts),
        pruned=pair.identity(compared),
        map=_map_identity(drop_map, source),
        tolerance=settings.tolerance,
        max_logit_difference=proof.max_difference,
        prompts=proof.prompts,
        logit_method=proof.method,
        tools=pair.tools(),
    )
    pair.watch.require_unchanged()
    certificate.save(where)
    return certificate


def obstacle(original: PathLike) -> str | None:
    """Why `certify` cannot compare logits of this checkpoint, known before any work; None if it can, and for GGUF."""
    path = Path(original)
    return why_not(path) if (path / "config.json").is_file() and find_gguf(path) is None else None


def open_pair(
    original: PathLike,
    pruned: PathLike,
    *,
    logits: bool,
    reference: PathLike | None = None,
    llamacpp: PathLike | None = None,
    device: str = "cpu",
) -> ModelPair:
    """The two models in the format of the original. Raises `CheckpointError`, or `UsageError` for options of the other
    format."""
    if find_gguf(Path(original)) is not None:
        pair = GgufPair(Path(original), Path(pruned), _path(reference))
        if logits:
            pair.use_llamacpp(_path(llamacpp))
        return pair
    if reference is not None or llamacpp is not None:
        raise UsageError(
            "a reference and a llama.cpp are for GGUF models",
            expected="--reference and --llamacpp only with a GGUF model",
            actual=f"{original} is not a GGUF model",
        )
    return CheckpointPair(Path(original), Path(pruned), device)


def _map_identity(drop_map: DropMap | None, source: MapSource) -> MapIdentity:
    narrow = drop_map.narrow if drop_map else None
    return MapIdentity(
        sha256=drop_map.content_hash if drop_map else None,
        source=source,
        width=narrow.kept if narrow else None,
        width_before=narrow.width if narrow else None,
    )


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _resolve_map(
    pair: ModelPair, given: DropMap | None, progress: Progress | None
) -> tuple[DropMap | None, MapSource, Check]:
    """The map that the other checks use: the given one, else the recorded one, else one inferred from the bytes."""
    recorded: DropMap | None = None
    problem: BadInput | None = None
    try:
        recorded = pair.recorded()
    except MapError as exc:
        problem = exc
    check = check_map(given, recorded, problem)
    if given is not None:
        return given, "given", check
    if recorded is not None:
        return recorded, "metadata", check
    try:
        inferred = pair.fit(pair.recover(progress).drop_map())
    except MapError as exc:
        findings = [*check.findings, Finding.of(exc)]
        return None, "unknown", make_check("map", check.claim, "no map is known", findings)
    return inferred, "inferred", check


def _byte_checks(pair: ModelPair, drop_map: DropMap | None, progress: Progress | None) -> tuple[list[Check], Compared]:
    """Settings, then tensors, then what only this format has; and what the pass over the weights found."""
    settings, healed = pair.check_settings(drop_map), pair.read_heal()
    if drop_map is None:
        reason = "not compared: no map is known"
        tensors = [make_check(name, "needs a map", reason, not_run=True) for name in ("tensors", "untouched", "cut")]
        compared = Compared()
    else:
        expected = pair.expected(drop_map)
        compared = compare_bytes(expected, pair.index, pair.weights(), progress, pair.healed)
        tensors = [
            check_tensors(expected, pair.index, pair.layer_of),
            check_untouched(expected, pair.index, compared, pair.healed),
            check_cut(expected, pair.index, compared, pair.healed),
        ]
    return [*settings, *tensors, *healed, *pair.more_checks(progress)], compared


def _logit_proof(
    pair: ModelPair,
    drop_map: DropMap | None,
    checks: list[Check],
    settings: LogitSettings,
    progress: Progress | None,
) -> LogitProof:
    """Compare logits, or say why not. `drop_map` is None if the pruned model or its map cannot be read."""
    if not settings.wanted:
        return pair.logit_claims.not_run("switched off")
    if drop_map is None:
        return pair.logit_claims.not_run("the pruned model or its map cannot be read")
    if verdict(checks) == "refuted" and not settings.keep_going:
        return pair.logit_claims.not_run("the cut is refuted already")
    if (reason := pair.why_no_logits()) is not None:
        return pair.logit_claims.not_run(reason)
    return pair.check_logits(drop_map, settings, progress)
