"""Content of the demo's report page, as plain typed data without input, output or third-party types.

Invariants, checked when `PageData` is created: every method is scored on every domain, in the order of `domains`; maps
and contributions have the model's shape. All accuracies, differences and bounds are shares in [-1, 1]; the page shows
percent and points. Not guaranteed: that the numbers are correct; the page only adds plain arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from trimoe.errors import BadInput

Layers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ModelFacts:
    """The unpruned model. `bytes` is the size of its weight files."""

    name: str
    layers: int
    experts: int
    keep: int
    top_k: int
    bytes: int

    @property
    def dropped(self) -> int:
        """Experts dropped in each layer."""
        return self.experts - self.keep


@dataclass(frozen=True)
class Score:
    """`correct` of `n` items, with the 95 % Wilson interval `low` to `high`."""

    n: int
    correct: int
    low: float
    high: float

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None if nothing was scored."""
        return self.correct / self.n if self.n else None


@dataclass(frozen=True)
class Difference:
    """A method minus its reference, on the same items.

    `lost` items were right before and are wrong now, `gained` the reverse. `p` is the exact McNemar test; `p_holm` is p
    adjusted over the table, None for a single test.
    """

    points: float
    low: float
    high: float
    p: float
    p_holm: float | None
    lost: int
    gained: int
    pairs: int


@dataclass(frozen=True)
class CheckLine:
    """One check of a certificate: `status` is passed, failed or not_run."""

    name: str
    claim: str
    status: str
    detail: str


@dataclass(frozen=True)
class CertificateSummary:
    """Certificate of one cut; `status` is proven, refuted or incomplete."""

    status: str
    max_logit_difference: float | None
    tolerance: float
    prompts: int
    tokens: int
    checks: tuple[CheckLine, ...] = ()


@dataclass(frozen=True)
class Method:
    """The base, or one method of choosing experts. `scores` and `differences` have one entry per domain.

    The base has no differences, map or certificate. `control` marks a choice that uses no statistics (random), against
    which the others are judged. `dropped` holds the dropped expert ids of each layer.
    """

    name: str
    scores: tuple[Score, ...]
    overall: Score
    bytes: int
    note: str = ""
    differences: tuple[Difference | None, ...] = ()
    overall_difference: Difference | None = None
    dropped: Layers = ()
    certificate: CertificateSummary | None = None
    control: bool = False

    @property
    def mean(self) -> float | None:
        """Mean accuracy over domains; every domain has equal weight, whatever its number of items."""
        shares = [s.accuracy for s in self.scores if s.accuracy is not None]
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True)
class Duel:
    """Two methods on the same items: `first` minus `second`, over all domains or in one."""

    first: str
    second: str
    difference: Difference
    domain: str = ""


@dataclass(frozen=True)
class CalibrationFacts:
    """Text on which the statistics were measured. `tokens` has (class, tokens) pairs."""

    set_hash: str
    tokens: tuple[tuple[str, int], ...]
    note: str = ""


@dataclass(frozen=True)
class PageData:
    """Everything on the page. `contribution` is [layer][expert], non-negative, in any unit; `focus` names the domain
    that the calibration set targets; empty if none."""

    title: str
    model: ModelFacts
    domains: tuple[str, ...]
    base: Method
    methods: tuple[Method, ...]
    contribution: tuple[tuple[float, ...], ...]
    contribution_label: str
    calibration: CalibrationFacts
    focus: str = ""
    duels: tuple[Duel, ...] = ()
    caveats: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    timings: tuple[tuple[str, float], ...] = field(default=())
    """Wall time of each step in seconds. Omit it if the page must be reproducible byte for byte."""

    def __post_init__(self) -> None:
        names = [self.base.name, *(m.name for m in self.methods)]
        _require(bool(self.methods), "a report without methods", "at least one method besides the base", "none")
        _require(len(set(names)) == len(names), "names of methods", "each name once", ", ".join(names))
        _require(bool(self.domains), "a report without domains", "at least one domain", "none")
        for method in (self.base, *self.methods):
            _same(len(method.scores), len(self.domains), f"scores of {method.name}", "per domain")
        for method in self.methods:
            _same(len(method.differences), len(self.domains), f"differences of {method.name}", "per domain")
            _same(len(method.dropped), self.model.layers, f"map of {method.name}", "per layer")
            wrong = [e for layer in method.dropped for e in layer if not 0 <= e < self.model.experts]
            _require(not wrong, f"map of {method.name}", f"expert ids below {self.model.experts}", str(wrong[:5]))
        shape = {len(row) for row in self.contribution}
        _same(len(self.contribution), self.model.layers, "contributions", "per layer")
        _require(shape == {self.model.experts}, "contributions", f"{self.model.experts} in each layer", str(shape))
        _require(not self.focus or self.focus in self.domains, "focus", "one of the domains", self.focus)

    @property
    def best(self) -> tuple[Method, ...]:
        """The methods with the highest accuracy over all items; several if they tie."""
        ranked = self.ranked
        return tuple(m for m in ranked if (m.overall.accuracy or 0.0) == (ranked[0].overall.accuracy or 0.0))

    @property
    def ranked(self) -> tuple[Method, ...]:
        """Methods by accuracy over all items, best first; ties keep their order."""
        return tuple(sorted(self.methods, key=lambda m: -(m.overall.accuracy or 0.0)))


def agreement(one: Layers, two: Layers) -> float:
    """Jaccard index of two maps: experts dropped by both over experts dropped by either. 1 if neither drops any."""
    first, second = ({(i, e) for i, layer in enumerate(m) for e in layer} for m in (one, two))
    return len(first & second) / len(first | second) if first | second else 1.0


def chance_agreement(layers: Sequence[Sequence[int]], experts: int) -> float:
    """The Jaccard index that two random maps of this size reach, from the expected overlap per layer."""
    size = sum(len(layer) for layer in layers)
    both = sum(len(layer) ** 2 / experts for layer in layers)
    return both / (2 * size - both) if size else 1.0


def _require(holds: bool, subject: str, expected: str, actual: str) -> None:
    if not holds:
        raise BadInput(subject, expected=expected, actual=actual, remedy="give the report complete, consistent data")


def _same(actual: int, expected: int, subject: str, per: str) -> None:
    _require(actual == expected, subject, f"{expected}, one {per}", str(actual))
