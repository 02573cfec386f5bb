"""Prunes a model: checkpoint or GGUF + drop map -> smaller model, by copying byte ranges."""
