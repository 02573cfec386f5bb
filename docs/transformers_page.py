"""Renders the page on transformers' model types from the table that perf/families.py writes."""

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "reference" / "transformers-types.json"

INTRO = """\
# Model types of transformers with experts

For every model type whose configuration counts experts and that transformers {version} builds as a language model: a
tiny random model of three layers and eight experts. It is inspected, calibrated and cut by a quarter of its experts,
with the map of the `reap` recipe and with a random map, and both are certified with logits.

A pass shows that a cut is exact. It does not show that the statistics are right: in this table they are compared with
nothing (the families' own statistics are, in the tests). Only the published layout was run. Types whose configuration
counts experts in a nested part, such as most vision-language models, are not in the table, and `make` means that this
script could not build the model, not that trimoe refuses it.

{passed} of {all} pass. The others are listed with what stopped them. Made by `python perf/families.py DIR`.

| Model type | Read as | Layers with experts | Result | Largest logit difference |
|---|---|---|---|---|
"""


def transformers_page() -> str:
    """The page, without the note that it is generated."""
    table = json.loads(TABLE.read_text())
    rows = [row for row in table["rows"] if row["layout"] == "published"]
    passed = sum(row["reached"] == "passed" for row in rows)
    return INTRO.format(version=table["transformers"], passed=passed, all=len(rows)) + "\n".join(map(_row, rows)) + "\n"


def _row(row: dict[str, Any]) -> str:
    difference = row.get("difference")
    shown = "" if difference is None else f"{difference:.1e}"
    result = "passes"
    if row["reached"] != "passed":
        detail = row.get("actual", "")
        result = f"{row['reached']}: {row.get('reason', '')}" + (f" ({detail})" if detail else "")
    return (
        f"| {row['type']} | {row.get('family', '')} | {row.get('layers', '')} | {result.replace('|', '/')} | {shown} |"
    )
