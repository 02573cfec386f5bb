"""Checkpoint + calibration set -> expert statistics."""
