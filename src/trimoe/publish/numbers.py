"""The numbers on a model card: each is the result of a named query, and the queries are recorded to be checked later.

Invariants: a query is plain data (a name and arguments), and the same query on the same sources gives the same text.
`Numbers` can print nothing but query results. The sources are run logs and the artifact's files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput
from trimoe.judge.audit.audit import audit
from trimoe.judge.audit.result import RunAudit
from trimoe.judge.compare import compare
from trimoe.judge.comparison import Comparison, Row

Arguments = dict[str, Any]


@dataclass
class Sources:
    """What queries read: run logs, compared and audited on creation, and the `facts` of the artifact.

    `base` is the run that the runs `names` are compared with.
    """

    logs: list[Path]
    base: str
    names: list[str]
    facts: dict[str, float | int | str]
    comparison: Comparison = field(init=False)
    audits: dict[tuple[str, str], RunAudit] = field(init=False)

    def __post_init__(self) -> None:
        wanted = {self.base, *self.names}
        self.comparison = compare(self.logs, base=self.base, against=self.names, side_by_side=True)
        found = [one for path in self.logs for one in audit(path) if one.name in wanted]
        self.audits = {(one.name, one.bench): one for one in found}
        unseen = [row.name for row in self.comparison.rows if (row.name, row.bench) not in self.audits]
        if unseen:
            raise BadInput(
                f"{unseen[0]} is in more than one log",
                expected="one run per name and bench",
                remedy="merge the logs with `trimoe log merge`, or give only one of them",
            )

    def row(self, name: str, bench: str) -> Row:
        """The comparison's row for a run. Raises `BadInput` if there is none."""
        for row in self.comparison.rows:
            if (row.name, row.bench) == (name, bench):
                return row
        raise BadInput(f"no run of {name} on {bench}", expected="a run in the card's logs")


Query = Callable[[Sources, Arguments], str]
QUERIES: dict[str, Query] = {}


def query(name: str) -> Callable[[Query], Query]:
    """Registers the decorated function as the query `name`."""

    def register(function: Query) -> Query:
        QUERIES[name] = function
        return function

    return register


@dataclass
class Numbers:
    """Runs queries and records each with its result."""

    sources: Sources
    printed: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, name: str, /, **arguments: Any) -> str:
        """The text of one number. Raises `KeyError` for an unknown query."""
        text = QUERIES[name](self.sources, arguments)
        self.printed.append({"text": text, "query": name, "arguments": arguments})
        return text


def changed_numbers(sources: Sources, printed: Sequence[dict[str, Any]]) -> list[str]:
    """One message for each recorded number whose query now gives another text."""
    wrong = []
    for one in printed:
        now = QUERIES[one["query"]](sources, one["arguments"])
        if now != one["text"]:
            wrong.append(f"{one['query']} {one['arguments']}: {one['text']} in the card, {now} in the sources")
    return wrong


@query("score")
def _score(s: Sources, a: Arguments) -> str:
    row = s.row(a["name"], a["bench"])
    mark = " !" if row.marks else ""  # the card's limitations explain the marks
    return ("not scored" if row.score.accuracy is None else f"{100 * row.score.accuracy:.2f}") + mark


@query("error")
def _error(s: Sources, a: Arguments) -> str:
    detail = s.row(a["name"], a["bench"]).detail
    return "" if detail is None or detail.se is None else f"{100 * detail.se:.1f}"


@query("items")
def _items(s: Sources, a: Arguments) -> str:
    return str(s.row(a["name"], a["bench"]).score.n)


@query("interval")
def _interval(s: Sources, a: Arguments) -> str:
    score = s.row(a["name"], a["bench"]).score
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


@query("difference")
def _difference(s: Sources, a: Arguments) -> str:
    row = s.row(a["name"], a["bench"])
    change = row.change
    if change is None:
        return ""
    mark = " !" if row.marks or row.base_marks else ""
    return f"{100 * change.difference:+.2f} ({100 * change.low:+.1f} to {100 * change.high:+.1f}){mark}"


@query("flips")
def _flips(s: Sources, a: Arguments) -> str:
    change = s.row(a["name"], a["bench"]).change
    return "" if change is None else f"{change.lost}/{change.gained}"


@query("p")
def _p(s: Sources, a: Arguments) -> str:
    change = s.row(a["name"], a["bench"]).change
    return "" if change is None or change.p_holm is None else f"{change.p_holm:.2g}"


@query("audit")
def _audit(s: Sources, a: Arguments) -> str:
    one, m = s.audits[a["name"], a["bench"]], s.audits[a["name"], a["bench"]].measures
    what: dict[str, Any] = {
        "verdict": one.verdict,
        "flags": ", ".join(one.flags),
        "n": one.n,
        "empty": len(m.empty),
        "fenced": m.fenced,
        "chars": "/".join(f"{c:.0f}" for c in m.chars),
        "loops": len(m.loops),
        "failures": len(m.failures),
    }
    return str(what[a["what"]])


@query("fact")
def _fact(s: Sources, a: Arguments) -> str:
    value = s.facts[a["name"]]
    form = str(a.get("form", ""))
    return format(value, form) if form else str(value)
