"""Finds llama.cpp's programs: in a directory that the user names, in the cache of builds, or on PATH, in this order.

Invariants: nothing here builds or downloads (`build` does). A missing program raises `MissingPrerequisite` with the way
to get it. A build in the cache is complete or absent, never partial.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.io.canonical import sha256_bytes, sha256_file
from trimoe.io.datafile import Data, load
from trimoe.llamacpp.children import bound

PROGRAMS = (
    "llama-quantize",
    "llama-imatrix",
    "llama-perplexity",
    "llama-server",
    "llama-cli",
    "llama-gguf-split",
    "trimoe-masked-logits",
    "trimoe-expert-stats",
)
CONVERTER = "convert_hf_to_gguf.py"
BUILD_INFO = "build.json"
DIRECTORY_VARIABLE = "TRIMOE_LLAMACPP"  # a directory with llama.cpp's programs, used instead of the cache
CACHE_VARIABLE = "TRIMOE_CACHE"

Backend = Literal["cpu", "cuda", "vulkan"]


class Release(Data, frozen=True, kw_only=True):
    """The pinned source archive: see release.toml."""

    package: str
    version: str
    sha256: str
    commit: str

    @property
    def archive_name(self) -> str:
        """File name of the source archive."""
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"


@cache
def pinned_release() -> Release:
    """The pinned release."""
    return load(Release, resources.files("trimoe.llamacpp") / "release.toml", "release.toml")


def native_folder() -> Path:
    """trimoe's CMake project and the C++ source that is built together with llama.cpp."""
    return Path(str(resources.files("trimoe.llamacpp"))) / "native"


@dataclass(frozen=True)
class Flavour:
    """A kind of build. `native` uses every instruction of this machine's processor and may not run on another one."""

    backend: Backend = "cpu"
    native: bool = False

    def cmake_options(self) -> dict[str, str]:
        """CMake options that change the programs; together with the sources they identify the build."""
        return {
            "CMAKE_BUILD_TYPE": "Release",
            "BUILD_SHARED_LIBS": "OFF",
            "GGML_NATIVE": "ON" if self.native else "OFF",
            "GGML_CUDA": "ON" if self.backend == "cuda" else "OFF",
            "GGML_VULKAN": "ON" if self.backend == "vulkan" else "OFF",
            "GGML_CCACHE": "OFF",
            "LLAMA_BUILD_COMMON": "ON",
            "LLAMA_BUILD_TOOLS": "ON",
            "LLAMA_BUILD_SERVER": "ON",
            "LLAMA_BUILD_TESTS": "OFF",
            "LLAMA_BUILD_EXAMPLES": "OFF",
            "LLAMA_BUILD_APP": "OFF",
            "LLAMA_BUILD_UI": "OFF",
            "LLAMA_USE_PREBUILT_UI": "OFF",
            "LLAMA_OPENSSL": "OFF",
            "LLAMA_BUILD_NUMBER": "0",
            "LLAMA_BUILD_COMMIT": pinned_release().commit,
        }

    @property
    def kind(self) -> str:
        """Readable name, such as 0.3.36-cpu or 0.3.36-cuda-native."""
        return f"{pinned_release().version}-{self.backend}{'-native' if self.native else ''}"

    @property
    def key(self) -> str:
        """Directory name in the cache: version, kind, and a hash over options and trimoe's own sources."""
        sources = {file.name: sha256_file(file) for file in sorted(native_folder().iterdir()) if file.is_file()}
        body = json.dumps([pinned_release().sha256, self.cmake_options(), sources, PROGRAMS], sort_keys=True)
        return f"{self.kind}-{sha256_bytes(body.encode())[:10]}"


FLAVOURS = tuple(Flavour(backend, native) for backend in ("cuda", "vulkan", "cpu") for native in (True, False))


def cache_folder() -> Path:
    """Folder of builds: `llamacpp` below $TRIMOE_CACHE, else $XDG_CACHE_HOME/trimoe, else ~/.cache/trimoe."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute() / "llamacpp"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "trimoe" / "llamacpp"


@dataclass(frozen=True)
class LlamaCpp:
    """Programs that were found. `origin` says where; `info` is the build record, None for builds not made by trimoe."""

    origin: Literal["directory", "cache", "PATH"]
    programs: dict[str, Path]
    converter: Path | None
    info: dict[str, Any] | None = None

    def program(self, name: str) -> Path:
        """Path of a program, or `MissingPrerequisite`."""
        if name not in self.programs:
            raise MissingPrerequisite(
                f"{name} is missing from this llama.cpp",
                expected=f"{name} beside {', '.join(sorted(self.programs)) or 'other programs'}",
                actual=f"not found ({self.origin})",
                remedy="run `trimoe llamacpp install`"
                + ("" if name.startswith("llama") else "; only builds made by trimoe have this program"),
            )
        return self.programs[name]

    def describe(self, *, hashes: bool = False) -> dict[str, Any]:
        """Paths, version and build record as JSON values; with `hashes` the programs' sha256."""
        return {
            "origin": self.origin,
            "version": self.version(),
            "programs": {
                name: {"path": str(path), **({"sha256": sha256_file(path)} if hashes else {})}
                for name, path in sorted(self.programs.items())
            },
            "missing": sorted(set(PROGRAMS) - set(self.programs)),
            "converter": str(self.converter) if self.converter else None,
            "build": self.info,
        }

    def version(self) -> str | None:
        """The version that a program reports, such as "0.5.0-dev (build 0, commit 0c1e57098)"; None if none answers."""
        for name in ("llama-cli", "llama-server", "llama-imatrix", "llama-gguf-split"):
            if name in self.programs:
                return program_version(self.programs[name])
        return None


