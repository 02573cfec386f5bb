"""Checkpoint + drop map -> smaller checkpoint, and the proof that nothing else changed."""
