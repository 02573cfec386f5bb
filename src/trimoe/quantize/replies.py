"""Greedy replies that a quantized checkpoint gives when its values are decoded here, kept in its manifest.

A server that loads the checkpoint can be compared with them: one that leaves out scales or weights starts without an
error and answers nonsense. Recorded where torch is installed and the model is small or the caller asks for it; the
manifest says why if not.
"""

import gc
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimoe.certify.prompts import DEFAULT
from trimoe.errors import TrimoeError
from trimoe.io.canonical import sha256_json
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import ITEM_BITS

PROMPTS = tuple(one[0]["content"] for one in DEFAULT)
"""The first question of each bundled conversation."""
TOKENS = 16
SMALL = 4 << 30
"""Largest model, in bytes as float32, that is recorded without being asked."""
LEAST = 0.3
"""Least mean agreement of a server with the record. On the bundled model random experts agree to 0.03, and the model
before it was quantized, which differs more than other kernels do, to 0.48."""


def recorded_replies(folder: Path, wanted: bool | None = None) -> dict[str, Any]:
    """The record for the manifest: prompts' hash, tokens, texts; or the reason why there is none.

    `wanted` None: only for small models; False: never; True: whatever the size.
    """
    if wanted is False:
        return {"not recorded": "not wanted"}
    if absent := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        return {"not recorded": f"{', '.join(absent)} not installed"}
    bits = {**ITEM_BITS, "U8": 4}
    needed = sum(info.nbytes * 8 // bits[info.dtype] * 4 for info in open_checkpoint(folder).index.values())
    if wanted is None and needed > SMALL:
        return {"not recorded": f"{needed / 2**30:.1f} GiB as float32, over {SMALL / 2**30:g}; ask with --replies"}
    try:
        return {"prompts": sha256_json(list(PROMPTS)), "tokens": TOKENS, "texts": replies_of(folder)}
    except TrimoeError as exc:  # no chat template, no decoder: the checkpoint is as good without a record
        return {"not recorded": exc.subject}


def replies_of(folder: Path) -> list[str]:
    """Greedy replies to `PROMPTS`, thinking off, decoded and in float32."""
    from trimoe.model.family.file import family_of
    from trimoe.model.generate import Generator

    checkpoint = open_checkpoint(folder)
    generator = Generator(folder)
    family = family_of(str(checkpoint.config.get("model_type", "")))
    serving = family.serving_for(generator.chat_template) if family else None
    arguments: dict[str, Any] = {serving.thinking: False} if serving and serving.thinking else {}
    prompts = [generator.encode(prompt, **arguments) for prompt in PROMPTS]
    texts = [reply.text for reply in generator.reply(prompts, TOKENS)]
    del generator
    gc.collect()
    return texts


def agreement(known: Sequence[str], given: Sequence[str]) -> float:
    """Mean share of each known text that the given one begins with, white space at the ends ignored; in [0, 1]."""
    pairs = [(a.strip(), b.strip()) for a, b in zip(known, given, strict=True)]
    shares = [_alike(a, b) / len(a) for a, b in pairs if a]
    return sum(shares) / len(shares) if shares else 1.0


def _alike(a: str, b: str) -> int:
    """The number of characters with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
