"""Certificates and map inference for GGUF files."""
