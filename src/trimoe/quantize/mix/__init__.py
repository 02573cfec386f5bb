"""The type mix with the least measured loss for a given size."""
