"""A server process that trimoe starts: its log, its port, and its end.

Invariants: processes that trimoe did not start are never signalled. A taken port is refused before anything starts, and
once the server answers, the listening socket must belong to a descendant of ours. When the block is left, or trimoe
dies in any way, no process of the server remains (see supervisor.py). Messages include the end of the server's log.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, MissingPrerequisite, Refused

HOST = "127.0.0.1"
GRACE = 10.0  # seconds between TERM and KILL
READY = 720.0  # seconds a server may take until it answers
WARM_UP = 120.0  # seconds the first short generation may take
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_TAIL = 12  # lines of the log in a message
_PAUSE = 0.1


@dataclass(frozen=True)
class Server:
    """A running server: its supervisor process, log file and port."""

    supervisor: "subprocess.Popen[bytes]"
    log: Path
    port: int

    @property
    def root(self) -> str:
        """The address without a path."""
        return f"http://{HOST}:{self.port}"

    def tail(self) -> str:
        """The last lines of the log, for messages."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
                text = file.read().decode(errors="replace")
        except OSError:
            return "no log"
        lines = [line.rstrip() for line in text.splitlines() if line.strip()][-_TAIL:]
        return "\n    ".join([f"(end of {self.log})", *(line[:300] for line in lines)])

    def get(self, path: str, timeout: float = 10.0) -> Any:
        """The JSON of a page. Raises `OSError` or `ValueError`."""
        return fetch(f"{self.root}{path}", timeout=timeout)

    def wait(self, path: str, name: str, limit: float = READY) -> None:
        """Wait until the page answers 200. Raises `BadInput` with the log's end if the server ends or stays silent."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.supervisor.poll() is not None:
                raise BadInput(
                    f"{name} ended before it was ready",
                    expected="a server that loads the model",
                    actual=f"exit code {self.supervisor.returncode}; {self.tail()}",
                    remedy="see its log; `trimoe serve --print` shows the command",
                )
            try:
                with urllib.request.urlopen(f"{self.root}{path}", timeout=10) as answer:
                    if answer.status == 200:
                        return
            except (OSError, http.client.HTTPException):
                time.sleep(_PAUSE)
        raise BadInput(
            f"{name} is not ready after {limit:.0f} s",
            expected="an answer",
            actual=self.tail(),
            remedy="see its log; `trimoe serve --print` shows the command",
        )

    def require_own_port(self, name: str) -> None:
        """Raise `Refused` if another process took the port after it was checked."""
        owner = listener(self.port)
        if owner is not None and owner not in descendants(self.supervisor.pid):
            raise Refused(
                f"another process answers on port {self.port}",
                expected=f"the {name} server that was just started",
                actual=f"process {owner}; {who_is(self.port)}",
                remedy="choose another --port, or stop that process yourself",
            )


@contextmanager
def started(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None, grace: float = GRACE
) -> Iterator[Server]:
    """Run the command as a server while the block runs. `log` receives its output; the port must be free."""
    require_free(port)
    log.parent.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    try:
        with log.open("wb") as out:
            supervisor = subprocess.Popen(
                [sys.executable, "-I", str(_SUPERVISOR), str(read), str(grace), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(read,),
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
    except FileNotFoundError as exc:
        os.close(write)
        raise MissingPrerequisite(
            f"cannot start {command[0]}", expected="a program", actual=str(exc), remedy="install it, or check its path"
        ) from exc
    finally:
        os.close(read)
    try:
        yield Server(supervisor, log, port)
    finally:
        os.close(write)  # the supervisor sees the end of the pipe and stops everything
        try:
            supervisor.wait(timeout=2 * grace + 10)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def require_free(port: int) -> None:
    """Raise `Refused` if the port is taken, with what its server reports. Nothing is killed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            raise Refused(
                f"port {port} is taken",
                expected="a free port",
                actual=who_is(port),
                remedy=f"stop it yourself, choose another --port, or evaluate it directly: http://{HOST}:{port}",
            ) from exc


def who_is(port: int) -> str:
    """What the server on a port reports about itself, in a few words."""
    try:
        rows = fetch(f"http://{HOST}:{port}/v1/models", timeout=5)["data"]
        names = [f"{row['id']} ({row.get('owned_by', 'owner unknown')})" for row in rows[:3]]
        return "it reports serving " + ", ".join(names) if names else "it reports serving no model"
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return "it does not identify itself"


def fetch(
    url: str, body: Mapping[str, Any] | None = None, timeout: float = 10.0, headers: Mapping[str, str] | None = None
) -> Any:
    """The JSON of a GET, or of a POST if there is a body. Raises `OSError` (such as `HTTPError`) or `ValueError`."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def said(exc: Exception) -> str:
    """An error of `fetch` with the server's own text."""
    if isinstance(exc, urllib.error.HTTPError):
        return f"status {exc.code}: {exc.read()[:500].decode(errors='replace')}"
    return f"{type(exc).__name__}: {exc}"


def listener(port: int) -> int | None:
    """Process that listens on the TCP port; None if unknown (another user's process, no /proc)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A is LISTEN
                inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link) in inodes for link in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    return None


def descendants(pid: int) -> set[int]:
    """The process and all its descendants."""
    found, new = {pid}, [pid]
    while new:
        try:
            tasks = list(Path(f"/proc/{new.pop()}/task").glob("*/children"))
            children = {int(child) for task in tasks for child in task.read_text().split()} - found
        except OSError:
            continue
        found |= children
        new += children
    return found
