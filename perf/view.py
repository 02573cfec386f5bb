"""Page times of `trimoe view` over 20 runs of 2,000 samples, from the request to the last byte of each kind of page.

    python perf/view.py [--runs 20] [--samples 2000] [--rounds 5] [--keep DIR] [--json]

The samples have prompts of about 0.6 kB, reasoning of about 2 kB and replies of about 1.2 kB. The server is a separate
process, as for a user. "start to address" is the complete start of the command, including Python and the first reading
of all verdicts. "first page" follows it; the others are medians over the rounds. A browser adds its own layout time.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from trimoe.bench.bench import Verdict
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog

SENTENCE = "the sum of two numbers is found by adding them so first take seven and then six which makes forty-two"
WORDS = SENTENCE.split()
CAUSES = ["correct"] * 14 + ["wrong"] * 3 + ["truncated (cap)", "loop", "empty"]


def make(path: Path, runs: int, samples: int) -> None:
    """Write the log: every run on the same bench, each sample with a different text."""
    draw = random.Random(7)
    with RunLog(path) as log:
        for number in range(runs):
            run = log.start(f"run-{number:02d}", "math", {"name": "math", "rows": samples}, f"model {number}", {}, {})
            rows = []
            for i in range(samples):
                cause = draw.choice(CAUSES)
                reply = "" if cause == "empty" else text(draw, 1200)
                sample = Sample(
                    f"doc-{i:04d}",
                    i,
                    f"Question {i}. " + text(draw, 600),
                    reply,
                    "stop",
                    150,
                    300,
                    reasoning=text(draw, 2000),
                    reasoning_tokens=200,
                )
                rows.append((sample, Verdict(cause == "correct", cause, "42")))
            log.event(run, "asking", missing=samples, of=samples)
            log.add(run, rows, 1)


def text(draw: random.Random, size: int) -> str:
    """Random words of about `size` characters."""
    return " ".join(draw.choices(WORDS, k=size // 5))


def timed(url: str) -> tuple[float, int]:
    """(seconds, bytes) of one request."""
    start = time.perf_counter()
    with urllib.request.urlopen(url) as answer:
        body = answer.read()
    return time.perf_counter() - start, len(body)


def measure(log: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and kilobytes per kind of page."""
    server = subprocess.Popen(
        [sys.executable, "-m", "trimoe", "view", str(log), "--no-open", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        start = time.perf_counter()
        document = ""
        while not document.rstrip().endswith("}"):
            document += server.stdout.readline()
        ready = time.perf_counter() - start
        url = json.loads(document)["url"]
        first, size = timed(url)
        runs = json.load(urllib.request.urlopen(url + "api/runs"))["runs"]
        one = f"{url}run/{runs[0]['id']}"
        both = f"{url}diff/{runs[0]['id']}/{runs[1]['id']}"
        audited, audit_size = timed(f"{one}/audit")  # computed on the first request, then cached
        pages = {
            "runs": url,
            "status of all runs": url + "api/runs",
            "run": one,
            "filter by cause": one + "?cause=loop",
            "filter, page 3": one + "?cause=wrong&page=3",
            "search, few hits": one + "?q=Question+1999.",
            "search, many hits": one + "?q=FORTY",
            "sample": one + "/sample/doc-1000",
            "diff": both,
            "diff, lost": both + "?cause=lost",
            "diff, search": both + "?q=Question+1999.",
            "diff of a sample": both + "/sample/doc-1000",
        }
        out = {
            "start to address": {"ms": 1000 * ready, "kB": 0.0},
            "first page": {"ms": 1000 * first, "kB": size / 1e3},
            "audit, first time": {"ms": 1000 * audited, "kB": audit_size / 1e3},
        }
        for name, page in pages.items():
            seen = [timed(page) for _ in range(rounds)]
            out[name] = {
                "ms": 1000 * statistics.median(s for s, _ in seen),
                "kB": seen[0][1] / 1e3,
                "max ms": 1000 * max(s for s, _ in seen),
            }
        return out
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    """Make the log, request the pages, print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for the log, which is reused if it exists")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = (arguments.keep or Path(folder)) / "view.db"
        if not log.exists():
            make(log, arguments.runs, arguments.samples)
        found = measure(log, arguments.rounds)
        facts = {
            "runs": arguments.runs,
            "samples": arguments.samples,
            "log MB": log.stat().st_size / 1e6,
            "python": platform.python_version(),
        }
    if arguments.json:
        print(json.dumps({**facts, "pages": found}, indent=1))
        return
    print(f"{arguments.runs} runs x {arguments.samples} samples, log of {facts['log MB']:.0f} MB")
    for name, row in found.items():
        print(f"{name:22} {row['ms']:8.1f} ms {row['kB']:8.1f} kB")


if __name__ == "__main__":
    main()
