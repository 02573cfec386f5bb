"""Hashes of a checkpoint's tensors by layer and kind of module: small, and they still say what differs."""

import hashlib
from pathlib import Path

from trimoe.model.safetensors import read_bytes
from trimoe.model.shards import read_index


def digests(folder: Path) -> dict[str, str]:
    """`layers.0.experts.down_proj.weight` -> sha256 over names, types, shapes and bytes of all such tensors."""
    found: dict[str, hashlib._Hash] = {}
    index = read_index(folder)
    for name in sorted(index):
        info = index[name]
        head, _, rest = name.partition("experts.")
        kind = head + "experts." + rest.partition(".")[2] if rest else name
        line = f"{name}|{info.dtype}|{list(info.shape)}|".encode()
        found.setdefault(kind, hashlib.sha256()).update(line + read_bytes(info))
    return {kind: digest.hexdigest()[:32] for kind, digest in found.items()}
