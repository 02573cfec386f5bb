"""Builds llama.cpp from the pinned source archive into the cache: `install`.

Invariants: the archive is used only if its sha256 is the pinned one; a build appears in the cache under its final name
only after every program has been started once; two builds of one kind never run at the same time (the second waits and
uses the first one's result). A killed build leaves its work directory, and the next run resumes there.
Not guaranteed: equal bytes from different compilers; build.json records compiler, options and sha256 of each program.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.io.atomic import publish_dir, require_space
from trimoe.io.canonical import sha256_file
from trimoe.io.jsonfile import write_json
from trimoe.io.progress import Progress, silent
from trimoe.llamacpp.archive import extract, source_archive
from trimoe.llamacpp.tools import (
    BUILD_INFO,
    CONVERTER,
    PROGRAMS,
    Flavour,
    LlamaCpp,
    build_record,
    cache_folder,
    installed,
    last_lines,
    native_folder,
)

_BUILD_SPACE = 1 << 30  # sources and objects take about 300 MB
_JOB_MEMORY = 1500 << 20  # the largest source file needs about this much in the compiler


def install(
    flavour: Flavour | None = None,
    *,
    cache: Path | None = None,
    archive: Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> LlamaCpp:
    """Build this kind of llama.cpp unless the cache has it; returns its programs.

    Raises `MissingPrerequisite` without compiler, cmake, ninja, disk space or the archive, and `BadInput` for an
    archive that is not the pinned one or a build that fails.
    """
    flavour = flavour or Flavour()
    report = progress or silent
    folder = cache or cache_folder()
    target = folder / flavour.key
    if (found := installed(target)) is not None:
        return found
    _require_compilers(flavour)
    with _one_at_a_time(folder, flavour.kind, report):
        if (found := installed(target)) is not None:
            return found
        require_space(folder, _BUILD_SPACE)
        source_tar = source_archive(folder, archive, report)
        work = folder / f".{flavour.kind}.work"
        source = extract(source_tar, work, report)
        _configure(flavour, source, work / "build")
        _compile(work / "build", jobs or _jobs(), report)
        if target.exists():  # not a valid build, or `installed` had found it
            shutil.rmtree(target)
        with publish_dir(target) as staged:
            _stage(flavour, source, work / "build", staged)
        shutil.rmtree(work)
    result = installed(target)
    assert result is not None, f"{target} was just published"
    return result


@contextmanager
def _one_at_a_time(folder: Path, kind: str, report: Progress) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f".{kind}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(0, 0, "waiting for another build of the same kind")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def tool(name: str) -> str:
    """Path of a build tool, from this Python environment first (PyPI has cmake and ninja as wheels), then from PATH."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if path is None:
        raise MissingPrerequisite(
            f"building llama.cpp needs {name}",
            expected=f"{name} in this environment or on PATH",
            actual="not found",
            remedy="pip install 'trimoe[llamacpp]', or your system's package",
        )
    return path


def _require_compilers(flavour: Flavour) -> None:
    tool("cmake")
    tool("ninja")
    compilers = [(os.environ.get("CC"), "cc", "gcc", "clang"), (os.environ.get("CXX"), "c++", "g++", "clang++")]
    for names in compilers:
        if not any(name and shutil.which(name) for name in names):
            raise MissingPrerequisite(
                "building llama.cpp needs a C and a C++ compiler",
                expected=" or ".join(n for n in names[1:] if n),
                actual="not found on PATH",
                remedy="install one, for example: apt-get install build-essential",
            )
    needed = {"cuda": "nvcc", "vulkan": "glslc"}.get(flavour.backend)
    if needed and shutil.which(needed) is None:
        package = "the CUDA toolkit" if needed == "nvcc" else "the Vulkan SDK"
        raise MissingPrerequisite(
            f"--{flavour.backend} needs {needed}",
            expected=f"{needed} on PATH",
            actual="not found",
            remedy=f"install {package}, or build without --{flavour.backend}",
        )


