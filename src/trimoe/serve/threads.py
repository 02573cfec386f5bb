"""Number of threads of a server on this machine."""

import os


def default_threads() -> int:
    """Half of the usable cores; the client, its scorers and the server's own loop need the others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)
