"""The full workflow for any checkpoint: calibrate, choose by several recipes, prune, certify, evaluate, compare.

Invariants: each step publishes one artifact in the output directory; a rerun with the same arguments resumes and ends
with the same artifacts; artifacts of another model, set or map are refused, not reused; a cut that is not proven stops
the pipeline. Not guaranteed: that an edited calibration set of the same name is noticed, or that the recipe that wins
on these benches wins on other work.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from trimoe.bench.catalog import find
from trimoe.calibrate.engine import calibrate
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.calibrate.text.leaks import BenchTexts
from trimoe.certify.certify import certify
from trimoe.choose.choose import choose
from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import load_recipe
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, Refused, UsageError
from trimoe.evaluate.evaluate import evaluate
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.io.progress import Progress
from trimoe.judge.compare import compare
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.report.story import BASE, Story

StepProgress = Callable[[str, int, int, str], None]
"""Called as `progress(step, done, total, text)`."""


def run_pipeline(
    model: Checkpoint | Path | str,
    calibration: CalibrationSet | Path | str,
    out: Path | str,
    *,
    recipes: Sequence[str],
    benches: Sequence[str],
    keep: int,
    limit: int | None = None,
    data: Path | str | None = None,
    device: str = "cpu",
    ignore_guards: Iterable[str] = (),
    progress: StepProgress | None = None,
) -> Story:
    """Run every step in the directory `out` and return what was made.

    `model` is a checkpoint directory. `recipes` are shipped names or .toml files; each keeps `keep` experts in every
    layer and gives one pruned model, named like its recipe. The base and every pruned model answer the first `limit`
    items of each of `benches`; `data` is a folder of local data sets. The calibration set is checked for items of the
    benches.

    Raises `UsageError` for no recipe or bench, `BadInput` if `out` has artifacts of other inputs, `Refused` if a cut is
    not proven or a guard pauses an evaluation, and what the steps raise.
    """
    if not recipes or not benches:
        raise UsageError("the pipeline needs a recipe and a bench", actual=f"{list(recipes)}, {list(benches)}")
    base = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    work, folder = Path(out), Path(data) if data is not None else None
    seconds: dict[str, float] = {}
    with _step("calibrate", seconds, progress) as tell:
        # Reconstruction takes longer than all other statistics: only for a recipe that uses it.
        recon = None if any(load_recipe(name).criterion == "recon" for name in recipes) else 0
        texts = _texts(benches, folder)
        stats = _statistics(base, calibration, work / "stats.safetensors", texts, device, recon, tell)
    story = Story(base, work, keep, stats, seconds=seconds)
    with _step("map", seconds, progress):
        for recipe in recipes:
            drop_map = choose(stats, recipe=recipe, keep=keep)
            name = Path(recipe).stem if recipe.endswith(".toml") else recipe
            story.maps[name] = drop_map
            drop_map.save(work / "maps" / f"{name}.json", overwrite=True)
    for number, name in enumerate(story.maps):
        with _step("prune", seconds, progress) as tell:
            tell(number, len(story.maps), name)
            story.models[name] = _pruned(base, story.maps[name], work / "models" / name)
        with _step("certify", seconds, progress) as tell:
            tell(number, len(story.maps), name)
            _prove(story, name, device)
    for name, path in {BASE: base.path, **story.models}.items():
        with _step("eval", seconds, progress) as tell:
            evaluate(
                path,
                bench=list(benches),
                log=story.log,
                name=name,
                limit=limit,
                data=folder,
                device=device,
                ignore_guards=ignore_guards,
                progress=partial(_prefixed, tell, name),
            )
    with _step("compare", seconds, progress):
        story.comparison = compare(story.log, base=BASE, against=list(story.maps), detail=False)
    return story


def _texts(benches: Sequence[str], data: Path | None) -> list[BenchTexts]:
    """The items of every bench, to look for in the calibration set."""
    items = {name: find([name])[0].docs(data) for name in benches}
    return [BenchTexts(name, tuple((d.doc_id, (d.prompt, d.reference)) for d in docs)) for name, docs in items.items()]


def _statistics(
    base: Checkpoint,
    calibration: CalibrationSet | Path | str,
    path: Path,
    benches: Sequence[BenchTexts],
    device: str,
    recon: int | None,
    tell: Progress,
) -> ExpertStats:
    """The statistics file `path`, made once. Raises `BadInput` if it is of another model or calibration set."""
    chosen = calibration if isinstance(calibration, CalibrationSet) else CalibrationSet.load(calibration)
    if not path.exists():
        return calibrate(base, chosen, path, device=device, benches=benches, recon=recon, progress=tell)
    stats = ExpertStats.load(path)
    expected = {"model": base.fingerprint, "set_name": chosen.name}
    actual = {key: stats.metadata.get(key) for key in expected}
    if actual != expected:
        raise BadInput(
            f"{path} is of another model or calibration set",
            expected=str(expected),
            actual=str(actual),
            remedy="choose another output directory, or remove this one",
        )
    return stats


def _pruned(base: Checkpoint, drop_map: DropMap, out: Path) -> Path:
    """The pruned checkpoint, made once. Raises `BadInput` if `out` is a cut of another model or by another map."""
    if not out.exists():
        prune(base.path, drop_map, out)
        return out
    inputs = read_json(out / MANIFEST, "manifest").get("inputs") or {}
    recorded = read_json(out / "expert_drop_metadata.json", "drop metadata")["per_layer_drop"]
    same_map = {int(layer): tuple(ids) for layer, ids in recorded.items()} == drop_map.drop
    if inputs.get("base") != base.fingerprint or not same_map:
        raise BadInput(
            f"{out} is a cut of another model or by another map",
            remedy="choose another output directory, or remove this one",
        )
    return out


def _prove(story: Story, name: str, device: str) -> None:
    """Certify one cut. Raises `Refused` unless it is proven."""
    certificate = certify(story.model.path, story.models[name], map=story.maps[name], device=device)
    story.certificates[name] = certificate
    if certificate.status != "proven":
        raise Refused(
            f"the cut {name} is {certificate.status}",
            expected="proven",
            actual=f"see {story.models[name] / 'certificate.json'}",
            remedy="remove the pruned model and run again; if it is refuted again, report a bug",
        )


def _prefixed(tell: Progress, name: str, done: int, total: int, text: str = "") -> None:
    tell(done, total, f"{name}: {text}")


@contextmanager
def _step(name: str, seconds: dict[str, float], progress: StepProgress | None) -> Iterator[Progress]:
    """Add the wall time of the block to `seconds[name]`, and report its progress under that name."""

    def tell(done: int, total: int, text: str = "") -> None:
        if progress is not None:
            progress(name, done, total, text)

    begin = perf_counter()
    tell(0, 0, "")
    yield tell
    seconds[name] = seconds.get(name, 0.0) + perf_counter() - begin
