"""The demo: the pipeline on the bundled model, with a calibration set that targets code, and its report page.

The targeted class consists of the model's own replies to training items that pass their scorer. Invariants: items of
the benches (held-out split) are never in the calibration set; a rerun resumes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import find
from trimoe.errors import Refused
from trimoe.evaluate.guards import NAMES
from trimoe.io.atomic import publish_file
from trimoe.model import tiny
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.generate import Generator
from trimoe.model.tiny import tasks
from trimoe.pipeline import StepProgress, run_pipeline
from trimoe.report.data import PageData
from trimoe.report.page import write_page
from trimoe.report.story import Story, page_data
from trimoe.sandbox import Policy, require_sandbox, using

RECIPES = ("v5-coder", "v4", "reap", "frequency", "random-0", "random-1", "random-2")
BENCHES = ("tiny-code", "tiny-math", "tiny-choice", "tiny-format", "tiny-text", "tiny-story")
FOCUS = "tiny-code"
"""The bench of the domain that the calibration set targets."""
TRACES = 96  # training items answered for the targeted class


@dataclass(frozen=True)
class Demo:
    """What a demo made: the models and their comparison, the content of the page, and the page."""

    story: Story
    page: PageData
    report: Path


def run_demo(
    out: Path | str,
    *,
    recipes: Sequence[str] = RECIPES,
    drop_fraction: float = 0.25,
    limit: int | None = None,
    sandbox: Policy | None = None,
    progress: StepProgress | None = None,
) -> Demo:
    """Run the pipeline on the bundled model in `out`, and write `out`/report.html.

    `drop_fraction` of each layer's experts are dropped, rounded down. Guards do not pause an evaluation here: the demo
    shows what a bad choice of experts does, with the mark of the guard. Raises `MissingPrerequisite` without torch,
    matplotlib or a sandbox for generated code.
    """
    with using(sandbox or Policy()):
        require_sandbox()  # checked first: generated code runs only after minutes of work
        base = open_checkpoint(tiny.path())
        story = run_pipeline(
            base,
            calibration_set(base, Path(out) / "calibration"),
            out,
            recipes=recipes or RECIPES,
            benches=BENCHES,
            keep=base.num_experts - int(drop_fraction * base.num_experts),
            limit=limit,
            ignore_guards=NAMES,
            progress=progress,
        )
    page = page_data(
        story,
        model_name="bundled model",
        calibration_note=calibration_note(story.stats.metadata.get("leak_check")),
        focus=FOCUS,
        caveats=("The bundled model is tiny and its tasks are synthetic: they only serve to compare methods.",),
        commands=("trimoe demo",),
    )
    report = Path(out) / "report.html"
    write_page(page, report)
    return Demo(story, page, report)


def calibration_set(base: Checkpoint, folder: Path) -> Path:
    """The calibration set of the demo in `folder`: a YAML file, and the model's passing replies beside it."""
    traces, chosen = folder / "traces.jsonl", folder / "set.yaml"
    if not traces.exists():
        rows = passing_traces(base, FOCUS, TRACES)
        with publish_file(traces) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with publish_file(chosen, overwrite=True) as temporary:
        temporary.write_text((tiny.path().parent / "calibration.yaml").read_text())
    return chosen


def passing_traces(base: Checkpoint, bench_name: str, count: int) -> list[dict[str, str]]:
    """The model's own replies to `count` training items that pass the scorer of the bench: a targeted class."""
    bench = find([bench_name])[0]
    items = tasks.generate(bench_name.removeprefix("tiny-"), "train", count, seed=1)
    docs = [Doc(item.item_id, item.prompt, item.answer, item.check) for item in items]
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
            f"the model passes none of {count} training items of {bench_name}",
            expected="a trained model: a targeted class consists of passing replies",
            remedy="use the bundled model as it was installed",
        )
    return passed


def calibration_note(report: Any) -> str:
    """What the calibration set contains, and what its leak check found: synthetic tasks differ by as little as a word.

    `report` is `leak_check` of the statistics' metadata; statistics of older versions have none.
    """
    text = "training prompts of every domain, and the model's own passing code replies; no held-out item is among them"
    if not isinstance(report, dict):
        return text
    rows = report["benches"].values()
    own, common = (sum(len(row[key]) for row in rows) for key in ("overlapping", "boilerplate"))
    return (
        f"{text}. Leak check: {own} of {sum(row['items'] for row in rows)} held-out items share {report['gram']} words "
        f"of their own in a row with it; {common} others share only words that are common in their bench"
    )
