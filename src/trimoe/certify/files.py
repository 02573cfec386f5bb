"""The checks outside the tensors of a checkpoint: config.json, tokenizer and templates, stray weights, drop record.

Invariants: every file that a prune copies is compared, except documents (cards, licences, pictures), which may differ;
every difference names the file or key.
"""

import copy
import json
from pathlib import Path
from typing import Any

from trimoe.certify.certificate import Check, Finding, make_check
from trimoe.certify.expected import fit_map, kept_count
from trimoe.certify.settings import changed_patterns, in_original_numbers, without_dropped
from trimoe.choose.dropmap import DropMap
from trimoe.cut.config import PARAMS
from trimoe.cut.history import map_from, read_record, steps
from trimoe.cut.renumber import FILES, SETTINGS
from trimoe.errors import BadInput, CheckpointError, MapError
from trimoe.io.canonical import sha256_file
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.files import (
    INDEX,
    METADATA,
    READ_BY_LOADERS,
    WEIGHTS,
    WRITTEN_LATER,
    is_document,
    walk,
    without_experts,
)
from trimoe.model.gguf.model import GgufModel
from trimoe.model.safetensors import TensorInfo, read_header

_OURS = {METADATA, MANIFEST, "config.json", *WRITTEN_LATER}


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as an object. Raises `CheckpointError`, also for a key given twice: readers disagree which value
    counts."""
    config = read_json(directory / "config.json", "model configuration", CheckpointError, unique_keys=True)
    if not isinstance(config, dict):
        raise CheckpointError(f"{directory}/config.json is not a JSON object", expected="a Hugging Face config.json")
    return config


def check_config(base: Checkpoint, pruned: dict[str, Any], drop_map: DropMap | None) -> Check:
    """The pruned config is the original's with the new expert count, and with new expert numbers where quantization
    settings name experts. Without a map any count is accepted."""
    try:
        return _check_config(base, pruned, drop_map)
    except RecursionError as exc:
        raise CheckpointError(
            "config.json is nested too deeply to be compared",
            expected="a model's configuration",
            remedy="inspect the file",
        ) from exc


def _check_config(base: Checkpoint, pruned: dict[str, Any], drop_map: DropMap | None) -> Check:
    key = ".".join((*base.config_scope, base.hf.config.num_experts))
    kept = None if drop_map is None else kept_count(drop_map)
    counts: set[str] = set()
    want, have = copy.deepcopy(base.config), copy.deepcopy(pruned)
    names = (base.hf.config.num_experts, *base.hf.config.num_experts_also)
    for prefix, scope in (("", want), ("text_config.", want.get("text_config"))):
        own = prefix.rstrip(".") == ".".join(base.config_scope)
        if not isinstance(scope, dict):
            continue
        for name in names:
            # The count may be given in both places, and loaders read either.
            if name in scope and (own or scope[name] == base.num_experts):
                scope[name] = kept
                counts.add(prefix + name)
    widths = _set_width(want, base, drop_map)
    findings: list[Finding] = []
    if drop_map is not None:
        for where, (one, two) in {
            "": (want, have),
            "text_config.": (want.get("text_config"), have.get("text_config")),
        }.items():
            for name in SETTINGS:
                if isinstance(one, dict) and isinstance(two, dict) and name in one and name in two:
                    findings += _settings_findings(f"config.json: {where}{name}", one[name], two[name], base, drop_map)
                    del one[name], two[name]
    findings = [
        Finding(subject=f"config.json: {path} is not what it should be", expected=expected, actual=actual)
        for path, expected, actual in _json_differences(want, have)
        if not (path in counts and kept is None)
    ] + findings
    detail = (
        f"only {key} differs from the original: {base.num_experts} -> {kept}{widths}"
        if not findings
        else f"{len(findings)} keys differ"
    )
    also = " and the width set to that of the narrower ones" if widths else ""
    claim = f"config.json is the original's with {key} set to the number of kept experts{also}"
    return make_check("config", claim, detail, findings)


def _set_width(want: dict[str, Any], base: Checkpoint, drop_map: DropMap | None) -> str:
    """Set the width in the expected config.json where the map makes experts narrower; the change in words."""
    key, narrow = base.hf.config.expert_width, drop_map.narrow if drop_map else None
    if narrow is None or key is None:
        return ""
    new = {key: (narrow.width, narrow.kept)}
    shared = base.hf.narrow.shared_count if base.hf.narrow else None
    if shared is not None and (count := base.setting(shared)):
        new[shared] = count, count * narrow.width // narrow.kept
    for scope in (want, want.get("text_config")):
        for name, (before, after) in new.items():
            if isinstance(scope, dict) and scope.get(name) == before:
                scope[name] = after
    return "".join(f", {name}: {before} -> {after}" for name, (before, after) in new.items())


def _settings_findings(place: str, want: Any, have: Any, base: Checkpoint, drop_map: DropMap) -> list[Finding]:
    """Quantization settings that do not select the same modules as the original's."""
    wanted, found_there = without_dropped(want, base, drop_map), in_original_numbers(have, base, drop_map)
    found = [
        Finding(
            subject=f"{path} is not what it should be", expected=expected, actual=f"{actual}, in the original's numbers"
        )
        for path, expected, actual in _json_differences(wanted, found_there, place)
    ]
    if not found:
        found = [
            Finding(subject=f"{place}: {text} does not select the same experts as in the original")
            for text in changed_patterns(want, have, base, drop_map)
        ]
    return found


