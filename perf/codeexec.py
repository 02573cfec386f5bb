"""Scoring of HumanEval+ by trimoe and by evalplus's own evaluator: time on the same cores, and agreement of verdicts.

    python perf/codeexec.py HumanEvalPlus.jsonl.gz --evalplus PYTHON [--rounds 3] [--cores 2] [--json]

PYTHON is a separate interpreter with evalplus 0.3.1, whose dependencies must not mix with those of trimoe:

    python -m venv evalplus && evalplus/bin/pip install evalplus==0.3.1     # then --evalplus evalplus/bin/python

Both evaluators score all canonical solutions in turns, as complete processes pinned to the same cores, with one worker
per core. Each first runs cold (it computes the expected outputs), then `--rounds` times with cached expected outputs.
evalplus is timed until it prints its result, because it may sleep another 20 s afterwards. CPU seconds include all
children. Then both judge one mutated solution per problem (an operator, a constant or a condition), and every
difference is listed.
"""

import argparse
import ast
import contextlib
import gzip
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Solutions = dict[str, str]
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changed(source: str, entry: str, draw: random.Random) -> str:
    """The source with one mutation in the entry function; unchanged if nothing can be mutated."""
    tree = ast.parse(source)
    function = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry][-1]
    places: list[tuple[ast.AST, str]] = []
    for node in ast.walk(function):
        for name in ("op", "ops", "value"):
            part = getattr(node, name, None)
            part = part[0] if isinstance(part, list) and part else part
            if type(part) in SWAPS or (isinstance(node, ast.Constant) and type(part) is int):
                places.append((node, name))
    if places:
        node, name = draw.choice(places)
        part = getattr(node, name)
        if isinstance(part, list):
            part[0] = SWAPS[type(part[0])]()
        else:
            setattr(node, name, part + 1 if isinstance(part, int) else SWAPS[type(part)]())
    return ast.unparse(tree)


def score_ours(data: Path, samples: Path, cache: Path, workers: int) -> None:
    """The child process of trimoe: score a file of samples and print one verdict per task."""
    from trimoe.bench.code import evalplus
    from trimoe.sandbox import Sandbox

    problems = evalplus.problems(data)
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    with Sandbox(workers=workers) as sandbox:
        verdicts = evalplus.score([(row["solution"], problems[row["task_id"]]) for row in rows], sandbox, cache)
    print(json.dumps({row["task_id"]: [v.correct, v.detail] for row, v in zip(rows, verdicts, strict=True)}))


class Sides:
    """Both evaluators on one data file, each with its own cache of expected outputs."""

    def __init__(self, data: Path, evalplus: Path, root: Path, cores: list[int]) -> None:
        self.data, self.root, self.cores, self._evalplus = data, root, cores, evalplus
        (root / "plain.jsonl").write_bytes(gzip.decompress(data.read_bytes()))

    def forget(self) -> None:
        """Delete both caches of expected outputs."""
        for name in ("ours", "theirs"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def ours(self, solutions: Solutions) -> tuple[float, float, dict[str, Any]]:
        """Score with trimoe: wall seconds, CPU seconds, and correctness by task."""
        command = [
            sys.executable,
            __file__,
            str(self.data),
            "--score",
            str(self._write(solutions)),
            str(self.root / "ours"),
            str(len(self.cores)),
        ]
        wall, cpu, lines = self._timed(command, {}, until=None)
        return wall, cpu, {task: correct for task, (correct, _) in json.loads(lines[-1]).items()}

    def theirs(self, solutions: Solutions) -> tuple[float, float, dict[str, Any]]:
        """Score with evalplus: the same values."""
        samples = self._write(solutions)
        result = samples.with_name("samples_eval_results.json")
        result.unlink(missing_ok=True)
        environment = {
            "HUMANEVAL_OVERRIDE_PATH": str(self.root / "plain.jsonl"),
            "XDG_CACHE_HOME": str(self.root / "theirs"),
            "PYTHONUNBUFFERED": "1",
        }
        command = [
            str(self._evalplus),
            "-m",
            "evalplus.evaluate",
            "humaneval",
            "--samples",
            str(samples),
            "--parallel",
            str(len(self.cores)),
        ]
        wall, cpu, _ = self._timed(command, environment, until="pass@1")
        rows = json.loads(result.read_text())["eval"]
        return wall, cpu, {t: r[0]["base_status"] == r[0]["plus_status"] == "pass" for t, r in rows.items()}

    def _write(self, solutions: Solutions) -> Path:
        path = self.root / "samples.jsonl"
        path.write_text("".join(json.dumps({"task_id": t, "solution": s}) + "\n" for t, s in solutions.items()))
        return path

    def _timed(self, command: list[str], more: dict[str, str], until: str | None) -> tuple[float, float, list[str]]:
        """Run a command; time it until its end, or until the second line with `until` (base tests, then all).

        Raises if the command fails.
        """
        before, begin, lines = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), []
        wall = None
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **more},
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if until and wall is None and sum(until in seen for seen in lines) == 2:
                    wall = time.perf_counter() - begin
            errors = process.stderr.read() if process.stderr else ""
        wall = wall or time.perf_counter() - begin
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, lines


