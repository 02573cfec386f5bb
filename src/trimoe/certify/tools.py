"""Versions of the software that took part in a proof."""

from importlib import metadata
from importlib.util import find_spec

from trimoe import __version__


def tool_versions(*packages: str) -> dict[str, str]:
    """trimoe's version and those of the `packages` that are installed."""
    installed = [name for name in packages if find_spec(name) is not None]
    return {"trimoe": __version__, **{name: metadata.version(name) for name in installed}}
