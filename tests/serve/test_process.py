"""Processes that are started end, whatever ends first; others are never touched."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trimoe.errors import BadInput, Refused
from trimoe.serve.process import descendants, free_port, listener, require_free, started

# A server as bad as they come: ignores TERM, has a child in its own session that ignores it too.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 2:
    deaf = "import signal, time\\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)"
    subprocess.Popen([sys.executable, "-c", deaf, sys.argv[1]], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""
PAGE = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def marked(mark: str) -> list[int]:
    """Live processes with this word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


def wait_for(condition: object, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_a_server_that_ignores_term_and_its_runaway_child_are_gone_after_the_block(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-a"
    with started([sys.executable, "-c", STUBBORN, mark, "child"], free_port(), tmp_path / "log", grace=0.5) as server:
        assert wait_for(lambda: len(marked(mark)) >= 3), server.tail()  # supervisor, server, child
    assert marked(mark) == []


def test_sigkill_of_the_owner_leaves_no_process(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-b"
    owner = (
        "import sys, time\nfrom pathlib import Path\nfrom trimoe.serve.process import started, free_port\n"
        f"with started([sys.executable, '-c', {STUBBORN!r}, {mark!r}, 'child'], "
        f"free_port(), Path({str(tmp_path / 'log')!r}), grace=0.5):\n"
        "    print('in', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    assert wait_for(lambda: len(marked(mark)) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_for(lambda: not marked(mark)), marked(mark)


def test_sigkill_of_the_supervisor_kills_the_server(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-c"
    with started([sys.executable, "-c", STUBBORN, mark], free_port(), tmp_path / "log", grace=0.5) as server:
        assert wait_for(lambda: len(marked(mark)) >= 2)
        server.supervisor.kill()
        server.supervisor.wait()
        assert wait_for(lambda: not marked(mark)), marked(mark)


def test_a_server_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('line one'); print('no such tensor'); raise SystemExit(7)"]
    with started(command, free_port(), tmp_path / "log") as server, pytest.raises(BadInput) as caught:
        server.wait("/health", "engine")
    assert "exit code 7" in str(caught.value)
    assert "no such tensor" in str(caught.value)


def test_a_taken_port_is_refused_by_name_and_its_owner_lives_on(tmp_path: Path) -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "stranger-7b", "owned_by": "vllm"}]}')

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(Refused, match="stranger-7b"):
            require_free(server.server_port)
        with pytest.raises(Refused), started(["true"], server.server_port, tmp_path / "log"):
            pytest.fail("not reached")
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10):
            pass  # still there
    finally:
        server.shutdown()
        server.server_close()


def test_who_listens_is_known_and_a_stranger_on_our_port_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with started([sys.executable, "-c", PAGE, str(port)], port, tmp_path / "log") as server:
        server.wait("/", "page", limit=60)
        server.require_own_port("page")
        assert listener(port) in descendants(server.supervisor.pid)
    port = free_port()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with (
            started([sys.executable, "-c", STUBBORN, "x"], port, tmp_path / "log", grace=0.5) as server,
            socket.socket() as own,
        ):
            own.bind(("127.0.0.1", port))  # this process takes the port after the server was started
            own.listen()
            with pytest.raises(Refused, match=f"process {os.getpid()}"):
                server.require_own_port("engine")
    finally:
        other.kill()
        other.wait()
