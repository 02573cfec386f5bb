"""Formatted numbers and the sentences of the report.

Invariants: every sentence follows from the page's data by arithmetic. The verdict names the method with the highest
accuracy over all items; it claims that this method beats another only if a paired test of the two is in the data and
its interval excludes zero.
"""

from collections.abc import Sequence

from trimoe.report.data import CertificateSummary, Difference, Duel, Method, PageData, Score

NONE = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """94.2 for 0.942; the caller adds the unit."""
    return NONE if share is None else f"{_round(100 * share, digits):.{digits}f}"


def points(share: float | None, digits: int = 1) -> str:
    """A difference in percentage points with its sign: −1.6, +0.4, 0.0."""
    if share is None:
        return NONE
    value = _round(100 * share, digits)
    return f"{value:+.{digits}f}".replace("-", "−") if value else f"{value:.{digits}f}"


def interval(difference: Difference | None) -> str:
    """−3.2 to −0.6."""
    return NONE if difference is None else f"{points(difference.low)} to {points(difference.high)}"


def bounds(score: Score) -> str:
    """92.1–95.8, in percent."""
    return f"{percent(score.low)}–{percent(score.high)}" if score.n else NONE


def probability(p: float | None) -> str:
    """A p value: three decimals, never zero."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def scientific(value: float | None) -> str:
    """5.5 × 10⁻⁷, 0."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1.0" else f"{mantissa}\u00a0×\u00a010{raised}"


