"""Calibration of a GGUF model: llama.cpp runs it, `trimoe-expert-stats` adds up, without torch or a checkpoint."""
