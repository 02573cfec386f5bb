"""Measured mixes: the tensor types with the least measured loss for a given size."""