def _json_differences(want: Any, have: Any, path: str = "") -> list[tuple[str, str, str]]:
    if isinstance(want, dict) and isinstance(have, dict):
        found = []
        for key in sorted(want.keys() | have.keys()):
            where = f"{path}.{key}" if path else str(key)
            if key not in have:
                found.append((where, _short(want[key]), "the key is missing"))
            elif key not in want:
                found.append((where, "no such key", _short(have[key])))
            else:
                found.extend(_json_differences(want[key], have[key], where))
        return found
    # Compared as text, because 1, 1.0 and true are equal in Python but not to a loader.
    same = json.dumps(want, sort_keys=True) == json.dumps(have, sort_keys=True)
    return [] if same else [(path, _short(want), _short(have))]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def check_files(base: Checkpoint, pruned: Path, pruned_index: dict[str, TensorInfo], drop_map: DropMap | None) -> Check:
    """Every file of the original is in the pruned model, identical, or is named as left out with the reason.

    The files are counted here, from the original's directory and its folders, and not by what `prune` decides to copy.
    Left out may be weights that no index names (with experts in them, or in another format); documents may differ. No
    second set of weights may lie in the pruned model.
    """
    originals, copies = _files(base.path, base.index), _files(pruned, pruned_index)
    findings, left_out, compared = [], [], []
    for name in sorted(originals.keys() | copies.keys()):
        one, two = originals.get(name), copies.get(name)
        reason = _may_be_missing(one, base) if one is not None else ""
        if two is None and reason:
            left_out.append(f"{name} ({reason})")
        elif two is None:
            findings.append(Finding(subject=f"file {name} is missing", expected="a copy of the original's"))
        elif two.suffix in WEIGHTS or two.name.endswith(".index.json"):
            if one is None or reason or sha256_file(one) != sha256_file(two):
                # A loader may prefer such a file to the one that was compared.
                findings.append(
                    Finding(
                        subject=f"file {name} holds weights that are not part of the model",
                        expected="only the model's shards",
                    )
                )
            compared.append(name)
        elif one is None:
            findings.append(Finding(subject=f"file {name} is extra", expected="no such file, the original has none"))
        else:
            compared.append(name)
            # These count or number experts: a plain copy of the original's may be wrong.
            if name in (*FILES, PARAMS) or sha256_file(one) != sha256_file(two):
                findings += _file_findings(name, one, two, base, drop_map)
    findings += _header_findings(base, pruned, {info.file.name for info in pruned_index.values()})
    claim = "every other file of the original is there and identical, except documents and what is named as left out"
    detail = f"{len(compared)} files: {', '.join(compared) or 'none'}"
    detail += f"; left out: {', '.join(left_out)}" if left_out else ""
    detail += "".join(f"; of the original: {note}" for note in base.notes)
    return make_check("files", claim, detail, findings)


def _may_be_missing(file: Path, base: Checkpoint) -> str:
    """Why a pruned model need not have this file of the original; empty if it must."""
    if file.suffix == ".safetensors":
        return "" if without_experts(file, base.index) else "weights that are not in the index"
    if file.suffix in WEIGHTS or file.name.endswith(".index.json"):
        return "weights in another format, or an index of such weights"
    return ""


def _header_findings(base: Checkpoint, pruned: Path, shards: set[str]) -> list[Finding]:
    """Metadata in the shard headers: the same entries as in the original, or format pt."""
    originals = [read_header(file)[1] for file in sorted({info.file for info in base.index.values()})]
    known = {item for metadata in originals for item in metadata.items()} | {("format", "pt")}
    findings = []
    for name in sorted(shards):
        metadata = read_header(pruned / name)[1]
        for key, value in sorted(metadata.items()):
            if (key, value) not in known:
                findings.append(
                    Finding(
                        subject=f"the header of {name} says {key[:40]}",
                        actual=value[:80],
                        expected="what the original's headers say",
                    )
                )
        if "format" not in metadata and any("format" in one for one in originals):
            findings.append(Finding(subject=f"the header of {name} does not say its format", expected="format pt"))
    return findings


