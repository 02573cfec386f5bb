"""Code that runs inside the sandbox: the worker, its namespaces, and the processes of one sample.

Standard library only, so that it starts fast and runs in a container without trimoe. Read in this order: kernel and
seccomp (system calls), namespaces (isolation, and the root file system), sample (one run), wire (values as text),
python (the processes of a sample), worker (the loop).
"""
