"""GGUF models on disk: one file or the parts of a split, as metadata and tensors in byte ranges.

Invariant: the parts of a split are complete, in order, and hold exactly the tensors that the first one announces.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.gguf.format import INTEGERS, MAGIC, Field
from trimoe.model.gguf.header import GgufFile, bad_file, read_gguf
from trimoe.model.safetensors import TensorInfo

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Gguf:
    """A model or imatrix in one file or in the parts of a split; metadata are those of the first file."""

    files: tuple[GgufFile, ...]
    index: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The (first) file."""
        return self.files[0].path

    @property
    def fields(self) -> dict[str, Field]:
        """Metadata of the first file, split keys included."""
        return self.files[0].fields

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(info.nbytes for info in self.index.values())

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self.fields[key].value() if key in self.fields else default

    def integer(self, key: str) -> int | None:
        """The value of a key that must be an integer; None if it is absent or of another type."""
        found = self.fields.get(key)
        return int(found.value()) if found is not None and found.kind in INTEGERS else None


def is_gguf(path: Path) -> bool:
    """Whether this is a file that starts as GGUF or has the suffix .gguf."""
    if path.is_dir():
        return False
    if not path.is_file():  # opening a pipe would wait for a writer
        return path.suffix == ".gguf"
    try:
        with path.open("rb") as handle:
            return handle.read(4) == MAGIC or path.suffix == ".gguf"
    except OSError:
        return path.suffix == ".gguf"


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only model (or its first part) in a directory; None without one.

    Raises `CheckpointError` if a directory holds several.
    """
    if not path.is_dir():
        return path if is_gguf(path) else None
    if (path / "config.json").exists():
        return None
    named = [file for file in sorted(path.glob("*.gguf")) if not file.name.startswith(".")]
    first = [f for f in named if (m := _SPLIT_NAME.fullmatch(f.name)) is None or int(m[2]) == 1]
    if len(first) > 1:
        raise CheckpointError(
            f"{path} holds several models",
            expected="one",
            actual=", ".join(f.name for f in first[:5]),
            remedy="give the file itself",
        )
    return first[0] if first else None


def open_gguf(path: Path) -> Gguf:
    """A GGUF file, with all parts if it is one of a split. Raises `CheckpointError`."""
    first = read_gguf(path)
    count = _split_value(first, "split.count") or 1
    files = [first]
    if count > 1:
        match = _SPLIT_NAME.fullmatch(path.name)
        if match is None or int(match[3]) != count:
            raise bad_file(
                f"{path} is one of {count} parts and is not named like one",
                expected=f"NAME-00001-of-{count:05d}.gguf",
                remedy="give it its original name",
            )
        files = [read_gguf(path.with_name(split_name(match[1], i, count))) for i in range(count)]
    index: dict[str, TensorInfo] = {}
    for number, file in enumerate(files):
        if count > 1 and (_split_value(file, "split.no"), _split_value(file, "split.count")) != (number, count):
            raise bad_file(
                f"{file.path} is not part {number + 1} of {count}",
                expected=f"split.no {number}, split.count {count}",
                actual=f"{_split_value(file, 'split.no')}, {_split_value(file, 'split.count')}",
            )
        for name, info in file.tensors.items():
            if name in index:
                raise bad_file(f"tensor {name} is in two parts", actual=f"{index[name].file.name}, {file.path.name}")
            index[name] = info
    total = _split_value(files[0], "split.tensors.count")
    if count > 1 and total != len(index):
        raise bad_file(
            f"{files[0].path.name} and its parts do not hold the tensors they announce",
            expected=str(total),
            actual=str(len(index)),
        )
    return Gguf(tuple(files), index)


def _split_value(file: GgufFile, key: str) -> int | None:
    found = file.fields.get(key)
    return int(found.value()) if found is not None and found.kind in INTEGERS else None


def parts(path: Path) -> list[Path]:
    """The files of a model by name alone: the file, or all parts of the split that it belongs to."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = min(int(match[3]), 1 + sum(1 for _ in path.parent.glob("*.gguf")))  # a name may claim any number
    return [path.with_name(split_name(match[1], number, int(match[3]))) for number in range(count)]


def split_name(stem: str, number: int, count: int) -> str:
    """llama.cpp's name of part `number` (from 0) of `count`."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def split_stem(name: str) -> str:
    """A file's name without .gguf and without the number of a part."""
    match = _SPLIT_NAME.fullmatch(name)
    return match[1] if match else name.removesuffix(".gguf")
