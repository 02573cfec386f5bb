"""Proof that a pruned checkpoint is the original minus the dropped experts, and nothing else.

Two independent arguments. Bytes: every untouched tensor is identical, every cut tensor equals the kept rows, config
and tokenizer files are the original's. Logits: the pruned model computes what the original computes when the router
logits of the dropped experts are masked with -inf (the softmax is renormalised over the selected experts, so both
are the same function up to rounding).
Invariants: `proven` needs both; a skipped part gives `incomplete`, never a pass. Memory: two blocks of 4 MiB for the
bytes, one model at a time for the logits.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimoe import __version__
from trimoe.artifact import read_json, sha256_file, write_json
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import Piece, edited_config, plan_cut
from trimoe.errors import CheckpointError, MapError, MissingPrerequisite, TrimoeError
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.safetensors import TensorInfo, read_bytes, read_index

Progress = Callable[[int, int, str], None]
BLOCK = 4 << 20
TOLERANCE = 1e-4
_OWN_FILES = {"config.json", "expert_drop_metadata.json", "certificate.json", "trimoe.json"}


@dataclass
class Check:
    """One thing that was looked at; `failures` names tensor, layer and place."""

    name: str
    looked_at: int
    failures: list[str] = field(default_factory=list)


@dataclass
class Certificate:
    """Status is proven, refuted or incomplete. `max_logit_difference` is None when logits were not compared."""

    status: str
    base: str
    pruned: str
    map_hash: str
    checks: list[Check]
    max_logit_difference: float | None = None
    prompts: int = 0
    tokens: int = 0
    tool: str = f"trimoe {__version__}"

    @property
    def proven(self) -> bool:
        """True only if every check was made and passed."""
        return self.status == "proven"

    @property
    def failures(self) -> list[str]:
        """All failures, in order."""
        return [f for check in self.checks for f in check.failures]

    def as_json(self) -> dict[str, Any]:
        """The content of certificate.json."""
        return asdict(self)


def certify(
    base: Path | str,
    pruned: Path | str,
    *,
    drop_map: DropMap | None = None,
    prompts: list[str] | None = None,
    tolerance: float = TOLERANCE,
    logits: bool = True,
    write_to: Path | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Certify `pruned` against `base`; writes certificate.json into `pruned` (or to `write_to`).

    The map is `drop_map`, or the one in the pruned model's expert_drop_metadata.json; given both, they must agree.
    """
    original, pruned = open_checkpoint(base), Path(pruned)
    recorded = _recorded_map(pruned)
    checks = [Check("recorded map", 1)]
    if drop_map is None:
        if recorded is None:
            raise MapError(f"{pruned} records no map", expected="expert_drop_metadata.json or --map",
                           remedy="give the map with --map, or recover it with `trimoe infer-map`")  # fmt: skip
        drop_map = recorded
    elif recorded is not None and recorded.drop != drop_map.drop:
        layer = next((i for i in drop_map.drop if recorded.drop.get(i) != drop_map.drop[i]), "?")
        checks[0].failures.append(f"expert_drop_metadata.json records another map than the given one in layer {layer}")
    pieces = plan_cut(original, drop_map)
    checks += [_check_config(original, drop_map, pruned), _check_files(original.path, pruned)]
    checks += _check_tensors(original, pieces, pruned, progress)
    certificate = Certificate("refuted" if any(c.failures for c in checks) else "incomplete", original.fingerprint,
                              _fingerprint(pruned), drop_map.content_hash, checks)  # fmt: skip
    if logits and certificate.status != "refuted":
        from trimoe.cut.logits import compare_logits

        outcome = compare_logits(original, pruned, drop_map, prompts)
        check = Check("logits equal the masked original's", outcome.tokens, list(outcome.failures))
        if not outcome.max_difference <= tolerance:
            check.failures.append(f"logits differ by {outcome.max_difference:.3g}, more than {tolerance:g}")
        checks.append(check)
        certificate.status = "refuted" if check.failures else "proven"
        certificate.max_logit_difference = outcome.max_difference
        certificate.prompts, certificate.tokens = outcome.prompts, outcome.tokens
    write_json(write_to or pruned / "certificate.json", _finite(certificate.as_json()), overwrite=True)
    return certificate


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    difference = value["max_logit_difference"]
    if difference is not None and not difference < float("inf"):
        value["max_logit_difference"] = None
    return value


