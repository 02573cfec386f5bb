"""Renders the page on llama.cpp's architectures from the table that perf/gguf_architectures.py writes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "reference" / "gguf-architectures.json"

INTRO = """\
# Architectures of llama.cpp with experts

For every architecture for which gguf-py lists tensors of routed experts: a tiny random model with {experts} experts,
made of the tensors that llama.cpp's loader asks for, in float32. A quarter of the experts of every layer is dropped,
and `trimoe certify` compares llama.cpp's logits with those of the original whose dropped experts are masked.

- *Further tensors* are those on the expert axis beside router, gate, up and down. In most architectures a factor per
  expert (`ffn_down_exps.scale`) is tried as well.
- *Without mask* is the largest difference to the unmasked original: what the proof would see if other experts had been
  dropped.
- *Statistics* says whether `trimoe calibrate` can measure the experts: every choice is seen, and the weights are those
  that the graph applies.

{counts} Made with {package} (llama.cpp {commit}) by `python perf/gguf_architectures.py`.

| Architecture | Layers with experts | Further tensors | Result | Largest difference | Without mask | Statistics |
|---|---|---|---|---|---|---|
"""

_ORDINARY = {
    *("ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
    "ffn_down_exps.scale",
}


def gguf_page() -> str:
    """The page, without the note that it is generated."""
    table = json.loads(TABLE.read_text())
    rows = table["rows"]
    counted = Counter(row["status"] for row in rows)
    counts = f"{counted['proven']} of {len(rows)} are proven"
    counts += "".join(f", {n} {status}" for status, n in sorted(counted.items()) if status != "proven") + "."
    intro = INTRO.format(experts=8, counts=counts, package=table["package"], commit=table["llama.cpp"])
    return intro + "\n".join(map(_row, rows)) + "\n"


def _row(row: dict[str, Any]) -> str:
    if row["status"] in ("refused", "not built"):
        return f"| {row['architecture']} | | | {row['status']}: {row['reason']} | | | |"
    further = ", ".join(f"`{name}`" for name in row["tensors"] if name not in _ORDINARY)
    layers = "{} of {}".format(*row["layers"])
    result = row["status"] + (f": {row['reason']}" if row.get("reason") else "")
    difference = row["max_difference"]
    shown = "" if difference is None else f"{difference:.2g}"
    numbers = f"{shown} | {row['without_mask']:.2g}"
    return f"| {row['architecture']} | {layers} | {further} | {result} | {numbers} | {row['statistics']} |"
