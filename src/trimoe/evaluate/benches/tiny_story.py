"""tiny-story: what happened to whom; the reply must be exactly the sentence asked for."""

from trimoe.evaluate.bench import Bench
from trimoe.evaluate.benches import heldout
from trimoe.evaluate.benches.tiny_text import score

BENCH = Bench("tiny-story", 1, 32, lambda: heldout("story", 100), score)
