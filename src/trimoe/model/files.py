"""Files of a checkpoint directory other than the weights: which to copy, whether they changed, and the shard index."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.io.manifest import MANIFEST
from trimoe.io.watch import Stamp, Watch, stamp
from trimoe.model.safetensors import TensorInfo, read_header

METADATA = "expert_drop_metadata.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt", ".npz", ".onnx", ".ot"}
_OURS = {"config.json", METADATA, MANIFEST, "certificate.json"}
READ_BY_LOADERS = {".json", ".jinja", ".py", ".model", ".txt"}  # hidden files count if a loader could read them
WRITTEN_LATER = {"certificate.json", "README.numbers.json"}  # trimoe adds these to a finished model
_CARDS = ("readme", "license", "notice", "use_policy")  # without suffix or with .txt
_DOCUMENTS = {".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".html"}
# No loader reads these: the model card describes the original, and the git files belong to its repository.
_NOT_COPIED = {"README.md", ".gitattributes", ".gitignore"}
_SMALL_FILE = 256 << 20

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> (type, shape)."""


def weight_stamps(model: Path | str) -> dict[str, Stamp]:
    """The stamp of each safetensors file in a checkpoint directory, by file name."""
    return {file.name: stamp(file) for file in sorted(Path(model).glob("*.safetensors"))}


def files_read(directory: Path) -> list[Path]:
    """Every file below a directory that a check or a loader reads: all except documents, certificates and hidden files
    that no loader reads."""
    return sorted(
        path
        for path in (walk(directory, {}) if directory.is_dir() else ())
        if path.name not in WRITTEN_LATER
        and not is_document(path)
        and (path.name[0] != "." or path.suffix in READ_BY_LOADERS)
    )


def is_document(file: Path) -> bool:
    """Whether a file is a card, a licence or a picture, which no loader reads."""
    return file.suffix in _DOCUMENTS or (file.name.lower().startswith(_CARDS) and file.suffix in ("", ".txt"))


def watch_directory(model: Path | str, done: str) -> Watch:
    """Detects changes to the files that loaders read from a checkpoint directory. `done` is the participle of `Watch`.

    Only files that exist now are watched. Files added later are ignored, because they may be results."""
    folder = Path(model)
    found = walk(folder, {}) if folder.is_dir() else ()  # opening the checkpoint reports a missing directory
    read = {".safetensors", *READ_BY_LOADERS}
    files = [file for file in found if file.suffix in read and file.name not in WRITTEN_LATER]
    return Watch(model, done, lambda: files)


def require_planned(found: Headers, wanted: Headers) -> None:
    """Raise `CheckpointError` for the first tensor whose written type or shape differs from the planned one."""
    if found != wanted:
        names = sorted(found.keys() | wanted.keys())
        wrong = next(name for name in names if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"tensor {wrong} was not written as planned",
            expected=str(wanted.get(wrong)),
            actual=str(found.get(wrong)),
            remedy="check the disk, then run the command again",
        )


def other_files(directory: Path, index: Mapping[str, TensorInfo]) -> tuple[list[Path], dict[str, str]]:
    """The files to copy unchanged, and the omitted ones as {relative name: reason}.

    Covers every file of the directory and its subdirectories except the shards of `index`, the index itself and the
    files that trimoe writes. Copied are the tokenizer, templates, code, licence and the like, and safetensors files
    that the index does not list, if they contain no experts. Raises `CheckpointError` for a broken link.
    """
    files, left_out = [], dict[str, str]()
    shards = {info.file.name for info in index.values()}
    for file in sorted(walk(directory, left_out)):
        name = file.relative_to(directory).as_posix()
        if name in _OURS or name in shards or name == INDEX:
            continue
        if reason := _left_out(file, index):
            left_out[name] = reason
        else:
            files.append(file)
    return files, left_out


def walk(directory: Path, hidden: dict[str, str]) -> Iterator[Path]:
    """Every file below a directory. Hidden subdirectories are skipped and added to `hidden` with the reason."""
    for entry in directory.iterdir():
        if entry.is_symlink() and not entry.exists():
            raise CheckpointError(
                f"{entry} is a broken link",
                expected="a link to an existing file",
                remedy="download the file, or remove the link",
            )
        if entry.is_file():
            yield entry
        elif entry.is_dir() and entry.name.startswith("."):
            hidden[f"{entry.name}/"] = "a hidden folder"
        elif entry.is_dir():
            yield from walk(entry, hidden)
        else:
            hidden[entry.name] = "a pipe or a device, not a file"


def without_experts(file: Path, indexed: Collection[str]) -> bool:
    """Whether a safetensors file outside the index can be copied unchanged: it contains no expert and no indexed
    tensor."""
    try:
        names = read_header(file)[0].keys()
    except CheckpointError:
        return False
    return not any("expert" in name.lower() or name in indexed for name in names)


def _left_out(file: Path, indexed: Collection[str]) -> str:
    """Why a file is not copied; empty if it is copied."""
    if file.suffix == ".safetensors":
        return "" if without_experts(file, indexed) else "weights that are not in the index"
    if file.suffix in WEIGHTS or file.name.endswith(".index.json"):
        return "weights in another format, or an index of such weights"
    if file.name in _NOT_COPIED:
        return "describes the original; no loader reads it"
    return f"larger than {_SMALL_FILE >> 20} MiB" if file.stat().st_size > _SMALL_FILE else ""


def copy_files(files: list[Path], source: Path, target: Path) -> None:
    """Copy files of the directory `source` to the same relative paths in `target`."""
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def write_index(folder: Path, shard_of: Mapping[str, str], total: int) -> None:
    """Write model.safetensors.index.json in the Hugging Face format. `shard_of` maps tensors to files; `total` is the
    size of all tensors in bytes."""
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
    write_indented(folder / INDEX, body)


def write_indented(path: Path, value: Any) -> None:
    """Write indented JSON with keys in the given order. Not atomic: the directory is renamed into place later."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
