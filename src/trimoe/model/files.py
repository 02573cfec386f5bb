"""Files of a checkpoint directory: which are copied besides the weights, whether they changed, the shard index."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.io.manifest import MANIFEST

METADATA = "expert_drop_metadata.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt", ".npz", ".onnx", ".ot"}
_OURS = {"config.json", METADATA, MANIFEST, "certificate.json"}
# The card describes the original, not the cut; attributes steer a git repository; neither is read by a loader.
_NOT_COPIED = {"README.md", ".gitattributes", ".gitignore"}
_TEMPLATES = "additional_chat_templates"
_SMALL_FILE = 256 << 20

Stamps = dict[str, tuple[int, int, int]]
"""File name -> (size, mtime, ctime), times in nanoseconds. Any write changes them."""
Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> (type, shape)."""


def file_stamp(file: Path) -> tuple[int, int, int]:
    """Size, time of the last write and time of the last change of the inode."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def source_stamps(model: Path | str) -> Stamps:
    """Stamps of every weights file of a checkpoint directory."""
    return {file.name: file_stamp(file) for file in sorted(Path(model).glob("*.safetensors"))}


def require_unchanged(model: Path | str, before: Stamps, now: Stamps, done: str) -> None:
    """Raise `CheckpointError` if a weights file was written to since `before`. `done` is the participle for the message
    ("cut", "healed")."""
    if now != before:
        raise CheckpointError(
            f"{model} was modified while it was {done}",
            expected="a source that does not change",
            remedy="wait until nothing writes to it and run again",
        )


def require_planned(found: Headers, wanted: Headers) -> None:
    """Raise `CheckpointError` naming the first tensor whose written header is not the planned one."""
    if found != wanted:
        names = sorted(found.keys() | wanted.keys())
        wrong = next(name for name in names if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"tensor {wrong} was not written as planned",
            expected=str(wanted.get(wrong)),
            actual=str(found.get(wrong)),
            remedy="run again; check the disk",
        )


def other_files(directory: Path) -> tuple[list[Path], list[str]]:
    """Tokenizer, templates, processor, licence and other small files to copy; and the names of those left out."""
    if broken := sorted(file.name for file in directory.iterdir() if file.is_symlink() and not file.exists()):
        raise CheckpointError(
            f"{directory / broken[0]} is a broken link",
            expected="every file of the model",
            remedy="download the file, or remove the link",
        )
    candidates = [file for file in directory.iterdir() if file.is_file()]
    if (directory / _TEMPLATES).is_dir():
        candidates += [file for file in (directory / _TEMPLATES).iterdir() if file.is_file()]
    files, left_out = [], []
    for file in sorted(candidates):
        ours = file.name in _OURS or file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.suffix in WEIGHTS or file.name.endswith(".index.json") or file.name in _NOT_COPIED or ours:
            left_out += [] if ours else [file.name]
        elif file.stat().st_size > _SMALL_FILE:
            left_out.append(file.name)
        else:
            files.append(file)
    return files, left_out


def copy_files(files: list[Path], source: Path, target: Path) -> None:
    """Copy files of the directory `source` to the same relative places in `target`."""
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)


def write_index(folder: Path, shard_of: Mapping[str, str], total: int) -> None:
    """Write model.safetensors.index.json as Hugging Face does. `shard_of` maps tensors to files, `total` is their
    bytes."""
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
    write_indented(folder / INDEX, body)


def write_indented(path: Path, value: Any) -> None:
    """Write JSON inside a directory that is not yet published: two spaces of indent, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
