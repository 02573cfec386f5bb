"""A sandbox for generated code: warm Python processes, and compilers for other languages.

    with Sandbox() as sandbox:
        outcomes = sandbox.run([Calls(source, "f", ((1,), (2,)))])

A worker is a Python process in its own namespaces (user, mount, process, network, IPC, host name, cgroup). For each
sample it forks into fresh process, mount and IPC namespaces with an empty scratch folder. When the sample ends, the
kernel ends every process in these namespaces, and the folder is removed. Python therefore needs no start-up per sample,
and no sample sees another. Runs as root (samples are then `nobody`) or as an ordinary user. Needs Linux 5.14 and no
installed tools.

Contained, each with a test (tests/helpers/hostile.py):
- Files: a small read-only root with /usr, the running Python, numpy and the requested toolchain. No home folders, no
  /etc except a few generated files, no /var, /run or /sys, no checkout. Scratch is limited in bytes and in files, and
  wiped.
- Network: no interface is up; only sockets between processes of the sample can be created.
- Processes: own process ids, no /proc (or only the sample's own), a limited number, no signal or trace leaves the
  sample, daemons end with it. A worker ends with the process that started it, even if that process is killed.
- Resources: CPU time per process, per sample and per call; idle time; memory per process and per sample; size of files,
  of results and of printed output. No core dumps.
- Privileges: no capabilities and no way to gain them (setuid files, user namespaces). A filter refuses the system calls
  listed in `inside/seccomp.py`, among them ptrace, mounts, keys, shared memory and queues, BPF and io_uring.
- Secrets: the environment is fixed; no descriptor of the caller is open inside.
- Verdicts: results are decoded and compared in a sample of their own, so no size or cost that they choose reaches the
  caller; expected values and a data set's tests are never in a process of the candidate, nor in memory it was forked
  from. Exiting early, forged output, overloaded equality or patched built-ins change only the candidate's own results.

Not contained: bugs of the kernel itself (use a container or a virtual machine around the sandbox if you have reason to
fear the code); timing through shared parts of the processor; what every user may read below /usr and the Python
installation; the machine's memory up to the limit of each worker. Programs in Rust, Java and JavaScript hold their
tests in the same process (`bench/code/multipl_e.py` explains the consequence). The engines docker and podman contain
as much as a container does, with one container per sample. The engine `none` contains nothing and must be requested
explicitly as unsafe.
"""

from trimoe.sandbox.engines import ENGINES, UNSAFE, Policy, current, using
from trimoe.sandbox.inside.limits import Limits
from trimoe.sandbox.jobs import Calls, Check, Compare, Job, Outcome, Program, Step
from trimoe.sandbox.pool import Sandbox, require_sandbox, run_jobs

__all__ = [
    "ENGINES",
    "UNSAFE",
    "Calls",
    "Check",
    "Compare",
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
