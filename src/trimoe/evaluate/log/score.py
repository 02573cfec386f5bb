"""Score and standard error of a run's samples: the share that is right, or the mean over the parts of a bench."""

import math
from collections.abc import Sequence

from trimoe.bench.bench import Verdict
from trimoe.evaluate.log.records import Run, Scored


def score_of(
    run: Run, samples: Sequence[Scored], *, exclude_errors: bool = False
) -> tuple[float | None, float | None, dict[str, float | None]]:
    """Score, standard error and score of each part, averaged as the bench says. Reads only ids and verdicts."""
    groups = _parts(samples) if run.spec.get("average") == "macro" else {}
    parts = {name: _share(group, exclude_errors) for name, group in groups.items()}
    score, error = _mean(list(groups.values()) or [[s.verdict for s in samples]], exclude_errors)
    return score, error, parts


def _parts(samples: Sequence[Scored]) -> dict[str, list[Verdict]]:
    """Verdicts by part, the text before "::" in a row's id. Imported rows may have no part."""
    parts: dict[str, list[Verdict]] = {}
    for scored in samples:
        part, mark, _ = scored.sample.doc_id.partition("::")
        if mark:
            parts.setdefault(part, []).append(scored.verdict)
    return parts


def _mean(groups: Sequence[Sequence[Verdict]], exclude: bool) -> tuple[float | None, float | None]:
    """Mean of the groups' shares with its standard error; (None, None) if a group has no share."""
    shares = [_share(group, exclude) for group in groups]
    known = [share for share in shares if share is not None]
    if len(known) != len(groups):
        return None, None
    sizes = [sum(v.correct is not None for v in group) for group in groups]
    variance = sum(p * (1 - p) / n for p, n in zip(known, sizes, strict=True))
    return sum(known) / len(known), math.sqrt(variance) / len(known)


def _share(verdicts: Sequence[Verdict], exclude: bool) -> float | None:
    scored = [v.correct for v in verdicts if v.correct is not None]
    if not scored or (len(scored) < len(verdicts) and not exclude):
        return None
    return sum(scored) / len(scored)
