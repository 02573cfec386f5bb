"""The bundled model: a real, trained Gemma 4 mixture of experts of 9 MB, and its tasks."""

from pathlib import Path


def path() -> Path:
    """Directory of the bundled checkpoint."""
    return Path(__file__).parent / "checkpoint"
