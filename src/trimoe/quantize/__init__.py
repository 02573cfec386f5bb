"""Checkpoint -> files people run: GGUF ladders, measured mixes, NVFP4; their sizes beforehand."""
