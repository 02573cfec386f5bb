"""The sandbox engines: namespaces (the default), docker, podman, or none when explicitly requested as unsafe.

`namespaces` needs no installed tools. `docker` and `podman` start one container per sample, for systems that are not
Linux or whose kernel refuses namespaces to ordinary users. `none` contains nothing: it only sets limits, provides a
scratch folder, and kills leftover processes. The engine is part of every result (`Policy.describe`).
"""

import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import trimoe
from trimoe.errors import MissingPrerequisite, Refused, UsageError
from trimoe.sandbox.inside.limits import Limits
from trimoe.sandbox.view import SITE, package_paths, view_of

Engine = Literal["namespaces", "docker", "podman", "none"]
ENGINES: tuple[Engine, ...] = ("namespaces", "docker", "podman", "none")
IMAGE = "python:3.11-slim"
_CONTAINERS = ("docker", "podman")
_SOURCE = Path(trimoe.__file__).parents[1]
_BOOT = "import sys; sys.path.insert(0, {!r}); from trimoe.sandbox.inside.worker import main; main()"
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Policy:
    """How generated code runs. `unsafe` must be true for the engine `none`, and only for it."""

    engine: Engine = "namespaces"
    image: str = IMAGE
    unsafe: bool = False

    def __post_init__(self) -> None:
        if self.engine == "none" and not self.unsafe:
            raise Refused(
                "generated code is not run without a sandbox",
                expected="engine namespaces, docker or podman",
                actual="engine none",
                remedy="choose an engine, or pass --unsafe-no-sandbox: the code can then read and delete your files",
            )
        if self.unsafe and self.engine != "none":
            raise UsageError(
                "--unsafe-no-sandbox contradicts --sandbox",
                expected="one of the two options",
                actual=f"--sandbox {self.engine}",
                remedy="remove one of them",
            )

    @property
    def in_container(self) -> bool:
        """Whether docker or podman runs the samples."""
        return self.engine in _CONTAINERS

    def describe(self) -> dict[str, Any]:
        """What the run log records."""
        container = {"image": self.image} if self.engine in _CONTAINERS else {}
        return {"engine": self.engine, "sandboxed": self.engine != "none", **container}


UNSAFE = Policy("none", unsafe=True)
_DEFAULT = Policy()
_current: ContextVar[Policy] = ContextVar("sandbox_policy", default=_DEFAULT)


def current() -> Policy:
    """The policy of the current context."""
    return _current.get()


@contextmanager
def using(policy: Policy) -> Iterator[None]:
    """Apply a policy within the block."""
    token = _current.set(policy)
    try:
        yield
    finally:
        _current.reset(token)


def require_engine(policy: Policy) -> None:
    """Check the cheap prerequisites. Whether the kernel allows namespaces shows when the first worker starts."""
    if policy.engine in _CONTAINERS:
        if shutil.which(policy.engine) is None:
            raise MissingPrerequisite(
                f"{policy.engine} is not installed",
                expected=f"{policy.engine} on PATH",
                remedy=f"install {policy.engine}, or omit --sandbox to use namespaces",
            )
    elif sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise Refused(
            f"the sandbox engine '{policy.engine}' does not support this machine",
            expected="Linux on x86_64 or aarch64",
            actual=f"{sys.platform} on {platform.machine()}",
            remedy="use --sandbox docker",
        )


def command(policy: Policy, limits: Limits) -> list[str]:
    """The command that starts a worker. A container as a whole gets `limits`."""
    if policy.engine not in _CONTAINERS:
        return [sys.executable, "-s", "-P", "-S", "-c", _BOOT.format(str(_SOURCE))]
    inside = "/trimoe-source"
    options = {
        "--network": "none",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--user": "65534:65534",
        "--pids-limit": str(limits.processes + 8),
        "--memory": str(2 * limits.memory + (256 << 20)),
        "--memory-swap": str(2 * limits.memory + (256 << 20)),
        "--ipc": "none",
        "--tmpfs": f"/tmp:rw,exec,nosuid,nodev,size={limits.scratch},mode=1777",
        "--volume": f"{_SOURCE / 'trimoe'}:{inside}/trimoe:ro",
        "--workdir": "/tmp",
    }
    # All are set, because defaults above the caller's hard limits keep a container from starting.
    ulimits = [word for limit in ("core=0:0", "nofile=256:256", "nproc=4096:4096") for word in ("--ulimit", limit)]
    flags = [word for pair in options.items() for word in pair] + ulimits
    settings = [word for name, value in _ENVIRONMENT.items() if name != "PATH" for word in ("--env", f"{name}={value}")]
    worker = ["python3", "-s", "-P", "-c", _BOOT.format(inside)]
    return [policy.engine, "run", "--rm", "--interactive", "--read-only", *flags, *settings, policy.image, *worker]


def environment(policy: Policy) -> dict[str, str] | None:
    """The worker's whole environment, without the caller's. None for a container client, which must find its daemon."""
    return None if policy.engine in _CONTAINERS else dict(_ENVIRONMENT)


def configuration(policy: Policy, folders: tuple[str, ...], proc: bool) -> dict[str, Any]:
    """The first frame to a worker. `folders` are additional visible folders; `proc` mounts a /proc of the sample."""
    common = {"engine": policy.engine, "proc": proc, "warm": not folders, "filtered": policy.engine in _CONTAINERS}
    if policy.engine == "namespaces":
        return {**common, "view": view_of(folders), "path": [SITE]}
    return {**common, "path": package_paths() if policy.engine == "none" else []}


REMEDIES = (
    "allow user namespaces (as root: sysctl -w user.max_user_namespaces=10000; on Debian before 11 also "
    "kernel.unprivileged_userns_clone=1; on Ubuntu from 23.10 also kernel.apparmor_restrict_unprivileged_userns=0; a "
    "container must be started with --security-opt seccomp=unconfined --security-opt systempaths=unconfined "
    "--cap-add SYS_ADMIN), or use --sandbox docker or podman"
)


def refusal(fault: dict[str, Any]) -> Refused:
    """The error for a kernel that refuses to build the sandbox."""
    return Refused(
        "the sandbox for generated code cannot be built on this machine",
        expected="a kernel of at least 5.14 that lets this user create namespaces",
        actual=f"{fault.get('stage')}: {fault.get('error')} (Linux {platform.release()})",
        remedy=REMEDIES,
    )
