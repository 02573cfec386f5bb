"""The result of a pipeline run, and the content of its report page. Draws nothing.

Invariants: every method is scored on every bench, on the same items as the base; tests of methods against each other
are adjusted together (Holm). Not guaranteed: that a difference on these benches holds for other work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trimoe import __version__
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.certify.certificate import Certificate
from trimoe.choose.dropmap import DropMap
from trimoe.judge.compare import against_mean, compare
from trimoe.judge.comparison import Comparison, Row
from trimoe.judge.rows import overall
from trimoe.judge.statistics.paired import holm
from trimoe.model.checkpoint import Checkpoint
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

BASE = "base"


@dataclass
class Story:
    """Everything that a pipeline run made, by the name of the recipe. `seconds` are wall times of this run by step."""

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
    def benches(self) -> list[str]:
        """Benches of the comparison, in its order."""
        return list(dict.fromkeys(row.bench for row in self.comparison.rows))

    @property
    def overall(self) -> dict[str, Row]:
        """One row per model, base first: all items of all benches together."""
        names = dict.fromkeys(row.name for row in self.comparison.rows)
        return {name: overall([row for row in self.comparison.rows if row.name == name]) for name in names}

    def size_of(self, name: str) -> int:
        """Bytes of the weight files of a pruned model, or of the base."""
        path = self.models.get(name, self.model.path)
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def page_data(
    story: Story,
    *,
    model_name: str = "",
    calibration_note: str = "",
    focus: str = "",
    caveats: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> PageData:
    """The content of the story's page.

    `focus` is the bench that the calibration set targets. `model_name` (default: the directory's name),
    `calibration_note`, `caveats` and `commands` are shown as they are.
    """
    stats, model = story.stats, story.model
    table = {(row.name, row.bench): row for row in story.comparison.rows}
    methods = {name: _method(story, name, [table[name, b] for b in story.benches]) for name in story.overall}
    base = methods.pop(story.comparison.base)
    layers = stats.moe_layers
    contribution = (2.0 * stats.field("wnorm") + stats.field("tc")).sum(0)[list(layers)]
    tokens = stats.metadata.get("tokens") or {}
    return PageData(
        title=f"{story.keep} of {model.num_experts} experts: what each way of choosing cost",
        model=ModelFacts(
            model_name or model.path.name,
            len(layers),
            model.num_experts,
            story.keep,
            model.top_k,
            story.size_of(base.name),
        ),
        domains=tuple(map(domain, story.benches)),
        base=base,
        methods=tuple(methods.values()),
        contribution=tuple(tuple(float(v) for v in row) for row in contribution),
        contribution_label="2 x weighted output norm + routed tokens, summed over all classes",
        calibration=CalibrationFacts(
            str(stats.metadata.get("set") or stats.content_hash)[:16],
            tuple((str(k), int(v)) for k, v in tokens.items()) if isinstance(tokens, dict) else (),
            calibration_note,
        ),
        focus=domain(focus) if focus in story.benches else "",
        duels=duels(story, focus),
        caveats=(*caveats, *marked(story)),
        commands=tuple(commands),
        versions=(("trimoe", __version__),),
        timings=tuple(story.seconds.items()),
    )


def domain(bench: str) -> str:
    """The name of a bench on the page."""
    return bench.removeprefix("tiny-")


def marked(story: Story) -> tuple[str, ...]:
    """The caveats of the scores, one line each, with the models that each applies to."""
    names: dict[str, list[str]] = {}
    for name, row in story.overall.items():
        for mark in row.marks:
            names.setdefault(mark, []).append(name)
    return tuple(f"{mark}: {', '.join(who)}" for mark, who in names.items())


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
        note=str((story.maps[name].metadata.get("recipe") or {}).get("description") or ""),
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


def duels(story: Story, focus: str = "") -> tuple[Duel, ...]:
    """Paired tests between methods, adjusted together by Holm.

    The best method against all others; and the first method against each random control and their mean, over all items
    and on the bench `focus`.
    """
    totals = {name: row.score.accuracy or 0.0 for name, row in story.overall.items() if name != story.comparison.base}
    first, best = next(iter(story.maps)), max(totals, key=lambda name: totals[name])
    controls = [name for name in story.maps if name.startswith("random") and name != first]
    pairs = [(best, other, "") for other in story.maps if other != best]
    pairs += [(first, control, "") for control in controls if first != best]
    if focus in story.benches:
        pairs += [(first, control, focus) for control in controls]
    made = []
    for one, other, bench in pairs:
        rows = [
            row
            for row in compare(story.log, base=other, against=[one], detail=False).rows
            if row.name == one and bench in ("", row.bench)
        ]
        change = _difference(overall(rows))
        if change is not None:
            made.append(Duel(one, other, change, domain(bench)))
    for bench in dict.fromkeys(("", focus)) if len(controls) > 1 else ():
        among = [b for b in story.benches if bench in ("", b)]
        if among:
            m = against_mean(story.log, first, controls, among)
            change = Difference(m.difference, m.low, m.high, m.p, None, m.lost, m.gained, m.pairs)
            made.append(Duel(first, f"mean of {len(controls)} random", change, domain(bench)))
    adjusted = holm([duel.difference.p for duel in made])
    return tuple(
        replace(duel, difference=replace(duel.difference, p_holm=p)) for duel, p in zip(made, adjusted, strict=True)
    )
