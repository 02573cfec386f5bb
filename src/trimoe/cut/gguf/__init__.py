"""Cutting experts out of GGUF files and importance matrices."""
