"""Every tier of the bundled model: file size, KL divergence on held-out text, and accuracy on the bundled benches.

    python perf/ladder.py DIR [--tiers NAME,...] [--mix 4.7,5.5] [--rows 25] [--chunks 32] [--json FILE] [--png FILE]

Files are kept in DIR and reused by a rerun, together with their measurements. The imatrix comes from examples/tiny, a
mix is measured on other training items, KL divergence and accuracy on held-out items: the three texts share no item.
Replies are greedy, through llama-server, and judged by the benches' own scorers. Intervals are 95 %; Wilson's for
accuracy.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import msgspec

from trimoe.bench.catalog import benches
from trimoe.io.canonical import sha256_file
from trimoe.io.jsonfile import read_json, write_json
from trimoe.llamacpp.tools import LlamaCpp, locate
from trimoe.model.tiny import path as bundled
from trimoe.model.tiny.tasks import DOMAINS, generate
from trimoe.quantize.kld import measure
from trimoe.quantize.ladder.ladder import make_ladder
from trimoe.quantize.ladder.server import ask, served
from trimoe.quantize.ladder.sources import Effort, Sources
from trimoe.quantize.ladder.spec import load_ladder_spec
from trimoe.quantize.mix.mix import make_mix
from trimoe.quantize.mix.target import MixTarget
from trimoe.quantize.types.tiers import all_tiers, default_ladder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "tiny"


def text(split: str, seed: int, path: Path, count: int = 150) -> Path:
    """Prompts with their reference answers, domains in turn."""
    lists = [generate(domain, split, count, seed) for domain in DOMAINS]
    path.write_text("\n\n".join(f"{i.prompt}\n{i.answer}" for row in zip(*lists, strict=True) for i in row) + "\n")
    return path


def answers(tools: LlamaCpp, file: Path, rows: int) -> dict[str, list[int]]:
    """{bench: (correct, asked)}."""
    found = {}
    with served(tools, file, threads=1, context=2048) as url:
        for name, bench in benches().items():
            if not name.startswith("tiny-"):
                continue
            docs = bench.docs()[:rows]
            replies = [(*ask(url, doc.prompt, bench.max_new_tokens), doc) for doc in docs]
            verdicts = bench.judge(replies)
            assert all(v.correct is not None for v in verdicts), f"{name}: a fault of the harness"
            found[name] = [sum(bool(v.correct) for v in verdicts), len(docs)]
    return found


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    z, p = 1.959964, right / asked
    middle, half = p + z * z / (2 * asked), z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    return (middle - half) / (1 + z * z / asked), (middle + half) / (1 + z * z / asked)


def draw(rows: list[dict[str, Any]], base_accuracy: float, path: Path) -> None:
    """Plot quality against size: KL divergence above, accuracy below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 8), sharex=True, constrained_layout=True)
    kinds = (("plain", "#4c72b0", "o"), ("CD", "#dd8452", "s"), ("AUTO", "#c44e52", "*"))
    for kind, colour, mark in kinds:
        own = [r for r in rows if kind_of(r["tier"]) == kind]
        sizes = [r["file_bytes"] / 1e6 for r in own]
        above.errorbar(
            sizes,
            [r["kld"] for r in own],
            yerr=[
                [max(0.0, r["kld"] - r["kld_interval"][0]) for r in own],
                [max(0.0, r["kld_interval"][1] - r["kld"]) for r in own],
            ],
            fmt=mark,
            color=colour,
            markersize=12 if kind == "AUTO" else 6,
            capsize=2,
            linewidth=0.8,
            label={"plain": "plain tiers", "CD": "ContribDynamic", "AUTO": "measured mix"}[kind],
        )
        below.plot(
            sizes, [100 * r["accuracy"] for r in own], mark, color=colour, markersize=12 if kind == "AUTO" else 6
        )
    named = {
        "F16",
        "Q8_0",
        "Q6_K",
        "Q5_K_M",
        "Q4_K_M",
        "IQ4_XS",
        "Q3_K_M",
        "IQ2_XXS",
        "CD-Q6_K",
    }
    for row in rows:  # labels for all points would overlap
        if row["tier"] in named or kind_of(row["tier"]) == "AUTO":
            plain = kind_of(row["tier"]) == "plain"
            above.annotate(
                row["tier"],
                (row["file_bytes"] / 1e6, row["kld"]),
                fontsize=7,
                textcoords="offset points",
                xytext=(6, 4) if plain else (-6, -9),
                ha="left" if plain else "right",
            )
    above.set_xscale("log")
    above.set_xticks([2, 3, 4, 5, 7, 9], ["2", "3", "4", "5", "7", "9"])
    above.minorticks_off()
    above.set_yscale("log")
    above.set_ylabel("KL divergence from BF16 (nats per token, log scale)")
    above.legend(frameon=False)
    below.axhline(100 * base_accuracy, color="#777", linewidth=0.8, linestyle="--")
    below.annotate(
        "BF16",
        (1.0, 100 * base_accuracy),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=7,
        color="#555",
    )
    below.set_ylabel("right answers, six bundled benches (%)")
    below.set_xlabel("file size (MB)")
    for axes in (above, below):
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def kind_of(tier: str) -> str:
    """The kind of a tier: plain, CD or AUTO."""
    return next((kind for kind in ("CD", "AUTO") if tier.startswith(kind + "-")), "plain")


