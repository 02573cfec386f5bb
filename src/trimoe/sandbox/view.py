"""The files visible in a sandbox: an allow list of folders, all read-only.

Visible: /usr and the system's library folders, the running Python (its installation, not a virtual environment), named
packages, the folders of requested toolchains, and a few generated files. Everything else is hidden: home folders, /etc
(except what the dynamic loader and the C compiler's links need), /var, /run, /sys, the project. Only reads the disk.
"""

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SITE = "/site"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FROM_ETC = ("/etc/ld.so.cache", "/etc/alternatives")
_MADE = {
    "/etc/passwd": "nobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
    "/etc/group": "nogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
}
PACKAGES = ("numpy",)  # importable by candidates, besides the standard library


def view_of(folders: Iterable[str] = (), packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """The view for `enter`: binds (source, target), symlinks (link, target) and files (path, text)."""
    binds: list[tuple[str, str]] = []
    symlinks: list[tuple[str, str]] = []
    for path in (*_SYSTEM, *_FROM_ETC, sys.base_prefix, sys.base_exec_prefix, *folders):
        if os.path.islink(path):
            symlinks.append((path, os.readlink(path)))
        elif os.path.exists(path) and not any(_within(path, target) for _, target in binds):
            binds.append((path, path))
    symlinks.append(("/dev/shm", "/tmp"))
    return {"binds": binds + _package_binds(packages), "symlinks": symlinks, "files": _MADE}


def _package_binds(packages: Iterable[str]) -> list[tuple[str, str]]:
    binds = []
    for name in packages:
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations:
            folder = Path(found.submodule_search_locations[0])
            parts = [folder, folder.with_name(f"{folder.name}.libs")]  # the second holds a wheel's shared libraries
            binds += [(str(part), f"{SITE}/{part.name}") for part in parts if part.is_dir()]
    return binds


def package_paths(packages: Iterable[str] = PACKAGES) -> list[str]:
    """Folders of the packages outside the sandbox, for runs without a view."""
    found = (importlib.util.find_spec(name) for name in packages)
    return sorted({str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin})


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
