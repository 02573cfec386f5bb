"""Expert statistics -> drop map."""
