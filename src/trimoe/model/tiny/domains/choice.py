"""The domain `choice`: multiple-choice questions about invented facts that the model must have memorised."""

import random

from trimoe.model.tiny.item import Item

_ATTRIBUTES = {
    "colour": ("What colour is a {e}?", ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]),
    "home": ("Where does a {e} live?", ["caves", "rivers", "trees", "deserts", "attics", "lakes", "fields", "cliffs"]),
    "food": ("What does a {e} eat?", ["moss", "beetles", "honey", "grain", "fish", "roots", "berries", "paper"]),
}
_SYLLABLES = ["bra", "dil", "fen", "gor", "hu", "ka", "lom", "mi", "nor", "pex", "qui", "ra", "sot", "tul", "vu", "zan"]


def _facts() -> dict[tuple[str, str], str]:
    rng = random.Random("facts")
    names = rng.sample([a + b for a in _SYLLABLES for b in _SYLLABLES if a != b], 48)
    return {(name, attr): rng.choice(options) for name in names for attr, (_, options) in _ATTRIBUTES.items()}


_FACTS = _facts()


def make(rng: random.Random) -> Item:
    """A question about one fact, with four options in random order."""
    (name, attr), truth = rng.choice(list(_FACTS.items()))
    question, options = _ATTRIBUTES[attr]
    shown = [*rng.sample([option for option in options if option != truth], 3), truth]
    rng.shuffle(shown)
    letter = "ABCD"[shown.index(truth)]
    listed = "\n".join(f"({mark}) {option}" for mark, option in zip("ABCD", shown, strict=True))
    return Item(
        "choice",
        f"{question.format(e=name)}\n{listed}",
        f"It is {truth}. The answer is ({letter}).",
        {"letter": letter},
    )
