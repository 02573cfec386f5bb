"""From the story to its page: collects the facts; draws nothing."""

from dataclasses import replace
from typing import Any

from trimoe import __version__
from trimoe.certify.certificate import Certificate
from trimoe.choose.recipe import load_recipe
from trimoe.judge.compare import against_mean, compare
from trimoe.judge.comparison import Row
from trimoe.judge.rows import overall
from trimoe.judge.statistics.paired import holm
from trimoe.pipeline import Story
from trimoe.report.data import (
    CalibrationFacts,
    CertificateSummary,
    CheckLine,
    Difference,
    Duel,
    Method,
    ModelFacts,
    PageData,
    Score,
)

FOCUS = "tiny-code"
"""The bench of the domain that the demo's calibration set targets."""


def page_data(story: Story) -> PageData:
    """The content of the demo's page."""
    rows, stats, model = story.comparison.rows, story.stats, story.model
    benches = list(dict.fromkeys(row.bench for row in rows))
    table = {(row.name, row.bench): row for row in rows}
    methods = {name: _method(story, name, [table[name, b] for b in benches]) for name in story.overall}
    base = methods.pop(story.comparison.base)
    contribution = (2.0 * stats.field("wnorm") + stats.field("tc")).sum(0)
    tokens = stats.metadata.get("tokens") or {}
    return PageData(
        title=f"{story.keep} of {model.num_experts} experts: what each way of choosing cost",
        model=ModelFacts(
            "bundled model", model.num_layers, model.num_experts, story.keep, model.top_k, story.size_of(base.name)
        ),
        domains=tuple(b.removeprefix("tiny-") for b in benches),
        base=base,
        methods=tuple(methods.values()),
        contribution=tuple(tuple(float(v) for v in row) for row in contribution),
        contribution_label="2 x weighted output norm + routed tokens, summed over all classes",
        calibration=CalibrationFacts(
            str(stats.metadata.get("set") or stats.content_hash)[:16],
            tuple((str(k), int(v)) for k, v in tokens.items()) if isinstance(tokens, dict) else (),
            _held_out(stats.metadata.get("leak_check")),
        ),
        focus=FOCUS.removeprefix("tiny-") if FOCUS in benches else "",
        duels=duels(story),
        caveats=(
            "The bundled model is tiny and its tasks are made up: it compares methods, nothing more.",
            *marked(story),
        ),
        commands=("trimoe demo",),
        versions=(("trimoe", __version__),),
        timings=tuple(story.seconds.items()),
    )


def marked(story: Story) -> tuple[str, ...]:
    """What was switched off for runs of the table, in words; models with the same marks together."""
    names: dict[str, list[str]] = {}
    for name, row in story.overall.items():
        for mark in row.marks:
            names.setdefault(mark, []).append(name)
    return tuple(f"{mark}: {', '.join(who)}" for mark, who in names.items())


def _held_out(report: Any) -> str:
    """What the calibration set is, and what the leak check found: the splits share no prompt, but made-up tasks differ
    from each other in a word."""
    text = (
        "prompts of the training split, and the model's own passing code replies; no held-out prompt is an item of it"
    )
    if not isinstance(report, dict):  # statistics made before the demo checked
        return text
    rows = report["benches"].values()
    own, common = (sum(len(row[key]) for row in rows) for key in ("overlapping", "boilerplate"))
    return (
        f"{text}. Leak check: {own} of {sum(row['items'] for row in rows)} held-out items share {report['gram']} words "
        f"of their own in a row with it, {common} others only words that many items of their bench share"
    )


def _score(row: Row) -> Score:
    score = row.score
    return Score(score.n, score.correct, score.low, score.high)


def _difference(row: Row) -> Difference | None:
    c = row.change
    return None if c is None else Difference(c.difference, c.low, c.high, c.p, c.p_holm, c.lost, c.gained, c.pairs)


def _method(story: Story, name: str, rows: list[Row]) -> Method:
    if name not in story.maps:
        return Method(name, tuple(map(_score, rows)), _score(story.overall[name]), story.size_of(name))
    return Method(
        name,
        tuple(map(_score, rows)),
        _score(story.overall[name]),
        story.size_of(name),
        note=load_recipe(name).description,
        differences=tuple(map(_difference, rows)),
        overall_difference=_difference(story.overall[name]),
        dropped=tuple(ids for _, ids in sorted(story.maps[name].drop.items())),
        certificate=_certificate(story.certificates[name]),
        control=name.startswith("random"),
    )


def _certificate(made: Certificate) -> CertificateSummary:
    prompts = made.prompts
    checks = tuple(CheckLine(c.name, c.claim, c.status, c.detail) for c in made.checks)
    return CertificateSummary(
        made.status,
        made.max_logit_difference,
        made.tolerance,
        prompts.count if prompts else 0,
        prompts.tokens if prompts else 0,
        checks,
    )


def duels(story: Story) -> tuple[Duel, ...]:
    """Methods against each other: the best against all others, and the first (the one whose calibration set has a
    target) against each control and their mean, over all items and in its target domain. Holm over all these tests."""
    totals = {name: row.score.accuracy or 0.0 for name, row in story.overall.items() if name != story.comparison.base}
    first, best = next(iter(story.maps)), max(totals, key=lambda name: totals[name])
    controls = [name for name in story.maps if name.startswith("random") and name != first]
    pairs = [(best, other, "") for other in story.maps if other != best]
    pairs += [(first, control, "") for control in controls if first != best]
    if FOCUS in {row.bench for row in story.comparison.rows}:
        pairs += [(first, control, FOCUS) for control in controls]
    made = []
    for one, other, bench in pairs:
        rows = [
            row
            for row in compare(story.log, base=other, against=[one], detail=False).rows
            if row.name == one and bench in ("", row.bench)
        ]
        change = _difference(overall(rows))
        if change is not None:
            made.append(Duel(one, other, change, bench.removeprefix("tiny-")))
    for bench in ("", FOCUS) if len(controls) > 1 else ():
        among = [b for b in dict.fromkeys(row.bench for row in story.comparison.rows) if bench in ("", b)]
        if among:
            m = against_mean(story.log, first, controls, among)
            change = Difference(m.difference, m.low, m.high, m.p, None, m.lost, m.gained, m.pairs)
            made.append(Duel(first, f"mean of {len(controls)} random", change, bench.removeprefix("tiny-")))
    adjusted = holm([duel.difference.p for duel in made])
    return tuple(
        replace(duel, difference=replace(duel.difference, p_holm=p)) for duel, p in zip(made, adjusted, strict=True)
    )
