"""Not built yet: checkpoint -> files people run (GGUF, NVFP4)."""
