"""One thin file per bench: its rows, its cap, its scorer. A new file that defines BENCH is a new bench."""

from trimoe.evaluate.bench import Sample
from trimoe.model.tiny.tasks import generate


def heldout(domain: str, count: int) -> list[Sample]:
    """Held-out items of one of the bundled model's domains."""
    return [Sample(i.item_id, i.prompt, i.answer, i.check) for i in generate(domain, "heldout", count, seed=0)]
