"""Files of a checkpoint directory: which are copied besides the weights, whether they changed, the shard index."""

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
_READ = {".safetensors", ".json", ".jinja", ".model", ".txt", ".py"}
_WRITTEN_LATER = {"certificate.json", "README.numbers.json"}  # by trimoe, about a model that does not change
# No loader reads these: the card describes the original, and the git files belong to its repository.
_NOT_COPIED = {"README.md", ".gitattributes", ".gitignore"}
_SMALL_FILE = 256 << 20

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> (type, shape)."""


def weight_stamps(model: Path | str) -> dict[str, Stamp]:
    """Stamps of every weights file of a checkpoint directory, by name."""
    return {file.name: stamp(file) for file in sorted(Path(model).glob("*.safetensors"))}


def watch_directory(model: Path | str, done: str) -> Watch:
    """Notices changes of the files that are in a checkpoint directory now and that loaders read: weights and others.

    New files are ignored: results may be written there, and nothing reads them."""
    folder = Path(model)
    found = walk(folder, {}) if folder.is_dir() else ()  # whoever opens it says that it is missing
    files = [file for file in found if file.suffix in _READ and file.name not in _WRITTEN_LATER]
    return Watch(model, done, lambda: files)


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


def other_files(directory: Path, index: Mapping[str, TensorInfo]) -> tuple[list[Path], dict[str, str]]:
    """The files to copy beside the weights, and the others by relative name with the reason why they are left out.

    Every file of the directory and its folders is one or the other, except the shards of `index`, the index and what
    trimoe writes itself. Copied: tokenizer, templates, code, licence and the like, and weights that the index does not
    name if no expert is in them. Raises `CheckpointError` for a broken link.
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
    """Every file below a directory; hidden folders are not entered but added to `hidden` with the reason."""
    for entry in directory.iterdir():
        if entry.is_symlink() and not entry.exists():
            raise CheckpointError(
                f"{entry} is a broken link",
                expected="every file of the model",
                remedy="download the file, or remove the link",
            )
        if entry.is_file():
            yield entry
        elif entry.is_dir() and entry.name.startswith("."):
            hidden[f"{entry.name}/"] = "a hidden folder"
        elif entry.is_dir():
            yield from walk(entry, hidden)


def without_experts(file: Path, indexed: Collection[str]) -> bool:
    """Whether a safetensors file that the index does not name can be kept as it is: no expert and no indexed tensor is
    in it."""
    try:
        names = read_header(file)[0].keys()
    except CheckpointError:
        return False
    return not any("expert" in name.lower() or name in indexed for name in names)


def _left_out(file: Path, indexed: Collection[str]) -> str:
    """Why a file is not copied; empty if it is."""
    if file.suffix == ".safetensors":
        return "" if without_experts(file, indexed) else "weights that the index does not name"
    if file.suffix in WEIGHTS or file.name.endswith(".index.json"):
        return "weights in another format, or their index"
    if file.name in _NOT_COPIED:
        return "about the original, and read by no loader"
    return f"larger than {_SMALL_FILE >> 20} MiB" if file.stat().st_size > _SMALL_FILE else ""


def copy_files(files: list[Path], source: Path, target: Path) -> None:
    """Copy files of the directory `source` to the same relative places in `target`."""
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def write_index(folder: Path, shard_of: Mapping[str, str], total: int) -> None:
    """Write model.safetensors.index.json as Hugging Face does. `shard_of` maps tensors to files, `total` is their
    bytes."""
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
    write_indented(folder / INDEX, body)


def write_indented(path: Path, value: Any) -> None:
    """Write JSON inside a directory that is not yet published: two spaces of indent, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