def program_version(path: Path) -> str | None:
    """The version that `PROGRAM --version` prints, None if it cannot be run."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version:\s*(.+)", answer.stdout + answer.stderr)
    return match[1].strip() if match else None


def locate(directory: Path | None = None, cache: Path | None = None) -> LlamaCpp:
    """Find llama.cpp. Raises `MissingPrerequisite` if there is none, `BadInput` for a wrong directory.

    `directory` (or $TRIMOE_LLAMACPP) is searched with its bin and build/bin; the cache before PATH.
    """
    if directory is None and (named := os.environ.get(DIRECTORY_VARIABLE)):
        directory = Path(named)
    if directory is not None:
        return _in_directory(directory)
    folder = cache or cache_folder()
    for flavour in FLAVOURS:
        if (found := installed(folder / flavour.key)) is not None:
            return found
    programs = {name: Path(path) for name in PROGRAMS if (path := shutil.which(name))}
    if "llama-quantize" in programs or "llama-server" in programs:
        converter = shutil.which(CONVERTER)
        return LlamaCpp("PATH", programs, Path(converter) if converter else None)
    raise MissingPrerequisite(
        "llama.cpp is not installed",
        expected=f"a build in {folder}, or llama-quantize and llama-server on PATH",
        actual="neither",
        remedy="run `trimoe llamacpp install`, or give --llamacpp DIR",
    )


def _in_directory(directory: Path) -> LlamaCpp:
    for folder in (directory, directory / "bin", directory / "build" / "bin"):
        programs = {n: folder / n for n in PROGRAMS if os.access(folder / n, os.X_OK) and (folder / n).is_file()}
        if programs:
            places = (directory, folder, folder.parent, folder.parent.parent)
            converter = next((p / CONVERTER for p in places if (p / CONVERTER).is_file()), None)
            return LlamaCpp("directory", programs, converter, _build_info(directory))
    raise BadInput(
        f"{directory} contains no program of llama.cpp",
        expected=f"{', '.join(PROGRAMS[:5])} in it, in bin or in build/bin",
        actual="none of them" if directory.is_dir() else "it is not a directory",
        remedy="give the directory of a build",
    )


def installed(build: Path) -> LlamaCpp | None:
    """The build in this directory of the cache; None if it is missing or incomplete."""
    info = _build_info(build)
    if info is None:
        return None
    programs = {name: build / "bin" / name for name in PROGRAMS if (build / "bin" / name).is_file()}
    return LlamaCpp("cache", programs, build / CONVERTER, info) if len(programs) == len(PROGRAMS) else None


class _Info(Data, frozen=True, kw_only=True):
    """Content of build.json."""

    release: Release
    options: dict[str, str]
    compiler: str
    programs: dict[str, str]
    """name -> sha256"""


def build_record(options: dict[str, str], compiler: str, programs: dict[str, str]) -> dict[str, Any]:
    """The content of build.json."""
    info = _Info(release=pinned_release(), options=options, compiler=compiler, programs=programs)
    record: dict[str, Any] = msgspec.to_builtins(info)
    return record


def _build_info(build: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads((build / BUILD_INFO).read_bytes())
        msgspec.convert(data, _Info)
    except (OSError, ValueError):  # msgspec.ValidationError is a ValueError
        return None
    return data


def run_converter(tools: LlamaCpp, model: Path, out: Path, outtype: str = "bf16") -> None:
    """Convert a Hugging Face checkpoint to GGUF with llama.cpp's own script; needs the extra 'torch'.

    Raises `MissingPrerequisite` without a converter, `BadInput` with its last lines if it refuses the model.
    """
    if tools.converter is None:
        raise MissingPrerequisite(
            "this llama.cpp has no converter",
            expected=CONVERTER,
            actual=f"not found ({tools.origin})",
            remedy="run `trimoe llamacpp install`",
        )
    command = [sys.executable, str(tools.converter), str(model), "--outtype", outtype, "--outfile", str(out)]
    answer = subprocess.run(bound(command), capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not out.exists():
        raise BadInput(
            f"{model} could not be converted to GGUF",
            expected="a model that llama.cpp's converter supports",
            actual=last_lines(answer.stderr),
            remedy="see the converter's message",
        )


def last_lines(text: str, count: int = 4) -> str:
    """The last non-empty lines of a program's output, for messages."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])[:600]
