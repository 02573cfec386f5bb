"""The whole story on one page: checkpoint to certified, evaluated, smaller models, compared on the same items.

Invariants: every step publishes one artifact in the work directory; a rerun continues, and ends as an undisturbed run
does. A cut that is not proven stops the story. Not guaranteed: that the method that wins here wins on your model.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import find
from trimoe.calibrate.engine import calibrate
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.text.leaks import BenchTexts
from trimoe.certify.certificate import Certificate
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import load_recipe
from trimoe.choose.select import make_map
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, Refused
from trimoe.evaluate.evaluate import evaluate
from trimoe.evaluate.guards import NAMES
from trimoe.io.atomic import publish_file
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.io.progress import Progress
from trimoe.judge.compare import compare
from trimoe.judge.comparison import Comparison, Row
from trimoe.judge.rows import overall
from trimoe.model import tiny
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.generate import Generator
from trimoe.model.tiny import tasks

METHODS = ("v5-coder", "v4", "reap", "frequency", "random-0", "random-1", "random-2")
BENCHES = ("tiny-code", "tiny-math", "tiny-choice", "tiny-format", "tiny-text", "tiny-story")
BASE = "base"


@dataclass
class Story:
    """What was made, for the table and the page. `seconds` are wall times per step of this run."""

    model: Checkpoint
    work: Path
    keep: int
    stats: ExpertStats
    maps: dict[str, DropMap] = field(default_factory=dict)
    models: dict[str, Path] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    comparison: Comparison = field(default_factory=lambda: Comparison(BASE, (), ()))

    @property
    def log(self) -> Path:
        """The run log."""
        return self.work / "runs.db"

    @property
    def overall(self) -> dict[str, Row]:
        """Base and every method over all items of all benches."""
        names = dict.fromkeys(row.name for row in self.comparison.rows)
        return {name: overall([row for row in self.comparison.rows if row.name == name]) for name in names}

    def size_of(self, name: str) -> int:
        """Bytes of a model's weight files; base or a method."""
        path = self.models.get(name, self.model.path)
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def run_story(
    work: Path,
    *,
    model: Path | None = None,
    methods: Sequence[str] = METHODS,
    benches: Sequence[str] = BENCHES,
    drop_fraction: float = 0.25,
    limit: int | None = None,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> Story:
    """calibrate -> maps -> prune -> certify -> eval -> compare on the bundled (or another Gemma 4 tiny) model."""
    base = open_checkpoint(model or tiny.path())
    seconds: dict[str, float] = {}
    keep = base.num_experts - int(drop_fraction * base.num_experts)
    with _step("calibrate", seconds, progress) as tell:
        stats = measured(base, work, tell, benches)
    story = Story(base, work, keep, stats, seconds=seconds)
    with _step("map", seconds, progress):
        for name in methods:
            story.maps[name] = make_map(stats, load_recipe(name), keep=keep)
            story.maps[name].save(work / "maps" / f"{name}.json", overwrite=True)
    for number, (name, drop_map) in enumerate(story.maps.items()):
        with _step("prune", seconds, progress) as tell:
            tell(number, len(methods), name)
            story.models[name] = pruned(base, drop_map, work / "models" / name)
        with _step("certify", seconds, progress) as tell:
            tell(number, len(methods), name)
            certificate = certify(base.path, story.models[name], map=drop_map)
            story.certificates[name] = certificate
            if certificate.status != "proven":
                raise Refused(
                    f"the cut {name} is {certificate.status}, not proven",
                    expected="a proven cut",
                    actual=str(story.models[name] / "certificate.json"),
                )
    for name, path in {BASE: base.path, **story.models}.items():
        with _step("eval", seconds, progress) as tell:
            # what a bad choice of experts does to a model is the story's point: shown with its mark, not paused
            evaluate(
                path,
                bench=list(benches),
                log=story.log,
                name=name,
                limit=limit,
                ignore_guards=NAMES,
                progress=partial(_named, tell, name),
            )
    with _step("compare", seconds, progress):
        story.comparison = compare(story.log, base=BASE, against=list(methods), detail=False)
    return story


def measured(base: Checkpoint, work: Path, tell: Progress, benches: Sequence[str] = ()) -> ExpertStats:
    """Statistics of the demo's calibration set, checked for leaks of the benches; made once, those of another model
    are refused."""
    path = work / "stats.safetensors"
    if path.exists():
        stats = ExpertStats.load(path)
        if stats.metadata.get("model") != base.fingerprint:
            raise BadInput(f"{path} belongs to another model", remedy="give another --out, or remove the old directory")
        return stats
    traces = work / "calibration" / "traces.jsonl"
    if not traces.exists():
        rows = passing_traces(base, "code", 96)
        with publish_file(traces) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = traces.with_name("set.yaml")
    with publish_file(chosen, overwrite=True) as temporary:
        temporary.write_text((tiny.path().parent / "calibration.yaml").read_text())
    docs = {name: find([name])[0].docs(None) for name in benches}
    texts = [BenchTexts(name, tuple((d.doc_id, (d.prompt, d.reference)) for d in docs[name])) for name in benches]
    return calibrate(base.path, chosen, path, benches=texts, progress=tell)


def passing_traces(base: Checkpoint, domain: str, count: int) -> list[dict[str, str]]:
    """The model's own replies to train-split items that pass their scorer: a targeted class (protocol, tier B)."""
    items = tasks.generate(domain, "train", count, seed=1)
    docs = [Doc(item.item_id, item.prompt, item.answer, item.check) for item in items]
    bench = find([f"tiny-{domain}"])[0]
    model = Generator(base.path)
    replies = model.reply([model.encode(doc.prompt) for doc in docs], bench.max_new_tokens)
    verdicts = bench.judge([(r.text, r.finish_reason, doc) for r, doc in zip(replies, docs, strict=True)])
    passed = [
        {"prompt": doc.prompt, "completion": reply.text}
        for doc, reply, verdict in zip(docs, replies, verdicts, strict=True)
        if verdict.correct
    ]
    if not passed:
        raise Refused(
            f"the model passes none of {count} {domain} items",
            expected="a trained model",
            remedy="targeted classes are made of passing replies only",
        )
    return passed


def pruned(base: Checkpoint, drop_map: DropMap, out: Path) -> Path:
    """The cut checkpoint, made once; one of another model or map is refused, not reused."""
    if not out.exists():
        prune(base.path, drop_map, out)
        return out
    inputs = read_json(out / MANIFEST, "manifest").get("inputs") or {}
    recorded = DropMap({int(k): tuple(v) for k, v in _recorded(out).items()})
    if inputs.get("base") != base.fingerprint or recorded.drop != drop_map.drop:
        raise BadInput(f"{out} was cut from another model or by another map", remedy="give another --out, or remove it")
    return out


def _named(tell: Progress, name: str, done: int, total: int, note: str = "") -> None:
    tell(done, total, f"{name}: {note}")


def _recorded(out: Path) -> dict[str, list[int]]:
    return dict(read_json(out / "expert_drop_metadata.json", "drop metadata")["per_layer_drop"])


@contextmanager
def _step(
    name: str, seconds: dict[str, float], progress: Callable[[str, int, int, str], None] | None
) -> Iterator[Progress]:
    """Times a step and names it in the progress."""

    def tell(done: int, total: int, note: str = "") -> None:
        if progress is not None:
            progress(name, done, total, note)

    begin = perf_counter()
    tell(0, 0, "")
    yield tell
    seconds[name] = seconds.get(name, 0.0) + perf_counter() - begin
