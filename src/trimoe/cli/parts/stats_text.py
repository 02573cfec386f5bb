"""Statistics as text for people: the tables of `trimoe stats show` and the lines of a leak check."""

from pathlib import Path
from typing import Any


def summary_lines(data: dict[str, Any], heatmap: Path | None) -> list[str]:
    """The lines of `trimoe stats show` for the result of `summarize`."""
    lines = [f"{data['num_layers']} layers x {data['num_experts']} experts, fields {_named(data['fields'])}"]
    lines += [f"model {data['model'] or 'not recorded'}, content {data['sha256'][:16]}", ""]
    least = next(iter(data["classes"].values()))["least"]
    lines.append(f"{'class':<24} {'routed tokens':>15} {'cells':>7} {'unused':>7} {f'< {least} tokens':>13}")
    for name, row in data["classes"].items():
        if row["cells"] is None:
            lines.append(f"{name:<24} {'no token counts':>15}")
            continue
        tokens = f"{row['routed_tokens']:,.0f}"
        lines.append(f"{name:<24} {tokens:>15} {row['cells']:>7,d} {row['never_used']:>7,d} {row['thin']:>13,d}")
    lines += ["", f"experts by {data['by']}, every class counting the same"]
    lines.append(f"{'layer':>5}  {'Gini':>5}  {'strongest':<24}weakest")
    for row in data["layers"]:
        spread = "    -" if row["gini"] is None else f"{row['gini']:5.2f}"
        strong, weak = (" ".join(f"{e:d}" for e in row[end]) for end in ("top", "bottom"))
        unused = f"  ({row['never_used']} never used)" if row["never_used"] else ""
        lines.append(f"{row['layer']:>5}  {spread}  {strong:<24}{weak}{unused}")
    overlap = data["overlap"]
    if overlap["pairs"]:
        chance = f"(by chance {overlap['chance']:.2f})"
        lines += ["", f"classes compared: Jaccard of the {overlap['top']} strongest {chance}, Spearman of all"]
    for pair in sorted(overlap["pairs"], key=lambda p: -p["jaccard"]):
        rho = "-" if pair["spearman"] is None else f"{pair['spearman']:.2f}"
        lines.append(f"  {' and '.join(pair['classes']):<52} {pair['jaccard']:5.2f} {rho:>6}")
    return [*lines, *_notes(data), *([f"wrote {heatmap}"] if heatmap else [])]


def _named(fields: dict[str, Any]) -> str:
    """Field names, with the kinds of position and the number of bootstrap shards instead of their names."""
    whole = [name for name in fields if "/" not in name]
    parts = {name.partition("/")[0] for name in fields if "/" in name}
    shards = {part for part in parts if part.startswith("shard")}
    kinds = sorted(parts - shards)
    text = ", ".join(whole) + (f"; apart for positions of the kinds {', '.join(kinds)}" if kinds else "")
    return text + (f"; {len(shards)} bootstrap shards" if shards else "")


def _notes(data: dict[str, Any]) -> list[str]:
    """Warnings and notes, one per line."""
    lines = []
    for name, row in data["fields"].items():
        note = [f"{row['nonfinite']} not finite"] if row["nonfinite"] else []
        note += ["zero everywhere: not measured"] if row["all_zero"] and "/" not in name else []
        note += [f"{row['extreme']} above 1e6 per window"] if row["extreme"] else []
        if note:
            lines.append(f"warning: {name}: {', '.join(note)}")
    metadata = data["metadata"]
    if left_out := metadata.get("left_out"):
        lines.append(f"left out: {', '.join(left_out)}")
    for bench, items in metadata.get("bench_items", {}).items():
        lines.append(f"contains {len(items)} items of {bench}, declared in the set")
    checks = metadata.get("leak_check")
    for report in checks if isinstance(checks, list) else [checks]:
        lines += leak_lines(report) if report else []
    return ["", *lines] if lines else []


def leak_lines(report: dict[str, Any]) -> list[str]:
    """A leak check as text: one line per bench that overlaps with the set, and one for all others."""
    lines, clean = [], []
    for name, row in report["benches"].items():
        common = len(row.get("boilerplate", ()))
        own = " of their own" if "boilerplate" in row else ""  # older statistics counted boilerplate too
        if row["overlapping"]:
            undeclared = len(row["undeclared"])
            why = f"{undeclared} not declared: {', '.join(row['undeclared'][:5])}" if undeclared else "all declared"
            lines.append(
                f"leak check: {len(row['overlapping'])} of {row['items']} items of {name} share "
                f"{report['gram']} consecutive words{own} with the set; {why}"
            )
        else:
            clean.append(f"{name} ({row['items'] - row['unchecked']} of {row['items']} items checked)")
        if common:
            lines.append(f"leak check: {common} of {row['items']} items of {name} share only boilerplate; not counted")
    return lines + ([f"leak check: no overlap with {', '.join(clean)}"] if clean else [])
