"""The model card: README.md for a pruned checkpoint, a GGUF repository or an NVFP4 checkpoint.

Invariants: generated sections stand between markers and are all that a second run replaces; text outside them, and keys
of the front matter that the card does not set, stay. Every number is asked through `Numbers`; the queries are kept in
`README.numbers.json`. Engines are never mixed in one table. A number that the audit refuses stops the card.
Not guaranteed: that the hub accepts the metadata; its own check needs the network.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimoe.errors import BadInput, Refused
from trimoe.io.publish import publish_file, write_json
from trimoe.judge.runs import flat
from trimoe.judge.text import markdown_text
from trimoe.publish.facts import Artifact, front_matter
from trimoe.publish.numbers import Numbers, Sources

BEGIN, END = "<!-- trimoe:begin {} -->", "<!-- trimoe:end {} -->"
SECTIONS = ("summary", "files", "scores", "audit", "changes", "recipe", "calibration", "usage", "limits", "licence")
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
class Wish:
    """What the writer decides. `base_model` and `repo` are names on the hub; `licence` holds the hub's license keys."""

    title: str
    base_model: str
    repo: str
    licence: dict[str, Any]
    tags: tuple[str, ...] = ()


def card(artifact: Artifact, sources: Sources, wish: Wish, existing: str = "") -> tuple[str, Numbers]:
    """The card's text and its numbers. Raises `Refused` when a run is not publishable, `BadInput` without a licence or
    for an existing card whose markers do not pair up."""
    if not wish.licence.get("license"):
        raise BadInput(
            "the licence of the base model is not known",
            expected="license in the base's README.md",
            remedy="give --license, as the base model states it",
        )
    bad = [f"{bench} of {name}" for (name, bench), one in sources.audits.items() if one.verdict == "refused"]
    if bad:
        raise Refused(
            "the audit refuses numbers of this card",
            actual=", ".join(bad),
            remedy="see `trimoe audit`; evaluate them again, or leave the run out",
        )
    numbers = Numbers(sources)
    parts = {
        "summary": _summary(artifact, numbers, wish),
        "files": _files(artifact, numbers),
        "scores": _scores(numbers),
        "audit": _audit(numbers),
        "changes": _changes(artifact, numbers),
        "recipe": _recipe(artifact, numbers),
        "calibration": _calibration(artifact),
        "usage": _usage(artifact, wish),
        "limits": _limits(sources),
        "licence": _licence(wish),
    }
    return _assembled(parts, artifact, wish, existing), numbers


