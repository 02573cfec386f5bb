"""`trimoe doctor`: shows what is installed, what is missing, and what each missing part enables.

Invariants: writes nothing; imports no extra (versions come from package metadata), so it works in the base install.
Exits 0 unless a base dependency is missing.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click

from trimoe import __version__
from trimoe.cli.parts.common import EXTRAS, emit, install_command, json_option
from trimoe.errors import MissingPrerequisite, TrimoeError

BASE = ("numpy", "click", "rich", "msgspec", "pyyaml", "jinja2", "xxhash", "aiohttp", "regex")

# Programs outside Python: the arguments that print the version, and what the program enables.
TOOLS: dict[str, tuple[tuple[str, ...], str]] = {
    "c++": (("--version",), "building llama.cpp: trimoe llamacpp install"),
    "cmake": (("--version",), "building llama.cpp: trimoe llamacpp install"),
    "ninja": (("--version",), "building llama.cpp: trimoe llamacpp install"),
    "docker": (("--version",), "another sandbox for generated code, --sandbox docker"),
    "podman": (("--version",), "another sandbox for generated code, --sandbox podman"),
}

GIB = 1 << 30


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed and what each missing part enables.

    \b
    Examples:
      trimoe doctor
      trimoe doctor --json
    """
    report = examine()
    emit(report, render(report), as_json)
    broken = [name for name, version in report["base"].items() if version is None]
    if broken:
        raise MissingPrerequisite(
            "the base install is broken",
            expected=", ".join(BASE),
            actual=f"missing: {', '.join(broken)}",
            remedy="pip install --force-reinstall trimoe",
        )


def examine() -> dict[str, Any]:
    """The whole report as JSON values: sizes in bytes, versions as strings, None for what is absent."""
    disk = shutil.disk_usage(Path.cwd())
    extras = {
        name: {
            "packages": {package: package_version(package) for package in packages},
            "enables": purpose,
            "install": install_command(name),
        }
        for name, (packages, purpose) in EXTRAS.items()
    }
    tools = {
        name: {"version": tool_version(name, arguments), "enables": purpose}
        for name, (arguments, purpose) in TOOLS.items()
    }
    return {
        "llama.cpp": llamacpp(),
        "trimoe": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "memory_total": memory("MemTotal"),
        "memory_available": memory("MemAvailable"),
        "disk_free": disk.free,
        "base": {name: package_version(name) for name in BASE},
        "sandbox": sandbox_state(),
        "languages": language_state(),
        "engines": engine_state(),
        "extras": extras,
        "tools": tools,
    }


def render(report: dict[str, Any]) -> str:
    """The report of `examine` as text."""
    lines = [
        f"trimoe {report['trimoe']}, Python {report['python']}, {report['platform']}",
        f"{report['cores']} cores, memory {_size(report['memory_available'])} free of {_size(report['memory_total'])}, "
        f"disk {_size(report['disk_free'])} free here",
        "",
        "base: prune, map, stats, inspect, compare and the byte part of certify",
        *(_row(name, version) for name, version in report["base"].items()),
    ]
    for name, extra in report["extras"].items():
        lines += ["", f"extra '{name}': {extra['enables']}"]
        lines += [_row(package, version) for package, version in extra["packages"].items()]
        if None in extra["packages"].values():
            lines.append(f"  install: {extra['install']}")
    lines += ["", "generated code"]
    lines.append(_row("sandbox", report["sandbox"]["engine"], report["sandbox"]["note"]))
    lines += [_row(n, lang["version"], lang["note"]) for n, lang in report["languages"].items()]
    lines += ["", "servers: trimoe serve"]
    lines += [_row(n, "can run" if e["note"] is None else None, e["note"] or "") for n, e in report["engines"].items()]
    found = report["llama.cpp"]
    note = "GGUF: quantize, serve, the logits of certify" + ("" if found else "; build it: trimoe llamacpp install")
    lines += ["", "tools outside Python", _row("llama.cpp", found and (found["version"] or found["origin"]), note)]
    lines += [_row(name, tool["version"], tool["enables"]) for name, tool in report["tools"].items()]
    return "\n".join(lines)


def llamacpp() -> dict[str, Any] | None:
    """Version and origin of the llama.cpp in use; None if there is none."""
    from trimoe.llamacpp.tools import locate

    try:
        tools = locate()
    except TrimoeError:
        return None
    return {"version": tools.version(), "origin": tools.origin}


def sandbox_state() -> dict[str, str | None]:
    """The engine `namespaces` if a worker of it starts here; otherwise why it does not, and the remedy."""
    from trimoe.sandbox import require_sandbox

    try:
        require_sandbox()
    except TrimoeError as exc:
        return {"engine": None, "note": f"{exc.actual}; {exc.remedy}"}
    return {"engine": "namespaces", "note": "isolates generated code of code benches"}


def language_state() -> dict[str, dict[str, str | None]]:
    """Toolchains for generated code in other languages: the version, or how to install one."""
    from trimoe.bench.code.languages import languages

    found = {language.name: (language, language.toolchain()) for language in languages().values()}
    return {
        name: {
            "version": tool.version if tool else None,
            "note": f"answers of multipl-e in {name}"
            + ("" if tool else f" are not run; needs {language.needs}: {language.install}"),
        }
        for name, (language, tool) in found.items()
    }


def engine_state() -> dict[str, dict[str, str | None]]:
    """Every engine that trimoe can start; `note` says why it cannot start here, None if it can."""
    from trimoe.serve.engine import engines, why_not

    return {e.name: {"about": e.about, "note": why_not(e)} for e in engines().values() if e.attach is None}


def package_version(name: str) -> str | None:
    """Version of an installed distribution, None if absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tool_version(name: str, arguments: tuple[str, ...]) -> str | None:
    """The version that a program prints; "found" if it prints none, None if the program is not on PATH."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        answer = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "found, but it does not start"
    match = re.search(r"\d+(\.\d+)+|\d+", answer.stdout + answer.stderr)
    return match.group() if match else "found"


def usable_cores() -> int:
    """Cores this process may use (a container may allow fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(field: str) -> int | None:
    """Bytes of a field of /proc/meminfo; None where there is no such file."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _row(name: str, version: str | None, note: str = "") -> str:
    mark = "ok     " if version else "missing"
    return f"  {mark} {name:<15} {version or '':<10} {note}".rstrip()


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / GIB:.1f} GiB"


COMMANDS: list[click.Command] = [doctor]
