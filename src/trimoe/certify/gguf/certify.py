"""Proof that a pruned GGUF model is the original minus the dropped experts and nothing else.

The same two lines as for safetensors: bytes (every tensor, every metadata key; streamed) and behaviour (logits of
llama.cpp against the original with masked routers, see certify_gguf_logits). The verdict is `proven`, `refuted` or
`incomplete`; a check that could not run never counts as passed.
"""

from pathlib import Path
from typing import Any

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
from trimoe.certify.files import check_map, map_of_record
from trimoe.certify.gguf.infer import recover_gguf
from trimoe.certify.gguf.logits import MaskedRun, check_logits_gguf, not_run_gguf
from trimoe.certify.gguf.tensors import check_metadata, check_reference, expected_gguf, fit, gguf_file
from trimoe.certify.logits import LogitProof
from trimoe.certify.prompts import load_prompts
from trimoe.certify.tensors import Index, check_cut, check_tensors, check_untouched
from trimoe.choose.dropmap import DropMap
from trimoe.cut.gguf.prune import record_of
from trimoe.cut.record import read_record
from trimoe.errors import BadInput, CheckpointError, MapError, UsageError
from trimoe.io.progress import Progress
from trimoe.io.publish import sha256_file
from trimoe.model.gguf.file import Gguf, open_gguf
from trimoe.model.gguf.model import GgufModel, open_gguf_model


def certify_gguf(
    base: Path | str,
    pruned: Path | str,
    *,
    map: DropMap | Path | None = None,
    reference: Path | None = None,
    run: MaskedRun | None = None,
    cannot_run: str = "no llama.cpp was given",
    prompts: Path | None = None,
    tolerance: float = 1e-4,
    logits: bool = True,
    keep_going: bool = False,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Check `pruned` against `base` and publish the certificate (`output`, default: see `certificate_path`).

    `run` runs a model with masked routers (None: the behaviour is not checked, for the reason `cannot_run`).
    `reference` is a GGUF made another way, from the pruned checkpoint: its tensors must be the same bytes. A pruned
    file that is damaged is refuted; raises `CheckpointError` if `base` is unusable or `pruned` is no GGUF file,
    `MapError` if the given map does not fit, `BadInput` for bad prompts or an output that cannot be written.
    """
    if not 0 <= tolerance < float("inf"):
        raise UsageError("the tolerance is impossible", expected="a number from 0 on", actual=str(tolerance))
    where = output or certificate_path(Path(pruned))
    require_replaceable(where)
    original, pruned = open_gguf_model(gguf_file(Path(base))), gguf_file(Path(pruned))
    given = DropMap.load(map) if isinstance(map, Path) else map
    given = fit(original, given) if given is not None else None
    conversations = load_prompts(prompts)

    cut, readable = _read(pruned)
    drop_map: DropMap | None = given
    source: Any = "given" if given is not None else "unknown"
    checks = [readable]
    if cut is not None:
        drop_map, source, map_check = _resolve_map(original, cut, given, progress)
        checks += [map_check, check_metadata(original, cut, drop_map)]
        checks += _byte_checks(original, cut.index, drop_map, progress)
        if reference is not None:
            checks.append(check_reference(open_gguf(gguf_file(reference)), cut, progress))
    reason = None
    if not logits:
        reason = "switched off"
    elif cut is None or drop_map is None:
        reason = "the pruned model or its map cannot be read"
    elif verdict(checks) == "refuted" and not keep_going:
        reason = "the cut is refuted already"
    elif run is None:
        reason = cannot_run
    if reason is not None or cut is None or drop_map is None or run is None:
        proof = LogitProof(not_run_gguf(reason or ""))
    else:
        proof = check_logits_gguf(original, cut, drop_map, conversations, run, tolerance, progress)

    certificate = Certificate(
        status=verdict(checks + proof.checks),
        checks=tuple(checks + proof.checks),
        base=ModelIdentity(fingerprint=original.fingerprint, num_experts=original.num_experts),
        pruned=_identity(cut, pruned, original),
        map=MapIdentity(sha256=drop_map.content_hash if drop_map else None, source=source),
        tolerance=tolerance,
        max_logit_difference=proof.max_difference,
        prompts=proof.prompts,
        tools={"trimoe": __version__, **({"llama.cpp": run.version} if run is not None else {})},
    )
    certificate.save(where)
    return certificate


def certificate_path(pruned: Path) -> Path:
    """PRUNED.gguf.certificate.json, or certificate.json in a directory of parts."""
    return pruned / CERTIFICATE if pruned.is_dir() else pruned.with_name(f"{pruned.name}.{CERTIFICATE}")


def _read(pruned: Path) -> tuple[Gguf | None, Check]:
    """The pruned file's headers; damage is a finding, not an exception."""
    claim = "the headers of the file and all its parts are intact and fit their length"
    try:
        return open_gguf(pruned), make_check("readable", claim, claim)
    except CheckpointError as exc:
        finding = Finding(subject=exc.subject, expected=exc.expected, actual=exc.actual)
        return None, make_check("readable", claim, "the pruned model is damaged", [finding])


def _resolve_map(
    base: GgufModel, cut: Gguf, given: DropMap | None, progress: Progress | None
) -> tuple[DropMap | None, Any, Check]:
    """The map that the other checks use: the given one, else the recorded one, else one inferred from the bytes."""
    recorded: DropMap | None = None
    problem: BadInput | None = None
    try:
        record = record_of(cut.path)
        recorded = map_of_record(read_record(record), base) if record is not None else None
    except MapError as exc:
        problem = exc
    check = check_map(given, recorded, problem)
    if given is not None:
        return given, "given", check
    if recorded is not None:
        return recorded, "metadata", check
    try:
        return fit(base, recover_gguf(base, cut.index, progress).drop_map()), "inferred", check
    except MapError as exc:
        finding = Finding(subject=exc.subject, expected=exc.expected, actual=exc.actual)
        return None, "unknown", make_check("map", check.claim, "no map is known", [*check.findings, finding])


def _byte_checks(base: GgufModel, index: Index, drop_map: DropMap | None, progress: Progress | None) -> list[Check]:
    if drop_map is None:
        reason = "not compared: no map is known"
        return [make_check(name, "needs a map", reason, not_run=True) for name in ("tensors", "untouched", "cut")]
    expected = expected_gguf(base, drop_map)
    return [
        check_tensors(expected, index),
        check_untouched(expected, index, progress),
        check_cut(expected, index, progress),
    ]


def _identity(cut: Gguf | None, pruned: Path, base: GgufModel) -> ModelIdentity:
    """What exactly was checked: fingerprint (None for a damaged model) and each file's sha256."""
    try:
        fingerprint = open_gguf_model(pruned).fingerprint
    except CheckpointError:
        fingerprint = None
    files = [file.path for file in cut.files] if cut is not None else [pruned]
    count = cut.integer(base.count_key) if cut is not None else None
    return ModelIdentity(
        fingerprint=fingerprint, num_experts=count, files={f.name: sha256_file(f) for f in sorted(files)}
    )
