"""Fixtures of the tests that run llama.cpp."""

from helpers.llamacpp import llamacpp

__all__ = ["llamacpp"]
