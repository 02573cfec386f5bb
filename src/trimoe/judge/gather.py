"""Gathers the runs of one or several logs under unique names, with their samples.

Invariants: a name identifies one run per bench; where two logs use the same name, the runs are called NAME@LOG.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from trimoe.errors import RunLogError
from trimoe.evaluate.log.marks import shown_marks
from trimoe.evaluate.log.records import Run, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import summarize


@dataclass(frozen=True)
class Read:
    """A run with its samples. `score` is the bench's own average (a share), None when it cannot be scored.

    `marks` are the score's caveats.
    """

    run: Run
    samples: tuple[Scored, ...]
    score: float | None
    marks: tuple[str, ...] = ()

    @property
    def answers(self) -> dict[str, bool]:
        """doc_id -> whether it was right, for scored items."""
        return {s.sample.doc_id: s.verdict.correct for s in self.samples if s.verdict.correct is not None}

    @property
    def clustered(self) -> bool:
        """Whether the bench asks the same problems several times (a bench in parts)."""
        return self.run.spec.get("average") == "macro"

    def cluster(self, doc_id: str) -> str:
        """The problem behind an item: the part after "::" if the bench has parts, else the item itself."""
        return doc_id.rpartition("::")[2] if self.clustered else doc_id


def gather(paths: Sequence[Path | str]) -> dict[tuple[str, str], Read]:
    """(name, bench) -> run, in the order of the logs. Raises `RunLogError` when there is none."""
    with ExitStack() as stack:
        once = {Path(path).resolve(): Path(path) for path in paths}  # a log that is given twice counts once
        logs = [(path, stack.enter_context(RunLog(path, create=False))) for path in once.values()]
        runs = [(path, log, run) for path, log in logs for run in log.runs()]
        uses = Counter((run.name, run.bench) for _, _, run in runs)
        twice = {name for (name, _), count in uses.items() if count > 1}
        found = {}
        for path, log, run in runs:
            label = f"{run.name}@{path.stem}" if run.name in twice else run.name
            marks = tuple(mark.text for mark in shown_marks(log, run))
            read = Read(replace(run, name=label), tuple(log.samples(run)), summarize(log, run).score, marks)
            if (label, run.bench) in found:
                raise RunLogError(
                    f"two logs named {path.stem} hold a run of {run.bench} named {run.name}",
                    expected="logs with different file names",
                    actual=f"{path.stem} twice",
                    remedy="rename one file, or merge them with `trimoe log merge`",
                )
            found[label, run.bench] = read
    if not found:
        raise RunLogError(
            f"{', '.join(map(str, paths))} holds no runs",
            expected="a log with evaluated models",
            actual="an empty log",
            remedy="run `trimoe eval MODEL --log ...` first",
        )
    return found


def names_of(found: dict[tuple[str, str], Read]) -> list[str]:
    """Names in the order of the logs."""
    return list(dict.fromkeys(name for name, _ in found))


def of_bench(found: dict[tuple[str, str], Read], bench: str, names: Sequence[str]) -> Iterator[Read]:
    """The runs of a bench in the order of `names`."""
    return (found[name, bench] for name in names if (name, bench) in found)