def measure(sides: Sides, rounds: int) -> dict[str, Any]:
    """Cold once, warm `rounds` times, in turns; then the mutated solutions."""
    with gzip.open(sides.data, "rt") as handle:
        rows = [json.loads(line) for line in handle]
    canonical = {row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows}
    draw = random.Random(0)
    mutants = {row["task_id"]: changed(canonical[row["task_id"]], row["entry_point"], draw) for row in rows}
    sides.forget()
    cold = {"ours": sides.ours(canonical), "evalplus": sides.theirs(canonical)}
    warm: dict[str, list[tuple[float, float]]] = {"ours": [], "evalplus": []}
    for turn in range(rounds):
        for name in ("ours", "evalplus") if turn % 2 else ("evalplus", "ours"):
            run = sides.ours if name == "ours" else sides.theirs
            warm[name].append(run(canonical)[:2])
    verdicts = {"ours": sides.ours(mutants)[2], "evalplus": sides.theirs(mutants)[2]}
    different = {
        task: {name: verdicts[name][task] for name in verdicts}
        for task in mutants
        if verdicts["ours"][task] != verdicts["evalplus"][task]
    }
    median = {
        name: [round(statistics.median(part), 2) for part in zip(*values, strict=True)] for name, values in warm.items()
    }
    return {
        "cold_wall_cpu": {name: [round(part, 2) for part in run[:2]] for name, run in cold.items()},
        "warm_wall": {name: [round(wall, 2) for wall, _ in values] for name, values in warm.items()},
        "warm_cpu": {name: [round(cpu, 2) for _, cpu in values] for name, values in warm.items()},
        "median_wall_cpu": median,
        "wall_ratio": round(median["ours"][0] / median["evalplus"][0], 3),
        "cpu_ratio": round(median["ours"][1] / median["evalplus"][1], 3),
        "canonical_failed": {name: sorted(t for t, ok in run[2].items() if not ok) for name, run in cold.items()},
        "changed_solutions": len(mutants),
        "changed_right": {n: sum(v.values()) for n, v in verdicts.items()},
        "changed_different": different,
        "rounds": rounds,
        "cores": sides.cores,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'':<10}{'wall s':>9}{'min':>8}{'max':>8}{'CPU s':>9}{'cold wall':>11}{'cold CPU':>10}"]
    for name in ("ours", "evalplus"):
        wall, cpu = result["median_wall_cpu"][name]
        seen, (cold, cold_cpu) = result["warm_wall"][name], result["cold_wall_cpu"][name]
        lines.append(
            f"{name:<10}{wall:>9.1f}{min(seen):>8.1f}{max(seen):>8.1f}{cpu:>9.1f}{cold:>11.1f}{cold_cpu:>10.1f}"
        )
    lines.append(
        f"ours / evalplus: wall {result['wall_ratio']}, CPU {result['cpu_ratio']} "
        f"({result['rounds']} rounds, cores {result['cores']}, load {result['load']:.1f})"
    )
    lines.append(f"canonical solutions that fail: {result['canonical_failed']}")
    lines.append(
        f"{result['changed_solutions']} changed solutions, right: {result['changed_right']}, "
        f"judged differently: {result['changed_different'] or 'none'}"
    )
    return "\n".join(lines)


def main() -> None:
    """Parse options, measure, print, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="HumanEvalPlus.jsonl.gz of an evalplus release")
    parser.add_argument("--evalplus", type=Path, help="a Python with evalplus 0.3.1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)  # the child process of trimoe
    options = parser.parse_args()
    if options.score:
        samples, cache, workers = options.score
        score_ours(options.data, Path(samples), Path(cache), int(workers))
        return
    if options.evalplus is None:
        parser.error("--evalplus is needed")
    with tempfile.TemporaryDirectory(prefix="trimoe-bench-") as folder:
        cores = sorted(os.sched_getaffinity(0))[: options.cores]
        result = measure(
            Sides(options.data.resolve(), options.evalplus.absolute(), Path(folder), cores), options.rounds
        )
    print(json.dumps(result, indent=1) if options.as_json else table(result))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
