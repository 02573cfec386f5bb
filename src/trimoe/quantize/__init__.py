"""Quantization: GGUF ladders, measured mixes and NVFP4 checkpoints, with sizes predicted beforehand."""

from trimoe.public import make_callable

make_callable(__name__)
