"""Modelfiles for ollama: template, renderer, parser, stops and parameters of a family, as data in `modelfiles/`.

Invariants: the family is found from the GGUF's own header (architecture, and what its chat template holds), never from
a name; exactly one must fit. The beginning-of-text token is in the template only if the file says that it is not added.
Not guaranteed: texts are not trimmed, because ollama's templates cannot; a text with blank ends differs there from the
checkpoint's own chat template.
"""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimoe.errors import BadInput
from trimoe.model.gguf.file import Gguf, open_gguf
from trimoe.quantize.types.tiers import all_tiers

FOLDER = "trimoe.publish"


class Family(BaseModel):
    """One file of `modelfiles/`. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: str
    """`general.architecture` of the GGUF."""
    chat_template_has: list[str] = []
    """Texts that its chat template must hold."""
    chat_template_lacks: list[str] = []
    """Texts that it must not hold."""
    template: str
    """The file beside this one with ollama's template (Go text/template)."""
    renderer: str | None = None
    parser: str | None = None
    stop: list[str] = Field(min_length=1)
    parameters: dict[str, int | float] = {}

    def fits(self, gguf: Gguf) -> bool:
        """Whether a GGUF is of this family."""
        text = str(gguf.get("tokenizer.chat_template") or "")
        return (
            gguf.get("general.architecture") == self.architecture
            and all(word in text for word in self.chat_template_has)
            and not any(word in text for word in self.chat_template_lacks)
        )


@dataclass(frozen=True)
class Modelfile:
    """`name` of the Modelfile inside the folder, `tag` on ollama (the tier), its text."""

    gguf: Path
    tag: str
    name: str
    text: str


def families() -> dict[str, Family]:
    """All families by name. Raises `BadInput` for a broken file."""
    found = {}
    for file in sorted((resources.files(FOLDER) / "modelfiles").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            try:
                found[file.name.removesuffix(".toml")] = Family.model_validate(tomllib.loads(file.read_text("utf-8")))
            except (ValidationError, tomllib.TOMLDecodeError) as exc:
                raise BadInput(f"{file.name} is no family of Modelfiles", actual=str(exc)[:300]) from exc
    return found


def template(name: str) -> str:
    """The text of a template."""
    return (resources.files(FOLDER) / "modelfiles" / name).read_text("utf-8").removesuffix("\n")


def family_of(gguf: Gguf) -> Family:
    """The one family that fits. Raises `BadInput` for none and for several."""
    fitting = {name: family for name, family in families().items() if family.fits(gguf)}
    if len(fitting) != 1:
        raise BadInput(
            f"no single family of Modelfiles fits {gguf.path}",
            expected=", ".join(families()),
            actual=", ".join(fitting)
            or f"architecture {gguf.get('general.architecture')}, "
            f"chat template of {len(str(gguf.get('tokenizer.chat_template') or ''))} characters",
            remedy="add a file to judge/publish/modelfiles",
        )
    return next(iter(fitting.values()))


def modelfile(path: Path, tag: str) -> Modelfile:
    """The Modelfile of one GGUF; FROM names the file beside it."""
    gguf = open_gguf(path)
    family = family_of(gguf)
    text = template(family.template)
    if gguf.get("tokenizer.ggml.add_bos_token") is False:
        text = "<bos>" + text
    parameters = dict(family.parameters)
    trained = gguf.integer(f"{family.architecture}.context_length")
    if trained is not None and "num_ctx" in parameters:
        parameters["num_ctx"] = min(int(parameters["num_ctx"]), trained)
    if '"""' in text or any('"' in stop for stop in family.stop):
        raise BadInput("a template with three quotes cannot stand in a Modelfile", actual=family.template)
    lines = [f"FROM ./{path.name}", f'TEMPLATE """{text}"""']
    lines += [f"RENDERER {family.renderer}"] if family.renderer else []
    lines += [f"PARSER {family.parser}"] if family.parser else []
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in family.stop]
    return Modelfile(path, tag, f"Modelfile.{tag}", "\n".join(lines) + "\n")


def modelfiles(folder: Path) -> list[Modelfile]:
    """One for each GGUF of a folder that is named NAME-TIER.gguf, smallest first. `BadInput` for none."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.gguf"), key=lambda p: (p.stat().st_size, p.name)):
        tag = tier_of(path.name)
        if tag is not None:
            if tag in found:
                raise BadInput(
                    f"two files of {folder} are of tier {tag}",
                    actual=f"{found[tag].name}, {path.name}",
                    expected="one model per folder",
                )
            found[tag] = path
    if not found:
        raise BadInput(
            f"{folder} holds no GGUF named by its tier", expected="NAME-TIER.gguf, for example x-Q4_K_M.gguf"
        )
    return [modelfile(path, tag) for tag, path in found.items()]


def tier_of(name: str) -> str | None:
    """The tier in a file's name: the longest that fits, so that CD-Q4_K_M is not Q4_K_M."""
    stem = name.removesuffix(".gguf")
    return max((tier for tier in all_tiers() if stem.endswith(f"-{tier}")), key=len, default=None)
