"""Acceptance: greedy replies and verdicts through real servers equal those made inside the process."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.evaluation import run_endpoint, run_model
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.preflight import check
from trimoe.model.tiny import path as bundled
from trimoe.serve import open_server
from trimoe.serve.engines.transformers import PACKAGES

BENCHES = ["tiny-code", "tiny-math", "tiny-choice", "tiny-format", "tiny-text", "tiny-story"]
Seen = dict[tuple[str, str], tuple[Sample, bool | None]]


@dataclass(frozen=True)
class Inside:
    """The log of the run inside the process, and what it holds."""

    log: Path
    seen: Seen


def read(log_path: Path, name: str) -> Seen:
    with RunLog(log_path) as log:
        return {
            (run.bench, s.sample.doc_id): (s.sample, s.verdict.correct)
            for run in log.runs()
            if run.name == name
            for s in log.samples(run)
        }


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Inside:
    """All six bundled benches, in fp32, inside this process."""
    log = tmp_path_factory.mktemp("inside") / "log.db"
    run_model(bundled(), BENCHES, log, name="inside")
    return Inside(log, read(log, "inside"))


def through(target: Path, log: Path, limit: int | None, **options: Any) -> Seen:
    with open_server(target, **options) as endpoint:
        report = check(endpoint, None, max_new_tokens=64)
        assert report.warnings == []
        # the same weights in another process: verdicts must not depend on the way, so guards would only hide a fault
        run_endpoint(report.endpoint, BENCHES, log, name="served", limit=limit)
    return read(log, "served")


def differences(seen: Seen, inside: Seen) -> list[str]:
    """Verdict, text and reason of ending; token counts of servers include or exclude the end token, so they are not."""
    found = []
    for key, (sample, correct) in seen.items():
        theirs, verdict = inside[key]
        ours, other = (sample.reply, sample.finish_reason, correct), (theirs.reply, theirs.finish_reason, verdict)
        if ours != other:
            found.append(f"{key}: served {ours}, inside {other}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_llamacpp_gives_the_replies_of_the_process(inside: Inside, tiny_gguf: Path, tmp_path: Path) -> None:
    seen = through(tiny_gguf, tmp_path / "log.db", None, kv="f32", parallel=2)
    assert seen.keys() == inside.seen.keys()
    assert differences(seen, inside.seen) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="needs the extra 'serve'")
def test_transformers_serve_gives_the_replies_of_the_process(inside: Inside, tmp_path: Path) -> None:
    # half a second a reply, one at a time; 600 were compared once (docs/log.md)
    seen = through(bundled(), tmp_path / "log.db", 20)
    assert len(seen) == 120
    assert differences(seen, inside.seen) == []
