"""What runs on the other side of the wall: the worker, its namespaces, and the processes of one sample.

Standard library only, so that it starts fast and runs under any Python of this version, also in a container that has no
trimoe installed. Order: kernel, seccomp (system calls), enter (the place), sample (one run in it), wire (values as
text), python (what the processes of a sample do), worker (the loop).
"""
