"""Finding llama.cpp, and every way in which building it can fail. The real build is what `make test` does once."""

import fcntl
import hashlib
import json
import os
import stat
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.llamacpp import build as llamacpp_build
from trimoe.llamacpp.build import install
from trimoe.llamacpp.tools import (
    PROGRAMS,
    Flavour,
    LlamaCpp,
    Release,
    build_record,
    cache_folder,
    installed,
    locate,
    pinned_release,
)

SAYS_VERSION = '#!/bin/sh\necho "version: 0.5.0-dev (build 0, commit 0c1e57098)" >&2\n'


def program(path: Path, text: str = SAYS_VERSION) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a PATH without llama.cpp."""
    monkeypatch.delenv("TRIMOE_LLAMACPP", raising=False)
    monkeypatch.setenv("TRIMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def in_cache(folder: Path, flavour: Flavour) -> Path:
    build = folder / flavour.key
    for name in PROGRAMS:
        program(build / "bin" / name)
    (build / "convert_hf_to_gguf.py").write_text("")
    record = build_record(flavour.cmake_options(), "GNU 12", dict.fromkeys(PROGRAMS, "0" * 64))
    (build / "build.json").write_text(json.dumps(record))
    return build


def test_nothing_is_a_missing_prerequisite_that_says_what_to_do(bare: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="trimoe llamacpp install"):
        locate()


def test_the_order_is_directory_cache_path(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "path" / "llama-server")
    assert locate().origin == "PATH"
    build = in_cache(cache_folder(), Flavour())
    assert (locate().origin, locate().program("llama-cli")) == ("cache", build / "bin" / "llama-cli")
    own = program(bare / "own" / "build" / "bin" / "llama-quantize")
    (bare / "own" / "convert_hf_to_gguf.py").write_text("")
    found = locate(bare / "own")
    assert (found.origin, found.program("llama-quantize")) == ("directory", own)
    assert found.converter == bare / "own" / "convert_hf_to_gguf.py"
    monkeypatch.setenv("TRIMOE_LLAMACPP", str(bare / "own"))
    assert locate().origin == "directory"
    with pytest.raises(BadInput, match="contains no program"):
        locate(bare)


def test_a_gpu_build_is_preferred(bare: Path) -> None:
    in_cache(cache_folder(), Flavour())
    native = in_cache(cache_folder(), Flavour("cuda", native=True))
    assert locate().program("llama-server").is_relative_to(native)


def test_an_incomplete_build_does_not_count(bare: Path) -> None:
    build = in_cache(cache_folder(), Flavour())
    (build / "bin" / "llama-imatrix").unlink()
    assert installed(build) is None
    (build / "build.json").write_text("{}")
    assert installed(build) is None


def test_a_missing_program_is_named(bare: Path) -> None:
    program(bare / "path" / "llama-server")
    with pytest.raises(MissingPrerequisite, match="trimoe-masked-logits is missing") as caught:
        locate().program("trimoe-masked-logits")
    assert "only builds made by trimoe" in caught.value.remedy


def test_what_where_says(bare: Path) -> None:
    in_cache(cache_folder(), Flavour())
    data = locate().describe(hashes=True)
    assert data["version"] == "0.5.0-dev (build 0, commit 0c1e57098)"
    assert data["missing"] == []
    want = hashlib.sha256(SAYS_VERSION.encode()).hexdigest()
    assert {p["sha256"] for p in data["programs"].values()} == {want}
    assert data["build"]["release"]["version"] == pinned_release().version
    json.dumps(data)


def test_flavours_have_different_keys_that_depend_on_options() -> None:
    keys = {Flavour(backend, native).key for backend in ("cpu", "cuda", "vulkan") for native in (False, True)}
    assert len(keys) == 6
    assert Flavour().cmake_options()["GGML_NATIVE"] == "OFF"
    assert all(key.startswith(pinned_release().version) for key in keys)


def test_an_installed_build_is_returned_without_any_tool(bare: Path) -> None:
    build = in_cache(bare / "elsewhere", Flavour())
    assert install(cache=bare / "elsewhere").program("llama-cli") == build / "bin" / "llama-cli"


def test_missing_tools_are_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(bare / "python"))
    with pytest.raises(MissingPrerequisite, match="needs cmake"):
        install()
    for name in ("cmake", "ninja"):
        program(bare / "path" / name)
    with pytest.raises(MissingPrerequisite, match="C and a C"):
        install()
    for name in ("cc", "c++"):
        program(bare / "path" / name)
    with pytest.raises(MissingPrerequisite, match="needs nvcc"):
        install(Flavour("cuda"))
    with pytest.raises(MissingPrerequisite, match="needs glslc"):
        install(Flavour("vulkan"))


@pytest.fixture
def tools(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that stand for cmake, ninja, compilers and pip; a test replaces the one that is to fail."""
    monkeypatch.setenv("PATH", f"{bare / 'path'}:{os.defpath}")
    monkeypatch.setattr(sys, "executable", str(bare / "path" / "python"))
    for name in ("cmake", "ninja", "cc", "c++", "python"):
        program(bare / "path" / name, "#!/bin/sh\nexit 0\n")
    return bare / "path"