def count(value: int) -> str:
    """12 345: a thin space between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def size(value: int) -> str:
    """A size with one to three digits before the point, in decimal units (1 kB = 1000 bytes)."""
    amount = float(value)
    for unit in ("bytes", "kB", "MB"):
        if amount < 999.95:
            return f"{amount:.0f} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def clear(difference: Difference | None) -> bool:
    """Whether the interval excludes zero and p, adjusted if available, is below 5 %."""
    if difference is None:
        return False
    p = difference.p if difference.p_holm is None else difference.p_holm
    return p < 0.05 and (difference.low > 0 or difference.high < 0)


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def verdict(data: PageData) -> str:
    """The first sentence of the page: the best method and its cost, with interval and number of items."""
    best, base = data.best, data.base
    right = (
        f"{percent(best[0].overall.accuracy)} % right, against {percent(base.overall.accuracy)} % for the full model"
    )
    share = f"Dropping {data.model.dropped} of {data.model.experts} experts in every layer"
    change = best[0].overall_difference
    if len(best) > 1:
        sentence = f"{share}, {listed([m.name for m in best])} tie as the best choices: {right}."
    elif change is None:
        sentence = f"{share}, {best[0].name} kept the most: {right}."
    else:
        sentence = f"{share}, {best[0].name} kept the most: {right}: {_change(change)}"
    return _unbroken(sentence)


def support(data: PageData) -> list[str]:
    """The sentences below the verdict: the lead over other methods, random choices, the focus domain."""
    best = data.best[0]
    return [_unbroken(s) for s in (_lead(data, best), _controls(data), _focus(data, best)) if s]


def caveats(data: PageData) -> list[str]:
    """Caveats: those given with the data, then those derived from it."""
    found = list(data.caveats)
    smallest = min(s.n for m in (data.base, *data.methods) for s in m.scores)
    widest = max(s.high - s.low for m in data.methods for s in m.scores)
    found.append(
        f"With {smallest} questions in the smallest domain, a 95 % interval is up to {percent(widest, 0)} points wide. "
        "Treat a difference whose interval includes zero as a tie."
    )
    if len(data.methods) > 1:
        found.append(
            f"The best of {len(data.methods)} methods was selected on these same questions, so its lead is probably "
            "slightly overestimated."
        )
    return [_unbroken(c) for c in found]


def proof(data: PageData) -> str:
    """One sentence that sums up all certificates."""
    found = [m.certificate for m in data.methods if m.certificate is not None]
    proven = [c for c in found if c.status == "proven"]
    if not found:
        return "No certificate was made for these cuts."
    if len(proven) < len(data.methods):
        return f"{len(proven)} of {len(data.methods)} cuts are proven exact. Do not trust the others."
    worst = worst_difference(found)
    return (
        f"All {len(proven)} cuts are proven exact: every remaining weight is the original's byte for byte, and the "
        f"pruned model answers like the original with the dropped experts switched off (largest logit difference "
        f"{scientific(worst)}, allowed {scientific(max(c.tolerance for c in found))})."
    )


def worst_difference(found: Sequence[CertificateSummary]) -> float | None:
    """The largest logit difference of several certificates; None if none measured it."""
    return max((c.max_logit_difference for c in found if c.max_logit_difference is not None), default=None)


def _round(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # no "-0.0"


def _change(change: Difference) -> str:
    n = count(change.pairs)
    if points(change.points) == "0.0":
        return f"no difference on the same {n} questions (95 % interval {interval(change)} points)."
    word = "a loss" if change.points < 0 else "a gain"
    amount = percent(abs(change.points))
    return f"{word} of {amount} points on the same {n} questions (95 % interval {interval(change)})."


def _controls(data: PageData) -> str:
    best = data.best[0]
    controls = [m for m in data.methods if m.control and m.overall_difference is not None and m is not best]
    if not controls:
        return ""
    changes = sorted(m.overall_difference.points for m in controls if m.overall_difference is not None)
    span = points(changes[0]) if len(controls) == 1 else f"{points(changes[0])} to {points(changes[-1])}"
    draws = f" ({len(controls)} draws)" if len(controls) > 1 else ""
    return f"Choosing at random{draws} changed accuracy by {span} points."


def _lead(data: PageData, best: Method) -> str:
    rivals = [m for m in data.ranked if m is not best and not m.control]
    if not rivals or len(data.best) > 1:
        return ""
    over_all = [d for d in data.duels if not d.domain]
    duels = {d.second: d for d in over_all if d.first == best.name}
    duels |= {d.first: _swapped(d) for d in over_all if d.second == best.name and d.first not in duels}
    if rivals[0].name not in duels:
        return f"Its lead over {rivals[0].name} was not tested."
    tested = [m.name for m in rivals if m.name in duels]
    beaten = [name for name in tested if clear(duels[name].difference)]
    drawn = [name for name in tested if name not in beaten]
    claims = [f"is clearly ahead of {listed(beaten)}"] if beaten else []
    if drawn:
        first = duels[drawn[0]].difference
        ahead = f"ahead of {drawn[0]} by {percent(first.points)} points (95 % interval {interval(first)})"
        claims.append(f"cannot be told apart from {listed(drawn)}: {ahead}")
    return f"On the same questions {best.name} {', but '.join(claims)}."


def _focus(data: PageData, best: Method) -> str:
    if not data.focus:
        return ""
    place = data.domains.index(data.focus)
    change, own = best.differences[place], best.scores[place].accuracy
    if change is None or own is None:
        return ""
    first = max(data.methods, key=lambda m: m.scores[place].accuracy or 0.0)
    there = first.scores[place].accuracy or 0.0
    other = f" The best method in this domain is {first.name} with {percent(there)} %." if there > own else ""
    return (
        f"In {data.focus}, which the calibration set targets, {best.name} answers {percent(own)} % right: "
        f"{points(change.points)} points relative to the full model ({interval(change)}).{other}"
    )


def _unbroken(sentence: str) -> str:
    """Keep each number and its percent sign on one line."""
    return sentence.replace(" %", "\u00a0%")


def _swapped(duel: Duel) -> Duel:
    d = duel.difference
    turned = Difference(-d.points, -d.high, -d.low, d.p, d.p_holm, d.gained, d.lost, d.pairs)
    return Duel(duel.second, duel.first, turned)