def _configure(flavour: Flavour, source: Path, build: Path) -> None:
    options = [f"-D{name}={value}" for name, value in flavour.cmake_options().items()]
    command = [
        tool("cmake"),
        "-G",
        "Ninja",
        "-S",
        str(native_folder()),
        "-B",
        str(build),
        f"-DLLAMA_CPP={source}",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        *options,
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        # A build tree of another compiler or of a moved folder cannot be configured again.
        shutil.rmtree(build, ignore_errors=True)
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise BadInput(
            "llama.cpp could not be configured",
            expected="cmake to end without an error",
            actual=last_lines(answer.stderr, 6),
            remedy="install what it names, or use --llamacpp DIR",
        )


def _compile(build: Path, jobs: int, report: Progress) -> None:
    command = [tool("ninja"), "-C", str(build), f"-j{jobs}", *PROGRAMS]
    lines: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines = [*lines[-40:], line]
            if step := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
                report(int(step[1]), int(step[2]), step[3].rsplit("/", 1)[-1][:60])
        status = process.wait()
    except BaseException:
        process.terminate()  # ninja ends its compilers and keeps finished objects; the next run resumes
        process.wait()
        raise
    if status != 0 and any("No space left on device" in line for line in lines):
        raise MissingPrerequisite(
            "the disk filled up while llama.cpp was built",
            expected=f"{_BUILD_SPACE:,} bytes",
            actual="no space left",
            remedy="free some space and run again; finished objects are kept",
        )
    if status != 0:
        wrong = [line for line in lines if "error" in line.lower() or "FAILED" in line] or lines[-6:]
        raise BadInput(
            "llama.cpp could not be compiled",
            expected="ninja to end without an error",
            actual=last_lines("\n".join(wrong), 6),
            remedy=f"see the full output with: ninja -C {build}",
        )


def _stage(flavour: Flavour, source: Path, build: Path, staged: Path) -> None:
    """Copy programs, converter and record into the published directory; every program is started once."""
    (staged / "bin").mkdir()
    strip = shutil.which("strip")
    hashes = {}
    for name in PROGRAMS:
        place = staged / "bin" / name
        shutil.copy2(build / "bin" / name if (build / "bin" / name).exists() else _built(build, name), place)
        if strip:
            subprocess.run([strip, place], capture_output=True, check=False)
        answer = subprocess.run([place, "--version"], capture_output=True, text=True, check=False, timeout=120)
        if answer.returncode not in (0, 1):  # some print the version as part of a usage text
            raise BadInput(
                f"{name} was built but does not start",
                expected="a version",
                actual=last_lines(answer.stderr),
                remedy="build again; check that this machine can run what its compiler makes",
            )
        hashes[name] = sha256_file(place)
    shutil.copy2(source / CONVERTER, staged / CONVERTER)
    for folder in ("conversion", "gguf-py/gguf"):
        shutil.copytree(source / folder, staged / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(source / "LICENSE", staged / "LICENSE")
    write_json(staged / BUILD_INFO, build_record(flavour.cmake_options(), _compiler(build), hashes))


def _built(build: Path, name: str) -> Path:
    found = sorted(path for path in build.rglob(name) if path.is_file() and os.access(path, os.X_OK))
    if not found:
        raise BadInput(
            f"{name} was not built", expected=f"{name} below {build}", actual="missing", remedy="build again"
        )
    return found[0]


def _compiler(build: Path) -> str:
    """ "GNU 12.2.0", as CMake found it."""
    for file in sorted((build / "CMakeFiles").glob("*/CMakeCXXCompiler.cmake")):
        text = file.read_text()
        parts = [re.search(rf'set\(CMAKE_CXX_COMPILER_{key} "([^"]*)"\)', text) for key in ("ID", "VERSION")]
        return " ".join(part[1] for part in parts if part)
    return "unknown"


def _jobs() -> int:
    """One compiler per core that this process may use, limited by the available memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return cores
    return max(1, min(cores, int(found[1]) * 1024 // _JOB_MEMORY)) if found else cores