def test_an_archive_that_cannot_be_had(tools: Path) -> None:
    program(tools / "python", "#!/bin/sh\necho 'ERROR: no network' >&2\nexit 1\n")
    with pytest.raises(MissingPrerequisite, match="could not be downloaded") as caught:
        install()
    assert "no network" in caught.value.actual
    assert "--archive FILE" in caught.value.remedy
    assert "--llamacpp DIR" in caught.value.remedy
    assert not [p for p in cache_folder().iterdir() if p.name.startswith(".download")]


def test_a_wrong_archive_is_refused(tools: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not found"):
        install(archive=tmp_path / "absent.tar.gz")
    (tmp_path / "other.tar.gz").write_bytes(b"something else")
    with pytest.raises(BadInput, match="not the pinned source archive"):
        install(archive=tmp_path / "other.tar.gz")


@pytest.fixture
def archive(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the place of the pinned one."""
    source = tmp_path / "llama_cpp_python-0.0.1" / "vendor" / "llama.cpp"
    for name in ("convert_hf_to_gguf.py", "LICENSE", "conversion/base.py", "gguf-py/gguf/__init__.py", "docs/x.md"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    file = tmp_path / "small.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(tmp_path / "llama_cpp_python-0.0.1", "llama_cpp_python-0.0.1")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    release = Release(package="llama-cpp-python", version="0.0.1", sha256=sha256, commit="abc")
    for module in ("tools", "archive"):
        monkeypatch.setattr(f"trimoe.llamacpp.{module}.pinned_release", lambda: release)
    return file


SUCCEEDS = "printf '#!/bin/sh\\nexit 0\\n'"
NINJA = (
    f'#!/bin/sh\nmkdir -p "$2/bin"\nfor p in {" ".join(PROGRAMS)}; do {SUCCEEDS} > "$2/bin/$p"; '
    'chmod +x "$2/bin/$p"; done\n'
)


def test_a_build_is_published_whole(tools: Path, archive: Path) -> None:
    program(tools / "ninja", NINJA + "echo '[3/7] Building CXX object a/b.cpp.o'\n")
    steps: list[tuple[int, int, str]] = []
    found = install(archive=archive, progress=lambda *step: steps.append(step))
    assert isinstance(found, LlamaCpp)
    assert set(found.programs) == set(PROGRAMS)
    assert (3, 7, "b.cpp.o") in steps
    build = cache_folder() / Flavour().key
    assert (build / "gguf-py" / "gguf" / "__init__.py").exists()
    assert (build / "conversion" / "base.py").exists()
    left = sorted(p.name for p in cache_folder().iterdir())
    assert left == [f".{Flavour().kind}.lock", Flavour().key]
    program(tools / "ninja", "#!/bin/sh\nexit 1\n")
    assert install(archive=archive).programs == found.programs  # found, not built again


def test_an_interrupted_build_goes_on(tools: Path, archive: Path) -> None:
    program(tools / "ninja", "#!/bin/sh\nmkdir -p $2\ntouch $2/object\necho 'x.cpp:1: error: no such thing'\nexit 1\n")
    with pytest.raises(BadInput, match="could not be compiled") as caught:
        install(archive=archive)
    assert "no such thing" in caught.value.actual
    assert installed(cache_folder() / Flavour().key) is None
    program(tools / "ninja", "#!/bin/sh\ntest -f $2/object || exit 1\n" + NINJA)
    assert set(install(archive=archive).programs) == set(PROGRAMS)


def test_failures_of_the_build_are_told_apart(tools: Path, archive: Path) -> None:
    program(tools / "ninja", "#!/bin/sh\necho 'fatal error: error writing to x: No space left on device'\nexit 1\n")
    with pytest.raises(MissingPrerequisite, match="disk filled up"):
        install(archive=archive)
    program(tools / "cmake", "#!/bin/sh\necho 'CMake Error: no threads' >&2\nexit 1\n")
    with pytest.raises(BadInput, match="could not be configured"):
        install(archive=archive)
    program(tools / "cmake", "#!/bin/sh\nexit 0\n")
    program(tools / "ninja", "#!/bin/sh\nexit 0\n")
    with pytest.raises(BadInput, match="llama-quantize was not built"):
        install(archive=archive)
    assert not (cache_folder() / Flavour().key).exists()


def test_a_second_build_waits_for_the_first(tools: Path, archive: Path) -> None:
    """While another process holds the lock nothing is built; when it ends, its result is used."""
    folder = cache_folder()
    folder.mkdir(parents=True)
    lock = os.open(folder / f".{Flavour().kind}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    program(tools / "ninja", "#!/bin/sh\nexit 1\n")  # it must not come to this
    notes: list[str] = []
    waiting = threading.Event()

    def report(done: int, total: int, note: str) -> None:
        notes.append(note)
        waiting.set()

    found: list[LlamaCpp] = []
    thread = threading.Thread(target=lambda: found.append(install(archive=archive, progress=report)))
    thread.start()
    assert waiting.wait(30)
    in_cache(folder, Flavour())
    os.close(lock)
    thread.join(30)
    assert notes == ["waiting for another build of the same kind"]
    assert found[0].origin == "cache"


def test_jobs_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda self: "MemAvailable:   4000000 kB\n")
    assert llamacpp_build._jobs() == 2
