"""The commands of perf/compare_artifacts.py: everything that trimoe writes for the bundled model, and for other models.

Paths are relative to the work folder, which holds `model`, `set.yaml`, `maps/plain.json` and `others`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS = ("core", "eval", "gguf", "models")


@dataclass
class Step:
    """One command: its arguments, and the name under which its output is kept."""

    name: str
    argv: list[str]


def recipes(source: Path) -> list[str]:
    """Names of the recipes that a source tree ships."""
    return sorted(path.stem for path in source.glob("trimoe/**/recipes/*.toml"))


def core(names: list[str]) -> Iterator[Step]:
    """Statistics, maps, cuts, certificates, healed models, NVFP4 and plans of the bundled model."""
    measure = ["calibrate", "model", "--set", "set.yaml", "--dtype", "float32"]
    yield Step("inspect", ["inspect", "model", "--finite", "--json"])
    yield Step("calibrate", [*measure, "-o", "stats.safetensors", "--json"])
    yield Step("calibrate-all", [*measure, "--coactivation", "--neurons", "-o", "all.safetensors", "--json"])
    yield Step("stats-show", ["stats", "show", "stats.safetensors", "--json"])
    yield Step("stats-export", ["stats", "export", "stats.safetensors", "-o", "stats.json", "--json"])
    yield Step("stats-import", ["stats", "import", "stats.json", "-o", "imported.safetensors", "--json"])
    for name in names:
        recipe = f"{name}-1" if name == "random" else name
        make = ["map", "make", "stats.safetensors", "--recipe", recipe, "--drop-fraction", "0.25"]
        yield Step(f"map-{name}", [*make, "-o", f"maps/{name}.json", "--json"])
        yield Step(f"explain-{name}", [*make, "--dry-run", "--explain", "0:3", "--json"])
    two = ["maps/v5-coder.json", "maps/reap.json"]
    yield Step("combine", ["map", "combine", *two, "--keep-union", "-o", "maps/union.json", "--json"])
    yield Step("core", ["map", "combine", *two, "--keep-intersection", "-o", "maps/core.json", "--json"])
    yield Step("prune", ["prune", "model", "maps/v5-coder.json", "-o", "pruned", "--max-shard", "200KB", "--json"])
    yield Step("prune-source", ["prune", "model", "maps/reap.json", "-o", "reap", "--max-shard", "source", "--json"])
    yield Step("certify", ["certify", "model", "pruned", "--map", "maps/v5-coder.json", "--json"])
    yield Step("certify-reap", ["certify", "model", "reap", "--no-logits", "--json"])
    yield Step("certify-wrong", ["certify", "model", "pruned", "--map", "maps/reap.json", "-o", "no.json", "--json"])
    yield Step("infer-map", ["infer-map", "model", "pruned", "-o", "maps/inferred.json", "--json"])
    for method, more in (("router", []), ("shared-alpha", ["--alpha", "1.0:1.2:0.1"]), ("expert-scale", [])):
        heal = ["heal", "model", "pruned", "-o", f"healed-{method}", "--method", method, "--set", "set.yaml"]
        yield Step(f"heal-{method}", [*heal, *more, "--keep-worse", "--json"])
    for layout in ("modelopt", "compressed-tensors"):
        nvfp4 = ["quantize", "model", "--tiers", "NVFP4A16", "--layout", layout, "--max-shard", "300KB"]
        yield Step(f"nvfp4-{layout}", [*nvfp4, "-o", f"nvfp4-{layout}", "--json"])
        cut = ["prune", f"nvfp4-{layout}", "maps/plain.json", "-o", f"nvfp4-{layout}-cut", "--json"]
        yield Step(f"prune-nvfp4-{layout}", cut)
        certify = ["certify", f"nvfp4-{layout}", f"nvfp4-{layout}-cut", "--no-logits", "--json"]
        yield Step(f"certify-nvfp4-{layout}", certify)
    yield Step("plan", ["plan", "model", "--table", "--json"])
    yield Step("plan-shipped", ["plan", "gemma-4-26B-A4B", "--keep", "98", "--json"])
    yield Step("plan-memory", ["plan", "gemma-4-26B-A4B", "--memory", "16GB", "--kv", "q8_0", "--vision", "--json"])


def evaluation() -> Iterator[Step]:
    """Runs in this process, their exported rows, statistics, card and report."""
    benches = "tiny-code,tiny-math,tiny-choice,tiny-format,tiny-text"
    for name, model in (("base", "model"), ("pruned", "pruned")):
        run = ["eval", model, "--bench", benches, "--log", "runs.db", "--name", name, "--limit", "12", "--json"]
        yield Step(f"eval-{name}", [*run, "--ignore-guard", "short", "--ignore-guard", "length"])
    yield Step("rescore", ["rescore", "runs.db", "--json"])
    yield Step("export", ["log", "export", "runs.db", "--format", "jsonl", "--json"])
    yield Step("export-lm-eval", ["log", "export", "runs.db", "--format", "lm-eval", "-o", "samples", "--json"])
    yield Step("audit", ["audit", "runs.db", "--pair", "base", "pruned", "--json"])
    yield Step("compare", ["compare", "runs.db", "--base", "base", "--flips", "--json"])
    yield Step("attribute", ["attribute", "runs.db", "--chain", "base,pruned", "--json"])
    yield Step("report", ["report", "runs.db", "-o", "report.html", "--base", "base", "--stats", "stats.safetensors"])
    card = ["card", "pruned", "--log", "runs.db", "--base", "base", "--run", "pruned", "--license", "apache-2.0"]
    yield Step("card", [*card, "--base-model", "org/base", "--repo", "org/pruned", "-o", "card.md", "--json"])


def gguf() -> Iterator[Step]:
    """Files that llama.cpp writes, their cuts and their certificates. Needs the built tools."""
    tiers = ["quantize", "model", "--tiers", "Q8_0,Q4_K_M,CD-Q4_K_M,IQ4_XS", "--calibration", "set.yaml"]
    allow = ["--allow-thin-imatrix", "--allow-unchecked", "--threads", "1"]
    yield Step("quantize", [*tiers, *allow, "-o", "ladder", "--json"])
    cut = ["prune", "ladder/model-Q4_K_M.gguf", "maps/v5-coder.json", "-o", "cut-Q4_K_M.gguf"]
    yield Step("prune-gguf", [*cut, "--imatrix", "ladder/imatrix.gguf", "--imatrix-out", "imatrix-cut.gguf", "--json"])
    files = ["ladder/model-Q4_K_M.gguf", "cut-Q4_K_M.gguf"]
    yield Step("certify-gguf", ["certify", *files, "--map", "maps/v5-coder.json", "--json"])
    yield Step("infer-map-gguf", ["infer-map", *files, "-o", "maps/inferred-gguf.json", "--json"])
    yield Step("inspect-gguf", ["inspect", "cut-Q4_K_M.gguf", "--json"])
    yield Step("publish-ollama", ["publish", "ladder", "--to", "ollama", "--json"])


def other_model(name: str) -> Iterator[Step]:
    """What needs a family's data: layout, cut, byte proof, NVFP4, plan and serving flags of another model."""
    path, drop, stem = f"others/{name}", f"others/{name}.map.json", name.removesuffix(".gguf")
    cut = f"{stem}/cut{name.removeprefix(stem)}"
    yield Step(f"{name}-inspect", ["inspect", path, "--json"])
    yield Step(f"{name}-plan", ["plan", path, "--table", "--json"])
    yield Step(
        f"{name}-prune", ["prune", path, drop, "-o", cut, "--max-shard", "source" if stem != name else "20KB", "--json"]
    )
    proof = ["-o", f"{stem}/certificate.json", "--no-logits", "--json"]
    yield Step(f"{name}-certify", ["certify", path, cut, "--map", drop, *proof])
    yield Step(f"{name}-infer-map", ["infer-map", path, cut, "-o", f"{stem}/inferred.json", "--json"])
    for engine in ("llamacpp",) if stem != name else ("transformers", "vllm"):
        serve = ["serve", path, "--engine", engine, "--bench", "gpqa-diamond", "--port", "18999", "--print"]
        yield Step(f"{name}-serve-{engine}", [*serve, "--json"])
    if stem != name:
        return
    measure = ["calibrate", path, "--set", "set.yaml", "--dtype", "float32", "-o", f"{stem}/stats.safetensors"]
    yield Step(f"{name}-calibrate", [*measure, "--json"])
    for layout in ("modelopt", "compressed-tensors"):
        nvfp4 = ["quantize", path, "--tiers", "NVFP4A16", "--layout", layout, "-o", f"{stem}/nvfp4-{layout}"]
        yield Step(f"{name}-nvfp4-{layout}", [*nvfp4, "--json"])


def chosen_steps(parts: list[str], old: Path, models: list[Path]) -> list[Step]:
    """The steps of the parts asked for, in order. All parts use what `core` makes."""
    steps = list(core(recipes(old)))
    if "eval" in parts:
        steps += evaluation()
    if "gguf" in parts:
        steps += gguf()
    if "models" in parts:
        steps += [step for model in models for step in other_model(model.name)]
    return steps
