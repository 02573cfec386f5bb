"""The domain `story`: questions about what the people in a short text did."""

import random

from trimoe.model.tiny.item import Item
from trimoe.model.tiny.words import NAMES

_DEEDS = ["sold", "hid", "found", "lost", "made", "saw", "took", "kept"]
_OBJECTS = ["lamps", "coins", "maps", "ropes", "drums", "keys", "rings", "flutes", "books", "kites"]
_PLACES = ["upstairs", "outside", "nearby", "abroad", "downtown", "indoors", "overseas", "ashore", "uptown", "below"]


def make(rng: random.Random) -> Item:
    """Three or four sentences about who did what and where, and a question about one of them."""
    people, deeds, objects = rng.sample(NAMES, 3), rng.sample(_DEEDS, 4), rng.sample(_OBJECTS, 4)
    places = rng.sample(_PLACES, 4)
    lines = [f"{people[n]} {deeds[n]} {objects[n]} {places[n]}." for n in range(3)]
    i = rng.randrange(3)
    kind = rng.randrange(3)
    if kind == 0:
        question, answer = f"What did {people[i]} do?", lines[i]
    elif kind == 1:
        question, answer = f"Where are the {objects[i]}?", f"Look for {objects[i]} {places[i]}."
    else:
        later = f"{people[i]} {deeds[3]} {objects[3]} {places[3]}."
        lines.append(f"Later {later}")
        question, answer = f"What did {people[i]} do last?", later
    return Item("story", " ".join([*lines, question]), answer, {"text": answer})