def main() -> None:
    """Make the files, measure them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiers", default="all")
    parser.add_argument("--mix", default="", help="bits per weight of measured mixes, with commas")
    parser.add_argument("--rows", type=int, default=25, help="of each bench")
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    out: Path = options.folder
    out.mkdir(parents=True, exist_ok=True)
    tools, effort = locate(), Effort(1, 1)
    names = {
        "all": [t.name for t in all_tiers().values() if not t.broken and t.name != "BF16"],
        "sweep": [t.name for t in default_ladder()],
    }.get(options.tiers, options.tiers.split(","))
    ladder = msgspec.structs.replace(load_ladder_spec(EXAMPLES / "ladder.yaml"), tiers=tuple(names))
    sources = Sources(calibration=EXAMPLES / "calibration.yaml")
    table = make_ladder(bundled(), out, ladder, tools, sources=sources, effort=effort, name="tiny", progress=say)
    rows = [file.as_dict() for file in table.files]
    for bits in filter(None, options.mix.split(",")):
        target = MixTarget(bits=float(bits), text=text("train", 77, out / "measure.txt"), chunks=options.chunks)
        made = make_mix(
            bundled(), out, target, ladder, tools, sources=sources, effort=effort, name="tiny", progress=say
        )
        rows.append(made.file.as_dict() | {"predicted_kld": made.forecast.predicted_kld, "gap": made.forecast.gap})
    held_out = text("heldout", 78, out / "heldout.txt")
    base = out / "tiny-BF16.gguf"
    compared = measure(
        tools,
        base,
        [out / row["file"] for row in rows],
        held_out,
        chunks=options.chunks,
        context=512,
        threads=1,
        progress=say,
    ).as_dict()
    for row, found in zip(rows, compared["files"], strict=True):
        assert row["sha256"] == found["sha256"]
        row |= found
    kept_path = out / "answers.json"
    kept = read_json(kept_path, "answers") if kept_path.exists() else {}
    for row in [{"file": base.name, "sha256": sha256_file(base), "tier": "BF16"}, *rows]:
        key = f"{row['sha256']} {options.rows}"
        if key not in kept:
            say(0, 0, f"answers of {row['file']}")
            kept[key] = answers(tools, out / row["file"], options.rows)
            write_json(kept_path, kept, overwrite=True)
        row["right"] = kept[key]
        right, asked = (sum(pair[i] for pair in kept[key].values()) for i in (0, 1))
        # In process, the bundled model answers nine of ten. Half of that means a broken tokenizer or template.
        assert row["tier"] != "BF16" or right > asked / 2, f"the base answers {right} of {asked}: not this model"
        row |= {"accuracy": right / asked, "accuracy_interval": wilson(right, asked)}
    base_score = kept[f"{sha256_file(base)} {options.rows}"]
    right, asked = (sum(pair[i] for pair in base_score.values()) for i in (0, 1))
    print(f"\nBF16: {right} of {asked} right; {compared['chunks']} chunks, {compared['tokens']} tokens compared\n")
    print("| tier | bytes | bpw | KLD (95 %) | same top | right of " + str(asked) + " (95 %) | smoke |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda r: -r["file_bytes"]):
        (low, high), (worst, best) = row["kld_interval"], row["accuracy_interval"]
        smoke = row["smoke"]
        print(
            f"| {row['tier']} | {row['file_bytes']:,} | {row['bits_per_weight']:.2f} | {row['kld']:.4f} "
            f"[{low:.4f}, {high:.4f}] | {row['same_top']:.1f} % | {round(row['accuracy'] * asked)} "
            f"[{worst:.0%}, {best:.0%}] | {'failed' if smoke['failed'] else 'ok'} |"
        )
    if options.json:
        write_json(
            options.json, {"base": base_score, "files": rows, "kld_base": compared["perplexity_base"]}, overwrite=True
        )
    if options.png:
        draw(rows, right / asked, options.png)


def say(done: int, total: int, note: str) -> None:
    """Print progress as lines."""
    print(json.dumps([done, total, note]), flush=True)


if __name__ == "__main__":
    main()
