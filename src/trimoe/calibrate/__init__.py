"""Checkpoint + calibration set -> expert statistics."""

from trimoe.public import make_callable

make_callable(__name__)
