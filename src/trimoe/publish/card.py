"""The model card: README.md of a pruned checkpoint, a GGUF repository or an NVFP4 checkpoint.

Invariants: a second run replaces only the generated sections, which are between markers; other text, and front-matter
keys that the card does not set, stay. Every number comes from a query of `Numbers`; README.numbers.json records the
queries. A score that the audit refuses stops the card. Not guaranteed: that the hub accepts the metadata, which only
its own check can tell.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.io.atomic import publish_file
from trimoe.io.jsonfile import write_json
from trimoe.judge.text import markdown_text
from trimoe.publish.certified import certification
from trimoe.publish.facts import Artifact, front_matter, licence_of, read_artifact, require_own_runs
from trimoe.publish.numbers import Numbers, Sources
from trimoe.publish.sections import TITLES, CardSettings, sections

BEGIN, END = "<!-- trimoe:begin {} -->", "<!-- trimoe:end {} -->"
SECTIONS = ("summary", *TITLES)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class CardReport:
    """A written card: its file, the kind of artifact, and the count of numbers that it shows."""

    path: Path
    kind: str
    numbers: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"card": str(self.path), "kind": self.kind, "numbers": self.numbers}


def write_card(
    artifact: Path | str,
    *,
    logs: Sequence[Path | str],
    base: str,
    names: Sequence[str],
    base_model: str,
    repo: str,
    title: str | None = None,
    licence: str | None = None,
    base_dir: Path | str | None = None,
    tags: Sequence[str] = (),
    out: Path | str | None = None,
    force: bool = False,
    allow_uncertified: bool = False,
) -> CardReport:
    """Write or update the card of `artifact` at `out` (default: its README.md), with README.numbers.json beside it.

    `names` are runs of this artifact in `logs`; differences are paired with the run `base`. `base_model` and `repo` are
    hub ids. The licence is `licence`, or what README.md in `base_dir` states. `force` replaces a README that trimoe did
    not write. A pruned model needs a certificate that is proven and of exactly these files, unless `allow_uncertified`;
    then the card says what is missing.

    Raises `UsageError` for a malformed hub id or the base among `names`, `BadInput` for unreadable files or a README of
    another origin, `Refused` if the audit refuses a score, no run is of this artifact, or it is not certified.
    """
    for option, value in (("--base-model", base_model), ("--repo", repo)):
        if not NAME.fullmatch(value):
            raise UsageError(f"{option} {value!r} is not a hub id", expected="ORG/NAME")
    if base in names:
        raise UsageError(
            f"--run {base} is the base itself",
            expected="a run of the artifact",
            remedy="name the run of the smaller model",
        )
    found = read_artifact(Path(artifact))
    certified = certification(found.path)
    certified.require(found.path, allow_uncertified)
    found = replace(found, certified=certified)
    target = Path(out) if out is not None else found.path / "README.md"
    existing = _existing(target, force)
    stated = {"license": licence} if licence else licence_of(Path(base_dir) if base_dir is not None else None)
    settings = CardSettings(title or repo.partition("/")[2], base_model, repo, stated, tuple(tags))
    paths = [Path(log) for log in logs]
    sources = Sources(paths, base, list(names), found.facts)
    require_own_runs(found, paths, names)
    text, numbers = compose(found, sources, settings, existing)
    _publish(target, text, numbers)
    return CardReport(target, found.kind, len(numbers.printed))


def _existing(target: Path, force: bool) -> str:
    """The generated card at `target`, or "" if there is none or `force` replaces another README."""
    try:
        text = target.read_text(encoding="utf-8") if target.exists() else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(
            f"{target} cannot be read as a card",
            expected="Markdown in UTF-8",
            actual=str(exc),
            remedy="choose another -o",
        ) from exc
    if text and not generated(text) and not force:
        raise BadInput(
            f"{target} was not written by trimoe",
            expected="a card with trimoe's markers, or no file",
            actual="a README of another origin",
            remedy="choose another -o, or replace it with --force",
        )
    return text if generated(text) else ""


def compose(artifact: Artifact, sources: Sources, settings: CardSettings, existing: str = "") -> tuple[str, Numbers]:
    """The card's text and its numbers; `existing` is the card to update.

    Raises `Refused` if the audit refuses a run, `BadInput` without a licence or if the markers of the existing card do
    not pair up.
    """
    if not settings.licence.get("license"):
        raise BadInput(
            "the licence of the base model is not known",
            expected="`license` in the README.md of --base-dir, or --license",
            remedy="give --license with the id that the base model states",
        )
    bad = [f"{bench} of {name}" for (name, bench), one in sources.audits.items() if one.verdict == "refused"]
    if bad:
        raise Refused(
            "the audit refuses scores of this card",
            actual=", ".join(bad),
            remedy="`trimoe audit` names the reasons; evaluate again, or leave the run out",
        )
    numbers = Numbers(sources)
    return _assembled(sections(artifact, numbers, settings), artifact, settings, existing), numbers


def _assembled(parts: dict[str, str], artifact: Artifact, settings: CardSettings, existing: str) -> str:
    kept: dict[str, Any] = {}
    body = ""
    if existing:
        kept, body = front_matter(existing, Path("README.md"))
    if not body.strip():
        body = (
            f"# {markdown_text(settings.title)}\n\n"
            + "\n\n".join(_marked(name, parts[name]) for name in SECTIONS)
            + "\n"
        )
    else:
        for name in SECTIONS:
            body = _replaced(body, name, parts[name])
    head = yaml.safe_dump({**kept, **_metadata(artifact, settings, kept)}, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{body}"


def _metadata(artifact: Artifact, settings: CardSettings, kept: dict[str, Any]) -> dict[str, Any]:
    before = kept.get("tags")
    tags = [str(tag) for tag in before] if isinstance(before, list) else []
    ours = ["moe", "expert-pruning", "trimoe", *settings.tags, *(["gguf"] if artifact.kind == "gguf" else [])]
    library = {"pruned": "transformers", "gguf": "gguf", "nvfp4": "vllm"}[artifact.kind]
    relation = "finetune" if artifact.kind == "pruned" else "quantized"
    return {
        **settings.licence,
        "base_model": settings.base_model,
        "base_model_relation": relation,
        "library_name": library,
        "pipeline_tag": kept.get("pipeline_tag", "text-generation"),
        "tags": list(dict.fromkeys([*tags, *ours])),
    }


def _marked(name: str, text: str) -> str:
    title = f"## {TITLES[name]}\n\n" if name in TITLES else ""
    return f"{BEGIN.format(name)}\n{title}{text}\n{END.format(name)}"


def _replaced(body: str, name: str, text: str) -> str:
    """`body` with one generated section replaced; a section that the author removed stays removed."""
    begin, end = BEGIN.format(name), END.format(name)
    if (body.count(begin), body.count(end)) not in ((1, 1), (0, 0)) or (
        begin in body and body.find(end) < body.find(begin)
    ):
        raise BadInput(
            f"the card's section {name} has broken markers",
            expected=f"{begin} ... {end} once",
            remedy="restore the markers, or replace the whole card with --force",
        )
    if begin not in body:
        return body
    before, rest = body.split(begin, 1)
    return before + _marked(name, text) + rest.split(end, 1)[1]


def generated(existing: str) -> bool:
    """Whether trimoe wrote this README: it has at least one section marker."""
    return any(BEGIN.format(name) in existing for name in SECTIONS)


def _publish(path: Path, text: str, numbers: Numbers) -> None:
    """Write the card and, beside it, the query behind each of its numbers."""
    with publish_file(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    body = {"logs": [str(p) for p in numbers.sources.logs], "numbers": numbers.printed}
    write_json(path.with_name(path.stem + ".numbers.json"), json.loads(json.dumps(body)), overwrite=True)
