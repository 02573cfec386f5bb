"""The result of a comparison: scores, paired differences and flips as typed rows.

Shares are in [0, 1]. `as_dict` is the JSON contract of `trimoe compare --json`, `as_record` one flat row for CSV and
pandas.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from trimoe.io.frames import data_frame
from trimoe.judge.text import html_table

HEAD = (
    "bench",
    "model",
    "n",
    "score",
    "SE",
    "95 %",
    "difference",
    "SE",
    "95 %",
    "bootstrap 95 %",
    "lost/gained",
    "p",
    "p (Holm)",
    "detectable",
)
_LOSSES = ("empty", "loop", "cut", "normal")


@dataclass(frozen=True)
class Flips:
    """Items whose verdict changed between two runs, as (doc_id, cause of the miss).

    `lost_as` counts the losses as empty, loop, cut and normal: only a normal one is a loss of knowledge.
    """

    lost: tuple[tuple[str, str], ...] = ()
    gained: tuple[tuple[str, str], ...] = ()
    lost_as: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunScore:
    """The score of one run by itself: `correct` of `n` scored items; `low` and `high` are its 95 % interval.

    `accuracy` is None when nothing was scored, `unscored` counts the items without a verdict, and `causes` counts all
    items by the cause of their verdict.
    """

    n: int
    correct: int
    unscored: int
    accuracy: float | None
    low: float
    high: float
    causes: dict[str, int]


@dataclass(frozen=True)
class PairedChange:
    """This run minus the base over the `pairs` items that both have scored; `low` and `high` are its 95 % interval.

    `lost` and `gained` count flips. `p` is exact; `p_holm` is adjusted for all tests of the table, None outside one.
    """

    pairs: int
    difference: float
    low: float
    high: float
    lost: int
    gained: int
    p: float
    p_holm: float | None = None
    flips: Flips = Flips()


@dataclass(frozen=True)
class Detail:
    """Precision of a row: standard errors `se` of the score and `difference_se` of the difference.

    `units` is the number of clusters behind the bootstrap interval; `detectable` is the smallest true difference that a
    test of this size finds with 80 % power.
    """

    se: float | None
    difference_se: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    units: int = 0
    detectable: float | None = None


@dataclass(frozen=True)
class Row:
    """One model on one bench. `change` is None for the base, and where there is nothing to compare with.

    `column` numbers the conditions of the run (0 unless shown side by side). `marks` are the score's caveats: what was
    switched off, ignored or left out when the run was made, and whether it is paused. `base_marks` are those of the
    base, which the difference shares.
    """

    bench: str
    name: str
    score: RunScore
    change: PairedChange | None = None
    detail: Detail | None = None
    column: int = 0
    marks: tuple[str, ...] = ()
    base_marks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The row for `--json`."""
        change = self.change
        return {
            "bench": self.bench,
            "name": self.name,
            **asdict(self.score),
            "pairs": change.pairs if change else 0,
            "difference": change and change.difference,
            "difference_low": change and change.low,
            "difference_high": change and change.high,
            "lost": change.lost if change else 0,
            "gained": change.gained if change else 0,
            "p": change and change.p,
            "p_holm": change and change.p_holm,
            "column": self.column,
            "flips": asdict(change.flips if change else Flips()),
            "detail": self.detail and asdict(self.detail),
            "marks": self.marks,
            "base_marks": self.base_marks,
        }

    def as_record(self) -> dict[str, Any]:
        """The row as flat columns, at full precision."""
        body, detail = self.as_dict(), asdict(self.detail) if self.detail else {}
        lost_as = body["flips"]["lost_as"]
        return {
            "bench": self.bench,
            "model": self.name,
            "column": self.column,
            "n": self.score.n,
            "correct": self.score.correct,
            "unscored": self.score.unscored,
            "score": self.score.accuracy,
            "se": detail.get("se"),
            "low": self.score.low,
            "high": self.score.high,
            "pairs": body["pairs"],
            "difference": body["difference"],
            "difference_se": detail.get("difference_se"),
            "difference_low": body["difference_low"],
            "difference_high": body["difference_high"],
            "bootstrap_low": detail.get("bootstrap_low"),
            "bootstrap_high": detail.get("bootstrap_high"),
            "lost": body["lost"],
            "gained": body["gained"],
            **{f"lost_{kind}": lost_as.get(kind) for kind in _LOSSES},
            "p": body["p"],
            "p_holm": body["p_holm"],
            "detectable": detail.get("detectable"),
            "base_marks": "; ".join(self.base_marks),
            "marks": "; ".join(self.marks),
        }

    def cells(self) -> list[str]:
        """The row as text under `HEAD`: shares in percent, differences in percentage points."""
        score, change, detail = self.score, self.change, self.detail
        shown = "not scored" if score.accuracy is None else _percent(score.accuracy)
        interval = f"{_percent(score.low)} to {_percent(score.high)}"
        cells = [self.bench, self.name, str(score.n), shown + " !" * bool(self.marks)]
        cells += [_percent(detail.se) if detail else "", interval]
        if change is None:
            return [*cells, *[""] * (len(HEAD) - len(cells))]
        return [
            *cells,
            f"{100 * change.difference:+.1f}" + " !" * bool(self.marks or self.base_marks),
            _percent(detail.difference_se) if detail else "",
            _signed_interval(change.low, change.high),
            _signed_interval(detail.bootstrap_low, detail.bootstrap_high) if detail else "",
            f"{change.lost}/{change.gained}",
            f"{change.p:.2g}",
            "" if change.p_holm is None else f"{change.p_holm:.2g}",
            _percent(detail.detectable) if detail else "",
        ]


@dataclass(frozen=True, repr=False)
class Comparison:
    """All rows: per bench the base first, then the other models in the order asked for.

    `columns` are the conditions that rows refer to by number, from 1; `notes` are the caveats below the table.

    >>> comparison = trimoe.compare("runs.db", base="base")
    >>> row = comparison.rows[1]
    >>> row.name, row.change.pairs
    ('small', 4)
    """

    base: str
    names: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        benches = len({row.bench for row in self.rows})
        return f"Comparison(base={self.base!r}, {len(self.names)} models against it, {benches} benches)"

    def _repr_html_(self) -> str:
        return html_table(HEAD, [row.cells() for row in self.rows], left=2)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values: the output of `trimoe compare --json`."""
        return {
            "base": self.base,
            "names": list(self.names),
            "rows": [row.as_dict() for row in self.rows],
            "columns": list(self.columns),
            "notes": list(self.notes),
        }

    def to_pandas(self) -> Any:
        """One line per row with the columns of the CSV output. Raises `MissingPrerequisite` without pandas."""
        records = [row.as_record() for row in self.rows]
        return data_frame({name: [record[name] for record in records] for name in records[0]})


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _signed_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
