"""The whole story in one function: checkpoint to certified, evaluated, smaller models and the page that compares them.

Invariants: every step publishes one artifact; a rerun with the same inputs skips what is done and ends with the same
results; nothing is deleted. Not guaranteed: that a method that wins on the bundled model wins on yours.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from trimoe.artifact import publish_file, sha256_file
from trimoe.choose.dropmap import DropMap
from trimoe.choose.select import make_map
from trimoe.choose.recipe import load_recipe
from trimoe.cut.certify import Certificate, certify
from trimoe.cut.prune import prune
from trimoe.errors import Refused
from trimoe.evaluate.run import RunSummary, evaluate
from trimoe.measure.engine import calibrate
from trimoe.measure.stats import ExpertStats
from trimoe.model import tiny
from trimoe.model.checkpoint import Checkpoint, open_checkpoint

Progress = Callable[[int, int, str], None]

METHODS = ("v5-coder", "v4", "reap", "frequency", "random-0", "random-1", "random-2")
BENCHES = tuple(f"tiny-{domain}" for domain in ("code", "math", "choice", "format", "text", "story"))


@dataclass
class Story:
    """What the demo made: everything the table and the page are written from."""

    base: Checkpoint
    stats: ExpertStats
    log: Path
    maps: dict[str, DropMap] = field(default_factory=dict)
    models: dict[str, Path] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    runs: dict[str, list[RunSummary]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Wall time of one step, shown beside it and kept out of every artifact."""
        begin = perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + perf_counter() - begin
