"""The sections of a model card as Markdown; every number comes from `Numbers`.

Invariants: text from manifests and logs is escaped; scores of different engines, samplers or stacks are never in one
table; the recipe is shown only if it reads back as the same recipe.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimoe.errors import BadInput
from trimoe.judge.runs import flat
from trimoe.judge.text import markdown_text
from trimoe.publish.certified import Certification
from trimoe.publish.facts import Artifact
from trimoe.publish.numbers import Numbers, Sources

TITLES = {
    "files": "Files",
    "scores": "Scores",
    "audit": "Audit",
    "changes": "What was changed",
    "recipe": "Recipe",
    "calibration": "Calibration",
    "usage": "Usage",
    "limits": "Limitations",
    "licence": "Licence",
}


@dataclass(frozen=True)
class CardSettings:
    """What the author decides. `base_model` and `repo` are hub ids; `licence` holds the hub's license keys."""

    title: str
    base_model: str
    repo: str
    licence: dict[str, Any]
    tags: tuple[str, ...] = ()


def sections(artifact: Artifact, numbers: Numbers, settings: CardSettings) -> dict[str, str]:
    """The Markdown of every section by its name, in the order of the card."""
    return {
        "summary": _summary(artifact, numbers, settings),
        "files": _files(artifact, numbers),
        "scores": _scores(numbers),
        "audit": _audit(numbers),
        "changes": _changes(artifact, numbers),
        "recipe": _recipe(artifact, numbers),
        "calibration": _calibration(artifact),
        "usage": _usage(artifact, settings),
        "limits": _limits(numbers.sources),
        "licence": _licence(settings),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. The cells are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _summary(artifact: Artifact, n: Numbers, settings: CardSettings) -> str:
    base = f"[{markdown_text(settings.base_model)}](https://huggingface.co/{settings.base_model})"
    if "dropped" not in artifact.facts:
        return f"Quantized files of a smaller model made from {base} with trimoe."
    what = (
        f"{base} with {n('fact', name='target_experts')} of {n('fact', name='original_experts')} experts in each of "
        f"{n('fact', name='cut_layers')} layers; {n('fact', name='dropped')} per layer were cut out"
    )
    unchanged = artifact.only_cut and not (artifact.certified and artifact.certified.problems)
    return what + (", the others are unchanged to the byte." if unchanged else f". Form: {artifact.kind}.")


def _files(artifact: Artifact, n: Numbers) -> str:
    rows = [[markdown_text(name), n("fact", name=f"bytes of {name}", form=",")] for name, _ in artifact.files]
    return _table(("file", "bytes"), rows) + f"\n\nTogether {n('fact', name='total_bytes', form=',')} bytes."


def _scores(n: Numbers) -> str:
    """One table per engine, sampler and software stack."""
    comparison = n.sources.comparison
    parts = []
    engines: list[dict[str, Any]] = []
    for column in comparison.columns:
        if column["conditions"] not in engines:
            engines.append(column["conditions"])
    for conditions in engines:
        numbers = {i for i, c in enumerate(comparison.columns, 1) if c["conditions"] == conditions}
        rows = []
        for row in comparison.rows:
            if row.column in numbers:
                at = {"name": row.name, "bench": row.bench}
                rows.append(
                    [
                        markdown_text(row.bench),
                        markdown_text(row.name),
                        n("items", **at),
                        n("score", **at),
                        n("error", **at),
                        n("interval", **at),
                        n("difference", **at),
                        n("flips", **at),
                        n("p", **at),
                    ]
                )
        settings = ", ".join(f"{k} {v}" for k, v in sorted(flat(conditions).items()))
        head = ("bench", "run", "n", "score %", "SE", "95 %", "difference (95 %)", "lost/gained", "p (Holm)")
        parts.append(f"Measured with {markdown_text(settings, 2000)}.\n\n" + _table(head, rows))
    note = (
        f"Differences are paired with {markdown_text(comparison.base)} on the same items: Tango's score interval, "
        "exact McNemar test (sign flips over problems where items repeat), Holm over the tables. "
        "Tables of different engines must not be compared with each other."
    )
    return "\n\n".join([*parts, note])


def _audit(n: Numbers) -> str:
    rows = []
    for (name, bench), _ in n.sources.audits.items():
        cells = [
            n("audit", name=name, bench=bench, what=what)
            for what in ("verdict", "n", "empty", "fenced", "chars", "loops", "failures", "flags")
        ]
        rows.append([markdown_text(bench), markdown_text(name), *(markdown_text(c) for c in cells)])
    head = ("bench", "run", "verdict", "n", "empty", "fenced", "chars p10/p50/p90", "loops", "failures", "flags")
    return _table(head, rows)


def _changes(artifact: Artifact, n: Numbers) -> str:
    if "dropped" not in artifact.facts:
        return "The weights were quantized. Which tensors have which type is in each file's header."
    cut = (
        f"In each of {n('fact', name='cut_layers')} layers {n('fact', name='dropped')} experts were removed from the "
        "expert projections, the router and what else has a row per expert, and the count in `config.json` was "
        "changed. `expert_drop_metadata.json` lists every kept and dropped id."
    )
    if artifact.only_cut:
        return f"{cut} Nothing was trained, merged or rescaled; {_proof(artifact.certified)}"
    changed = f"{cut} After that the weights were changed: {markdown_text(artifact.made or artifact.kind)}."
    problems = artifact.certified.problems if artifact.certified else ()
    return f"{changed} **Not certified**: {markdown_text('; '.join(problems), 500)}." if problems else changed


def _proof(certified: Certification | None) -> str:
    """What proves that only experts were removed."""
    if certified is None:
        return "`trimoe certify BASE THIS` proves it."
    if certified.proven:
        return (
            "`certificate.json` is the proof, of bytes and of logits, and was verified against these files when this "
            "card was written. `trimoe certify --check THIS` verifies it again, `trimoe certify BASE THIS` repeats it."
        )
    problems = markdown_text("; ".join(certified.problems), 500)
    return f"this is **not certified**: {problems}. `trimoe certify BASE THIS` would prove or refute it."


def _recipe(artifact: Artifact, n: Numbers) -> str:
    if not artifact.recipe:
        return "The artifact's manifest does not hold a recipe."
    text = recipe_toml(artifact.recipe, artifact.map_metadata.get("classes"))
    keep = f" --keep {n('fact', name='map_keep')}" if "map_keep" in artifact.facts else ""
    pins = artifact.map_metadata.get("force_keep")
    more, files = "", f"`recipe.toml`:\n\n```toml\n{text}```\n\n"
    if other_base(artifact):
        more += " --base-stats BASE_STATS"
    if isinstance(pins, dict) and pins:
        more += " --force-keep keep.txt"
        lines = "".join(f"{layer}:{int(e)}\n" for layer, ids in pins.items() for e in ids)
        files += f"`keep.txt`:\n\n```\n{lines}```\n\n"
    run = f"trimoe map STATS --recipe recipe.toml{keep}{more} -o map.json\ntrimoe prune BASE map.json -o OUT"
    return f"{files}```sh\n{run}\n```"


def other_base(artifact: Artifact) -> str | None:
    """sha256 of the statistics behind the floor, if they differ from those behind the scores."""
    found = artifact.map_metadata.get("base_stats")
    return str(found) if found and found != artifact.map_metadata.get("stats") else None


def recipe_toml(recipe: dict[str, Any], classes: Any) -> str:
    """The recipe as a TOML file for `trimoe map --recipe`.

    `classes` are the weights that each class had. They replace the recipe's patterns: maps made by version 0.1.0 took
    patterns in the order of the recipe's file, which a manifest does not keep. Raises `BadInput` if the text does not
    read back as the same recipe.
    """
    body = _without_none(recipe)
    if isinstance(classes, dict) and classes:
        body["class_weights"] = classes
        body.pop("exclude", None)  # a class without a weight is excluded anyway
    text = "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in body.items())
    try:
        same = tomllib.loads(text) == body and "```" not in text
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise BadInput(
            "the recipe in the manifest cannot be printed as TOML",
            expected="plain values without a code fence",
            remedy="prune again with a map made by `trimoe map`",
        )
    return text


def _without_none(value: Any) -> Any:
    """Without unset values, empty tables and empty lists: TOML has no null."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v not in (None, {}, [])}
    return value


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _calibration(artifact: Artifact) -> str:
    stats, classes = artifact.map_metadata.get("stats"), artifact.map_metadata.get("classes")
    if not stats:
        return "The artifact's manifest does not name the calibration statistics."
    names = ", ".join(markdown_text(str(c)) for c in classes) if isinstance(classes, dict) else "not recorded"
    floor = other_base(artifact)
    second = f" The floor of each layer is from statistics with sha256 `{markdown_text(floor, 64)}`." if floor else ""
    return (
        f"Experts were chosen by statistics with sha256 `{markdown_text(str(stats), 64)}`, classes {names}.{second} "
        "Whether a calibration set holds items of a bench is in the audit's leak row (`trimoe audit --stats`)."
    )


def _usage(artifact: Artifact, settings: CardSettings) -> str:
    repo = settings.repo
    if artifact.kind == "gguf":
        first = artifact.files[0][0]
        return f"```sh\nllama-server -hf {repo} --jinja\nollama run hf.co/{repo}\n```\n\nLargest file: `{first}`."
    serve = f"```sh\nvllm serve {repo}\n```"
    if artifact.kind == "nvfp4":
        return serve
    python = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto", attn_implementation="eager")\n```'
    )
    return f"{python}\n\n{serve}"


def _limits(sources: Sources) -> str:
    lines = [
        "- Scores hold for these benches, this sampler and this engine; other engines give other scores.",
        "- Experts were kept for the work of the calibration set; other work may have lost more.",
    ]
    lines += [f"- {markdown_text(note)}" for note in sources.comparison.notes]
    return "\n".join(lines)


def _licence(settings: CardSettings) -> str:
    name = str(settings.licence.get("license_name") or settings.licence["license"])
    return f"Inherited from {markdown_text(settings.base_model)}: {markdown_text(name)}."
