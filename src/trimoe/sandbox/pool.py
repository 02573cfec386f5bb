"""The pool of sandbox workers and the distribution of jobs; runs outside the sandbox.

Invariants: one outcome per job, in job order, whatever candidates do. If a worker dies or stops answering, its job is
tried once more on a fresh worker; after that its outcome is `harness`. No process survives the `with` block.
"""

import json
import os
import select
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any

from trimoe.errors import MissingPrerequisite, TrimoeError
from trimoe.sandbox import engines
from trimoe.sandbox.engines import Policy
from trimoe.sandbox.inside.limits import Limits
from trimoe.sandbox.jobs import Job, Outcome, data_of, read

_START_SECONDS = 60.0  # for a worker to start on a busy machine; a container may have to fetch its image first
_GRACE_SECONDS = 30.0  # beyond a job's own wall-time limit, which the worker enforces
_CLOSE_SECONDS = 5.0
_TRIES = 2


class WorkerLost(Exception):
    """The worker exited or did not answer in time."""


class Worker:
    """One worker process and its two pipes. Raises `Refused` or `MissingPrerequisite` if it cannot be started."""

    def __init__(self, policy: Policy, limits: Limits, folders: tuple[str, ...], proc: bool) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the worker
        self._process = subprocess.Popen(
            engines.command(policy, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=engines.environment(policy),
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        try:
            deadline = time.monotonic() + _START_SECONDS * (10 if policy.in_container else 1)
            self._send(_frame(engines.configuration(policy, folders, proc)), deadline)
            self.hello, _ = self._receive(deadline)
        except WorkerLost as exc:
            raise self._did_not_start(policy, str(exc)) from exc
        if not self.hello["ready"]:
            self.close()
            raise engines.refusal(self.hello)

    def run(self, job: Job) -> Outcome:
        """The outcome of one job. Raises `WorkerLost`."""
        kind, parts = data_of(job)
        header = {"kind": kind, "limits": asdict(job.limits), "sizes": [len(part) for part in parts]}
        deadline = time.monotonic() + job.limits.wall + _GRACE_SECONDS
        self._send(_frame(header) + b"".join(parts), deadline)
        report, results = self._receive(deadline)
        if "ready" in report:
            raise WorkerLost(f"{report['stage']}: {report['error']}")
        return read(job, report, results)

    def kill(self) -> None:
        """Kill the worker. The thread that waits for it gets `WorkerLost` and closes it."""
        if self._process.poll() is None:
            # It has a process group of its own, and its children end with it even if they leave the group.
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the worker and all its processes. Closing its input suffices unless it hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _did_not_start(self, policy: Policy, why: str) -> TrimoeError:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()[-500:].decode(errors="replace").strip()
        self.close()
        if not policy.in_container:
            return engines.refusal({"stage": "start", "error": f"{why} {said}"})
        return MissingPrerequisite(
            f"{policy.engine} did not start a container",
            expected=f"a running {policy.engine} with the image {policy.image}",
            actual=f"{why} {said}",
            remedy=f"start the daemon, and try: {policy.engine} run --rm {policy.image} python3 --version",
        )

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._to, view) :]
            except BrokenPipeError as exc:
                raise WorkerLost("the sandbox exited while it was given a job") from exc

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        (size,) = struct.unpack(">I", self._read(4, deadline))
        header: dict[str, Any] = json.loads(self._read(size, deadline))
        return header, self._read(header["size"], deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._from, select.POLLIN, deadline)
            block = os.read(self._from, min(1 << 20, size - len(data)))
            if not block:
                raise WorkerLost("the sandbox exited before it reported")
            data += block
        return bytes(data)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WorkerLost("the sandbox did not answer in time")


class Sandbox:
    """Workers with the same visible files. Use as a context manager; `run` may be called many times.

    `folders` are additional visible folders, such as a toolchain. `proc` mounts a /proc with the sample's own
    processes, which language runtimes need and Python does not. `workers` defaults to the number of usable cores,
    `policy` to the current one.
    """

    def __init__(
        self,
        *,
        folders: Sequence[str] = (),
        proc: bool = False,
        workers: int | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or engines.current()
        engines.require_engine(self.policy)
        self._view = (tuple(folders), proc)
        self._most = workers or _cores()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self, limits: Limits | None = None) -> None:
        """Start one worker, or raise the reason why it cannot start. A container as a whole gets `limits`."""
        self._give(self._take(limits or Limits()))

    def run(self, jobs: Sequence[Job], progress: Callable[[int], None] | None = None) -> list[Outcome]:
        """One outcome per job, in order. `progress` is called with the number of finished jobs."""
        if not jobs:
            return []
        self.start(jobs[0].limits)  # fails once, here, if no sandbox can be built
        outcomes: list[Outcome] = []
        with ThreadPoolExecutor(min(self._most, len(jobs))) as threads:
            try:
                for outcome in threads.map(self._one, jobs):
                    outcomes.append(outcome)
                    if progress:
                        progress(len(outcomes))
            except BaseException:  # above all Ctrl-C: the threads must not wait for their jobs
                self.close()
                raise
        return outcomes

    def _one(self, job: Job) -> Outcome:
        reason = "the sandbox was closed"
        for _ in range(_TRIES):
            if self._closed:
                break
            worker = None
            try:
                worker = self._take(job.limits)
                outcome = worker.run(job)
            except WorkerLost as exc:
                reason = str(exc)
            except TrimoeError as exc:
                reason = exc.subject
            else:
                self._give(worker)
                return outcome
            if worker is not None:
                self._discard(worker)
        return Outcome("harness", reason)

    def _take(self, limits: Limits) -> Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = Worker(self.policy, limits, *self._view)
        with self._lock:
            if not self._closed:
                self._all.add(worker)
                return worker
        worker.close()  # the sandbox was closed while this worker started
        raise WorkerLost("the sandbox was closed")

    def _give(self, worker: Worker) -> None:
        if self.policy.in_container:
            self._discard(worker)  # one container per sample
            return
        with self._lock:
            self._idle.append(worker)

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.close()

    def close(self) -> None:
        """End every worker. A busy one is killed here and closed by the thread that uses it."""
        with self._lock:
            self._closed, idle, busy = True, self._idle, self._all.difference(self._idle)
            self._idle, self._all = [], set()
        for worker in busy:
            worker.kill()
        for worker in idle:
            worker.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_sandbox() -> None:
    """Start and end one worker. Raises `Refused` or `MissingPrerequisite` if the policy does not work here."""
    with Sandbox(workers=1) as sandbox:
        sandbox.start()


def run_jobs(jobs: Sequence[Job], *, folders: Sequence[str] = (), proc: bool = False) -> list[Outcome]:
    """Run jobs in a new sandbox."""
    with Sandbox(folders=folders, proc=proc) as sandbox:
        return sandbox.run(jobs)


def _cores() -> int:
    """Cores that this process may use, or all cores where the system does not report that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _frame(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack(">I", len(text)) + text