def _assembled(parts: dict[str, str], artifact: Artifact, wish: Wish, existing: str) -> str:
    kept: dict[str, Any] = {}
    body = ""
    if existing:
        kept, body = front_matter(existing, Path("README.md"))
    if not body.strip():
        body = (
            f"# {markdown_text(wish.title)}\n\n" + "\n\n".join(_marked(name, parts[name]) for name in SECTIONS) + "\n"
        )
    else:
        for name in SECTIONS:
            body = _replaced(body, name, parts[name])
    head = yaml.safe_dump({**kept, **_metadata(artifact, wish, kept)}, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{body}"


def _metadata(artifact: Artifact, wish: Wish, kept: dict[str, Any]) -> dict[str, Any]:
    before = kept.get("tags")
    tags = [str(tag) for tag in before] if isinstance(before, list) else []
    ours = ["moe", "expert-pruning", "trimoe", *wish.tags, *(["gguf"] if artifact.kind == "gguf" else [])]
    library = {"pruned": "transformers", "gguf": "gguf", "nvfp4": "vllm"}[artifact.kind]
    relation = "finetune" if artifact.kind == "pruned" else "quantized"
    return {
        **wish.licence,
        "base_model": wish.base_model,
        "base_model_relation": relation,
        "library_name": library,
        "pipeline_tag": kept.get("pipeline_tag", "text-generation"),
        "tags": list(dict.fromkeys([*tags, *ours])),
    }


def _marked(name: str, text: str) -> str:
    title = f"## {TITLES[name]}\n\n" if name in TITLES else ""
    return f"{BEGIN.format(name)}\n{title}{text}\n{END.format(name)}"


def _replaced(body: str, name: str, text: str) -> str:
    """The generated section anew; a section that the writer took out stays out."""
    begin, end = BEGIN.format(name), END.format(name)
    if (body.count(begin), body.count(end)) not in ((1, 1), (0, 0)) or (
        begin in body and body.find(end) < body.find(begin)
    ):
        raise BadInput(
            f"the card's section {name} has broken markers",
            expected=f"{begin} ... {end} once",
            remedy="restore the markers, or start anew with --force",
        )
    if begin not in body:
        return body
    before, rest = body.split(begin, 1)
    return before + _marked(name, text) + rest.split(end, 1)[1]


def generated(existing: str) -> bool:
    """Whether a README was written by this program: only such a one is regenerated."""
    return any(BEGIN.format(name) in existing for name in SECTIONS)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are escaped by whoever made them."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _summary(artifact: Artifact, n: Numbers, wish: Wish) -> str:
    base = f"[{markdown_text(wish.base_model)}](https://huggingface.co/{wish.base_model})"
    if "dropped" not in artifact.facts:
        return f"Quantized files of a smaller model made from {base} with trimoe."
    what = (
        f"{base} with {n('fact', name='target_experts')} of {n('fact', name='original_experts')} experts in each of "
        f"{n('fact', name='cut_layers')} layers; {n('fact', name='dropped')} per layer were cut out"
    )
    return what + (", the others are unchanged to the byte." if artifact.only_cut else f". Form: {artifact.kind}.")


def _files(artifact: Artifact, n: Numbers) -> str:
    rows = [[markdown_text(name), n("fact", name=f"bytes of {name}", form=",")] for name, _ in artifact.files]
    return _table(("file", "bytes"), rows) + f"\n\nTogether {n('fact', name='total_bytes', form=',')} bytes."


def _scores(n: Numbers) -> str:
    """One table per engine, sampler and stack."""
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
        return f"{cut} Nothing was trained, merged or rescaled; `trimoe certify BASE THIS` proves it."
    return f"{cut} After that the weights were changed: {markdown_text(artifact.made or artifact.kind)}."


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
    """Hash of the statistics that the floor came from, where they are not those of the scores."""
    found = artifact.map_metadata.get("base_stats")
    return str(found) if found and found != artifact.map_metadata.get("stats") else None


def recipe_toml(recipe: dict[str, Any], classes: Any) -> str:
    """The recipe as a file that `trimoe map --recipe` reads.

    The weights that each class really had stand here instead of the patterns: they say more, and maps of version 0.1.0
    took patterns in the order of the recipe's file, which a manifest does not keep. Raises `BadInput` when the text
    would not be read back.
    """
    body = _without_none(recipe)
    if isinstance(classes, dict) and classes:
        body["class_weights"] = classes
        body.pop("exclude", None)  # classes without a weight are out anyway
    text = "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in body.items())
    try:
        same = tomllib.loads(text) == body and "```" not in text
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise BadInput("the recipe in the manifest cannot be shown", expected="plain values without a code fence")
    return text


def _without_none(value: Any) -> Any:
    """TOML has no null; what is not set is left out, as are empty tables and lists at the top."""
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


def _usage(artifact: Artifact, wish: Wish) -> str:
    repo = wish.repo
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


def _licence(wish: Wish) -> str:
    name = str(wish.licence.get("license_name") or wish.licence["license"])
    return f"Inherited from {markdown_text(wish.base_model)}: {markdown_text(name)}."


def write_card(path: Path, text: str, numbers: Numbers) -> None:
    """Publish the card and, beside it, how each of its numbers was asked for."""
    with publish_file(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    body = {"logs": [str(p) for p in numbers.sources.logs], "numbers": numbers.asked}
    write_json(path.with_name(path.stem + ".numbers.json"), json.loads(json.dumps(body)), overwrite=True)


NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
