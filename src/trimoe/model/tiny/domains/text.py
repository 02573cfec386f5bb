"""The domain `text`: transformations of given words, and translation into an invented language."""

import random

from trimoe.model.tiny.item import Item
from trimoe.model.tiny.words import WORDS


def _dictionary() -> dict[str, str]:
    rng = random.Random("dictionary")
    forms = rng.sample(
        [
            a + b
            for a in ("ba", "do", "ke", "li", "mu", "pa", "ro", "su", "ti", "ve", "xo", "ya")
            for b in ("nak", "rim", "sel", "tov", "ush", "yar", "zed", "bik", "lon", "gap")
        ],
        len(WORDS),
    )
    return dict(zip(WORDS, forms, strict=True))


_GLIM = _dictionary()  # English -> Glim


def make(rng: random.Random) -> Item:
    """A transformation of three or four words, or a translation into or from the language Glim."""
    words = rng.sample(WORDS, rng.randint(3, 4))
    line = " ".join(words)
    kind = rng.randrange(10)
    if kind <= 2:
        words = words[:2]
        prompt, answer = f"Translate into Glim: {' '.join(words)}", " ".join(_GLIM[w] for w in words)
    elif kind == 3:
        prompt, answer = f"Reverse the word order: {line}", " ".join(reversed(words))
    elif kind == 4:
        prompt, answer = f"Write in capitals: {line}", line.upper()
    elif kind == 5:
        prompt, answer = f"Give the first letters: {line}", " ".join(w[0] for w in words)
    elif kind == 6:
        i = rng.randrange(len(words))
        new = rng.choice(WORDS)
        prompt = f"Replace {words[i]} by {new}: {line}"
        answer = " ".join(new if w == words[i] else w for w in words)
    elif kind == 7:
        i = rng.randrange(len(words))
        prompt, answer = f"Remove {words[i]}: {line}", " ".join(w for w in words if w != words[i])
    elif kind == 8:
        prompt, answer = f"Sort from a to z: {line}", " ".join(sorted(words))
    else:
        pair = [words[0], *rng.sample(WORDS, 1)]
        prompt, answer = f"Translate from Glim: {' '.join(_GLIM[w] for w in pair)}", " ".join(pair)
    return Item("text", prompt, answer, {"text": answer})
