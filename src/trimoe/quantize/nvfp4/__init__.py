"""NVFP4A16 checkpoints."""
