"""Samples that other programs recorded -> a run log: layouts, comparison with the pinned rows, repeated replies."""