def _file_findings(name: str, one: Path, two: Path, base: Checkpoint, drop_map: DropMap | None) -> list[Finding]:
    """The findings about a file that differs: none if it holds quantization settings that select the same modules."""
    if name in FILES and drop_map is not None:
        try:
            want, have = (read_json(p, "quantization settings", CheckpointError) for p in (one, two))
        except CheckpointError as exc:
            return [Finding(subject=exc.subject, actual=exc.actual)]
        return _settings_findings(name, want, have, base, drop_map)
    if name == PARAMS and drop_map is not None:
        return _params_findings(one, two, base, drop_map)
    if sha256_file(one) == sha256_file(two):
        return []
    return [
        Finding(
            subject=f"file {name} differs from the original",
            expected=f"sha256 {sha256_file(one)[:16]}",
            actual=f"sha256 {sha256_file(two)[:16]}",
        )
    ]


def _params_findings(one: Path, two: Path, base: Checkpoint, drop_map: DropMap) -> list[Finding]:
    """Mistral's params.json: the original's with its expert count replaced."""
    try:
        want, have = (read_json(p, "model parameters", CheckpointError) for p in (one, two))
    except CheckpointError as exc:
        return [Finding(subject=exc.subject, actual=exc.actual)]
    if isinstance(want, dict) and isinstance(want.get("moe"), dict) and "num_experts" in want["moe"]:
        want["moe"]["num_experts"] = kept_count(drop_map)
    return [
        Finding(subject=f"{PARAMS}: {path} is not what it should be", expected=expected, actual=actual)
        for path, expected, actual in _json_differences(want, have)
    ]


def _files(directory: Path, index: dict[str, TensorInfo]) -> dict[str, Path]:
    """Every file below a directory by relative name, except shards, their index, documents and trimoe's own records."""
    shards = {info.file.name for info in index.values()}
    found = {path.relative_to(directory).as_posix(): path for path in walk(directory, {})}
    return {
        name: path
        for name, path in found.items()
        if name not in _OURS
        and name not in shards
        and not (name == INDEX and index)
        and not is_document(path)
        and (path.name[0] != "." or path.suffix in READ_BY_LOADERS)
    }


def recorded_map(pruned: Path, base: Checkpoint) -> DropMap | None:
    """The map from `base` to the pruned model that expert_drop_metadata.json records; None without that file.

    For a model that was pruned several times, `base` may be the original or any state in between. Raises `MapError` if
    the record contradicts itself or does not fit `base`.
    """
    if not (pruned / METADATA).exists():
        return None
    return map_of_record(read_record(pruned), base)


def map_of_record(record: dict[str, Any], base: Checkpoint | GgufModel) -> DropMap:
    """The map from `base` in the content of expert_drop_metadata.json. Raises `MapError` like `recorded_map`."""
    width = base.setting(base.hf.config.expert_width) if isinstance(base, Checkpoint) else None
    found = map_from(record, base.num_experts, width)
    if found is None:
        raise MapError(
            f"{METADATA} has wrong expert counts",
            expected=f"a cut of {base.num_experts} experts",
            actual=", ".join(str(step.num_experts) for step in steps(record)),
        )
    return fit_map(base, found)


def check_map(given: DropMap | None, recorded: DropMap | None, problem: BadInput | None) -> Check:
    """The recorded map is the given one. A missing record is not a defect of the model."""
    claim = f"{METADATA} records the map that the other checks used"
    if problem is not None:
        return make_check(
            "map",
            claim,
            "the recorded map is unusable",
            [Finding(subject=problem.subject, expected=problem.expected, actual=problem.actual)],
        )
    if recorded is None:
        source = "the given map" if given is not None else "a map inferred from the experts' bytes"
        return make_check("map", claim, f"no {METADATA}; the other checks use {source}")
    if given is None:
        return make_check("map", claim, "no map was given; the other checks use the recorded one")
    findings = []
    for layer in sorted(given.drop.keys() | recorded.drop.keys()):
        want, have = set(given.drop.get(layer, ())), set(recorded.drop.get(layer, ()))
        if want != have:
            findings.append(
                Finding(
                    subject=f"{METADATA}: layer {layer} does not drop what the given map drops",
                    layer=layer,
                    expected=f"also {sorted(want - have)}",
                    actual=f"instead {sorted(have - want)}",
                )
            )
    if given.narrow != recorded.narrow:
        findings.append(
            Finding(
                subject=f"{METADATA} does not record the neurons that the given map keeps",
                expected="none removed"
                if given.narrow is None
                else f"{given.narrow.kept} of each expert, as in the map",
                actual="none removed" if recorded.narrow is None else f"{recorded.narrow.kept} of each expert",
            )
        )
    return make_check(
        "map", claim, "recorded and given map are equal" if not findings else f"{len(findings)} layers differ", findings
    )
