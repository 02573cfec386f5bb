"""A realistic report page: simulated answers, summarized by the project's own statistics."""

import hashlib
from collections.abc import Sequence

import numpy as np

from trimoe.judge.statistics.paired import holm, mcnemar_exact, paired_difference, wilson
from trimoe.report.data import (
    CalibrationFacts,
    CertificateSummary,
    CheckLine,
    Difference,
    Duel,
    Layers,
    Method,
    ModelFacts,
    PageData,
    Score,
)

DOMAINS = ("code", "math", "choice", "format", "text", "story")
BASE_SHARES = (0.955, 0.93, 0.985, 0.99, 0.965, 0.94)
# method -> (share of answers lost per domain, how closely its map follows contribution, note)
METHODS = {
    "v5-coder": (
        (0.012, 0.055, 0.02, 0.015, 0.03, 0.04),
        0.97,
        "Protects experts that code depends on, then ranks by contribution.",
    ),
    "v4": ((0.05, 0.05, 0.03, 0.02, 0.03, 0.04), 0.9, "Largest layer-mean contribution over the classes."),
    "reap": (
        (0.03, 0.035, 0.015, 0.01, 0.025, 0.03),
        0.95,
        "Router weight times output norm, averaged over the tokens an expert gets.",
    ),
    "frequency": ((0.06, 0.07, 0.02, 0.03, 0.05, 0.05), 0.8, "How often the router picks an expert."),
    "random-0": ((0.12, 0.16, 0.08, 0.09, 0.11, 0.10), 0.0, "Drawn at random, seed 0."),
    "random-1": ((0.15, 0.12, 0.07, 0.06, 0.14, 0.12), 0.0, "Drawn at random, seed 1."),
    "random-2": ((0.10, 0.18, 0.11, 0.08, 0.09, 0.13), 0.0, "Drawn at random, seed 2."),
}


def score(answers: np.ndarray) -> Score:
    low, high = wilson(int(answers.sum()), len(answers))
    return Score(len(answers), int(answers.sum()), low, high)


def difference(before: np.ndarray, now: np.ndarray, p_holm: float | None = None) -> Difference:
    lost, gained = int((before & ~now).sum()), int((~before & now).sum())
    points, low, high = paired_difference(len(before), lost, gained)
    return Difference(points, low, high, mcnemar_exact(lost, gained), p_holm, lost, gained, len(before))


def sample(
    *,
    layers: int = 4,
    experts: int = 32,
    keep: int = 24,
    n: int = 120,
    methods: Sequence[str] = tuple(METHODS),
    seed: int = 0,
) -> PageData:
    draw = np.random.default_rng(seed)
    contribution = draw.gamma(2.2, 1.0, (layers, experts)) * np.linspace(1, 3, layers)[:, None]
    base = {d: draw.random(n) < share for d, share in zip(DOMAINS, BASE_SHARES, strict=True)}
    whole = np.concatenate(list(base.values()))
    made, everything = [], {}
    for name in methods:
        losses, follow, note = METHODS[name]
        answers = {
            d: (before & (draw.random(n) >= loss)) | (~before & (draw.random(n) < 0.1))
            for (d, before), loss in zip(base.items(), losses, strict=True)
        }
        everything[name] = np.concatenate(list(answers.values()))
        wish = follow * contribution / contribution.max(1, keepdims=True) + (1.02 - follow) * draw.random(
            (layers, experts)
        )
        dropped: Layers = tuple(
            tuple(sorted(int(e) for e in row[: experts - keep])) for row in np.argsort(wish, axis=1)
        )
        checks = (
            CheckLine("bytes", "every untouched tensor is byte-identical", "passed", "61 tensors, 5.2 MB"),
            CheckLine(
                "rows", "every cut tensor equals the kept rows of the original", "passed", "16 tensors, 384 experts"
            ),
            CheckLine("logits", "the cut model answers like the masked original", "passed", "24 prompts, 1 204 tokens"),
        )
        certificate = CertificateSummary("proven", 4.8e-7 * (1 + len(made)), 1e-4, 24, 1204, checks)
        made.append(
            Method(
                name,
                tuple(score(a) for a in answers.values()),
                score(everything[name]),
                7_412_736 + 8 * len(made),
                note,
                tuple(difference(base[d], answers[d]) for d in DOMAINS),
                difference(whole, everything[name]),
                dropped,
                certificate,
                control=name.startswith("random"),
            )
        )
    best = max(made, key=lambda m: m.overall.correct).name
    rivals = [m.name for m in made if m.name != best]
    duels = [difference(everything[r], everything[best]) for r in rivals]
    adjusted = holm([d.p for d in duels])
    return PageData(
        title="Dropping a quarter of the experts: seven ways to choose",
        model=ModelFacts("tiny-gemma4-moe", layers, experts, keep, 4, 9_154_816),
        domains=DOMAINS,
        base=Method("base", tuple(score(a) for a in base.values()), score(whole), 9_154_816),
        methods=with_holm(made),
        contribution=tuple(tuple(float(v) for v in row) for row in contribution),
        contribution_label="routed output norm, summed over the calibration tokens",
        calibration=CalibrationFacts(
            hashlib.sha256(b"set").hexdigest(),
            tuple((f"generic_{d}", int(draw.integers(9_000, 16_000))) for d in DOMAINS) + (("targeted_code", 21_870),),
            "Prompts of every domain, and the model's own replies that passed their tests; none of the questions above.",
        ),
        focus="code",
        duels=tuple(
            Duel(best, r, Difference(d.points, d.low, d.high, d.p, p, d.lost, d.gained, d.pairs))
            for r, d, p in zip(rivals, duels, adjusted, strict=True)
        ),
        caveats=(
            "This is a tiny model (4.6 million parameters) trained on six made-up kinds of tasks. It shows that the tools work; "
            "which method wins on a real model has to be measured there.",
        ),
        commands=("make demo", "trimoe compare demo/runs.db --base base"),
        versions=(("trimoe", "0.1.0"), ("torch", "2.13.0"), ("transformers", "5.23.0"), ("Python", "3.11")),
    )


def with_holm(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Adjust the p values over the table of all methods and domains."""
    from dataclasses import replace

    flat = [d for m in methods for d in m.differences if d is not None]
    adjusted = iter(holm([d.p for d in flat]))
    return tuple(
        replace(m, differences=tuple(replace(d, p_holm=next(adjusted)) if d else None for d in m.differences))
        for m in methods
    )
