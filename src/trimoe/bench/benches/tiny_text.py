"""Transformations of given words; the whole reply must equal the answer."""

from trimoe.bench.bench import Bench, exact, held_out, whole_reply

BENCH = Bench(
    name="tiny-text",
    version=1,
    rows=100,
    max_new_tokens=48,
    load=held_out("text"),
    extract=whole_reply,
    score=exact(lambda answer, check: bool(answer == check["text"])),
)
