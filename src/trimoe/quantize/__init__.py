"""Checkpoint -> files people run: GGUF ladders, measured mixes, NVFP4; their sizes beforehand."""

from trimoe.public import make_callable

make_callable(__name__)
