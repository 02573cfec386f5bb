"""Makes the golden files: statistics of the bundled model, and the maps that the slow implementation draws from them.

`python tests/choose/golden/make.py` rewrites expected.json from the statistics as they are; `--statistics` measures the
bundled model again first. Measured values differ in their last digits between machines, so the files are the reference,
not the script.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from helpers.slow_maps import read, slow_map  # noqa: E402 a script beside the tests

FIELDS = ("wnorm", "rnorm", "wsum", "tc", "cc", "reap_sum", "ean_sum")
SET = """\
name: golden
classes:
  generic_code: [{kind: tiny, domain: code, count: 24, seed: 1}]
  generic_math: [{kind: tiny, domain: math, count: 24, seed: 1}]
  generic_choice: [{kind: tiny, domain: choice, count: 24, seed: 1}]
  generic_format: [{kind: tiny, domain: format, count: 24, seed: 1}]
  generic_multilingual: [{kind: tiny, domain: text, count: 24, seed: 1}]
  targeted_code: [{kind: tiny, domain: code, count: 24, seed: 2}]
  targeted_lcb: [{kind: tiny, domain: story, count: 24, seed: 2}]
"""
OUTLIERS = 9  # cells of targeted.json.gz whose wnorm is replaced by a numerical accident, 1e5 to 1e13


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statistics", action="store_true", help="measure the bundled model again")
    if parser.parse_args().statistics:
        write_statistics()
    cases = json.loads((HERE / "cases.json").read_text())
    stats = {name: read(HERE / name) for name in ("base.json.gz", "targeted.json.gz")}
    expected = {name: slow_map(stats[case["stats"]], stats["base.json.gz"], case) for name, case in cases.items()}
    lines = [f' "{name}": {json.dumps(made)}' for name, made in expected.items()]
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_statistics() -> None:
    """Measure the bundled model; targeted.json.gz gets outliers at fixed places."""
    from trimoe.calibrate.engine import calibrate
    from trimoe.model import tiny

    with TemporaryDirectory() as work:
        (Path(work) / "set.yaml").write_text(SET)
        stats = calibrate(tiny.path(), Path(work) / "set.yaml", Path(work) / "stats")
    _, layers, experts = stats.shape
    columns = {name: stats.field(name).tolist() for name in FIELDS}
    categories = {
        name: {
            str(n): [{"id": e} | {f: float(f"{columns[f][i][n][e]:.6g}") for f in FIELDS} for e in range(experts)]
            for n in range(layers)
        }
        for i, name in enumerate(stats.classes)
    }
    generic = {name: rows for name, rows in categories.items() if name.startswith("generic_")}
    write("base.json.gz", generic, layers, experts)
    names = list(categories)
    for k in range(OUTLIERS):
        row = categories[names[(3 * k) % len(names)]][str(k % layers)]
        cell = (7 * k + 5) % experts
        row[cell] = {**row[cell], "wnorm": 10.0 ** (5 + k)}
    write("targeted.json.gz", categories, layers, experts)


def write(name: str, categories: dict, layers: int, experts: int) -> None:
    """One file in the reference layout, gzipped without a time."""
    about = {"num_layers": layers, "num_experts": experts, "categories": list(categories)}
    body = json.dumps({"metadata": about, "categories": categories}, separators=(",", ":"))
    (HERE / name).write_bytes(gzip.compress(body.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
