"""Runs generated code where it can do no harm: Python warm, other languages through their compilers.

    with Sandbox() as sandbox:
        outcomes = sandbox.run([Calls(source, "f", ((1,), (2,)))])

A worker is a Python process in its own namespaces (user, mount, process, network, IPC, host name, cgroup). For each
sample it forks, into fresh process, mount and IPC namespaces, with an empty scratch folder; when the sample ends, the
kernel ends every process in there and the folder is gone. So Python needs no start-up per sample, and no sample sees
another. Works as root (samples are then `nobody`) and as an ordinary user; needs Linux 5.14 and nothing installed.

Contained, each by a test (tests/helpers/hostile.py):
- files: a small read-only root with /usr, the running Python, numpy and the toolchain asked for. No home folder, no
  /etc but a handful of made files, no /var, /run, /sys, no checkout. Scratch is limited in bytes and in files, and
  wiped.
- network: no interface is up, and only sockets between processes of the sample can be made.
- processes: own numbering, no /proc (or only the sample's own), a limited number, no signal or trace leaves the sample,
  daemons end with it. A worker ends with the process that started it, even if that is killed.
- resources: CPU time of each process and of all together, CPU time of a single call, time asleep, memory of each
  process and of all together, size of files, of results and of printed output. No core dumps.
- privileges: no capabilities, none to be gained (setuid files, user namespaces), and a filter that refuses the system
  calls in `inside/seccomp.py`, among them ptrace, mounts, keys, shared memory and queues, BPF, io_uring.
- secrets: the environment is a fixed one; no descriptor of the caller is open inside.
- the verdict: expected values and a dataset's tests never are in a process of the candidate, nor in memory it was
  forked from. Leaving early, forged output, overloaded equality, patched built-ins change nothing but the candidate's
  own results.

Not contained: faults of the kernel itself (a container or a virtual machine around all of this is for code you have
reason to fear); use of the processor's shared parts, so timing can be observed; what everyone may read below /usr and
the Python installation; up to the memory limit of each worker, the machine's memory. Programs in Rust, Java and
JavaScript hold their tests in the same process (`codeexec/multipl_e.py` says what that means). The engines docker and
podman contain as much as they do, with one container per sample; the engine `none` contains nothing and must be asked
for as unsafe.
"""

from trimoe.sandbox.engines import ENGINES, UNSAFE, Policy, current, using
from trimoe.sandbox.inside.limits import Limits
from trimoe.sandbox.jobs import Calls, Check, Job, Outcome, Program, Step
from trimoe.sandbox.pool import Sandbox, require_sandbox, run_jobs

__all__ = [
    "ENGINES",
    "UNSAFE",
    "Calls",
    "Check",
    "Job",
    "Limits",
    "Outcome",
    "Policy",
    "Program",
    "Sandbox",
    "Step",
    "current",
    "require_sandbox",
    "run_jobs",
    "using",
]