def _recorded_map(pruned: Path) -> DropMap | None:
    path = pruned / "expert_drop_metadata.json"
    if not path.exists():
        return None
    data = read_json(path, "drop metadata", MapError)
    try:
        return DropMap({int(k): tuple(v) for k, v in data["per_layer_drop"].items()}, int(data["original_experts"]))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise MapError(f"{path} is malformed", expected="per_layer_drop and original_experts", actual=str(exc)) from exc


def _fingerprint(pruned: Path) -> str:
    try:
        return open_checkpoint(pruned).fingerprint
    except TrimoeError:
        return "unreadable"


def _check_config(original: Checkpoint, drop_map: DropMap, pruned: Path) -> Check:
    """config.json equals the original's apart from the expert count."""
    check = Check("config.json", 1)
    expected = json.loads(edited_config(original, original.num_experts - len(drop_map.drop[0])))
    actual = read_json(pruned / "config.json", "model configuration", CheckpointError)

    def walk(one: Any, other: Any, path: str) -> None:
        if isinstance(one, dict) and isinstance(other, dict):
            for key in sorted(one.keys() | other.keys()):
                walk(one.get(key, "absent"), other.get(key, "absent"), f"{path}.{key}" if path else key)
        elif one != other or type(one) is not type(other):
            check.failures.append(f"config.json: {path} is {other!r}, expected {one!r}")

    walk(expected, actual, "")
    return check


def _check_files(base: Path, pruned: Path) -> Check:
    """Tokenizer, chat template and the other small files are the original's."""
    names = sorted(f.name for f in base.iterdir() if f.is_file() and f.suffix in (".json", ".jinja", ".model", ".txt"))
    names = [n for n in names if n not in _OWN_FILES and not n.endswith(".safetensors.index.json")]
    check = Check("tokenizer and other files", len(names))
    for name in names:
        if not (pruned / name).is_file():
            check.failures.append(f"file {name} is missing")
        elif sha256_file(base / name) != sha256_file(pruned / name):
            check.failures.append(f"file {name} differs from the original")
    return check


def _check_tensors(original: Checkpoint, pieces: list[Piece], pruned: Path, progress: Progress | None) -> list[Check]:
    untouched, cut = Check("untouched tensors byte-identical", 0), Check("cut tensors equal the kept experts", 0)
    checks = [Check("tensor list", len(pieces)), untouched, cut]
    try:
        index = read_index(pruned)
    except CheckpointError as exc:
        checks[0].failures.append(str(exc))
        return checks
    expected = {p.name: p for p in pieces}
    checks[0].failures += [f"tensor {n} is missing" for n in sorted(expected.keys() - index.keys())]
    checks[0].failures += [f"tensor {n} is not in the original" for n in sorted(index.keys() - expected.keys())]
    total, done = sum(p.nbytes for p in pieces), 0
    for name, piece in expected.items():
        info = index.get(name)
        if info is None:
            continue
        role = original.expert_tensors.get(piece.source.name)
        check = untouched if role is None else cut
        check.looked_at += 1
        if (info.dtype, info.shape) != (piece.dtype, piece.shape):
            check.failures.append(f"tensor {name} is {info.dtype} {list(info.shape)}, expected {piece.dtype} {list(piece.shape)}")
        elif (at := _first_difference(piece, info)) is not None:
            where = f"byte {at}"
            if role is not None:
                kept = piece.shape[role.axis] if role.expert is None else 1
                outer = 1
                for size in piece.shape[: role.axis]:
                    outer *= size
                position = at // max(piece.nbytes // (outer * kept), 1) % kept
                where += f", layer {role.layer}, kept expert at position {position}"
            check.failures.append(f"tensor {name} differs at {where}")
        done += piece.nbytes
        if progress is not None:
            progress(done, total, name)
    return checks


def _first_difference(piece: Piece, info: TensorInfo) -> int | None:
    """Offset of the first differing byte between a planned piece and what stands in the pruned file."""
    at = 0
    for start, end in piece.ranges:
        for block in range(start, end, BLOCK):
            length = min(BLOCK, end - block)
            one = read_bytes(piece.source, block - piece.source.start, length)
            other = read_bytes(info, at, length)
            if one != other:
                return at + next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
            at += length
    return None


def require_torch() -> None:
    """Raise `MissingPrerequisite` unless torch and transformers can be imported."""
    import importlib.util

    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise MissingPrerequisite(f"{name} is not installed", expected="the torch extra",
                                      remedy='pip install "torch==2.13.0", then pip install "trimoe[torch]"')  # fmt: skip
