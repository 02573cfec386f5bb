"""Modelfiles for ollama, from section [[ollama]] of a family file: template, renderer, parser, stops and parameters.

Invariants: the family follows from the GGUF's own header (architecture, and the texts in its chat template), never from
a name; exactly one variant must fit. The beginning-of-text token is in the template only if the file says that it is
not added. Not guaranteed: texts are not trimmed, because ollama's templates cannot; a text with surrounding white space
is rendered differently from the checkpoint's own chat template.
"""

from dataclasses import dataclass
from pathlib import Path

from trimoe.errors import BadInput
from trimoe.model.family.file import family_of
from trimoe.model.family.serving import Ollama
from trimoe.model.gguf.file import Gguf, open_gguf
from trimoe.quantize.types.tiers import all_tiers


@dataclass(frozen=True)
class Modelfile:
    """`name` of the Modelfile inside the folder, `tag` on ollama (the tier), its text."""

    gguf: Path
    tag: str
    name: str
    text: str


def variant_of(gguf: Gguf) -> Ollama:
    """The one variant that fits a GGUF: its architecture's family, and its chat template. Raises `BadInput`."""
    architecture, chat_template = str(gguf.get("general.architecture")), str(gguf.get("tokenizer.chat_template") or "")
    family = family_of(architecture)
    known = family.ollama if family else ()
    fitting = [variant for variant in known if variant.fits(chat_template)]
    if len(fitting) != 1:
        raise BadInput(
            f"no single Modelfile fits {gguf.path}",
            expected=f"one of {', '.join(variant.name for variant in known)}" if known else "[[ollama]] in its family",
            actual=", ".join(variant.name for variant in fitting)
            or f"architecture {architecture}, chat template of {len(chat_template)} characters",
            remedy="describe it in section [[ollama]] of the family's file (docs/howto/add-a-family.md)",
        )
    return fitting[0]


def modelfile(path: Path, tag: str) -> Modelfile:
    """The Modelfile for one GGUF file; its FROM line names that file in the same directory."""
    gguf = open_gguf(path)
    variant = variant_of(gguf)
    text = variant.template
    if gguf.get("tokenizer.ggml.add_bos_token") is False:
        text = "<bos>" + text
    parameters = dict(variant.parameters)
    trained = gguf.integer(f"{gguf.get('general.architecture')}.context_length")
    if trained is not None and "num_ctx" in parameters:
        parameters["num_ctx"] = min(int(parameters["num_ctx"]), trained)
    lines = [f"FROM ./{path.name}", f'TEMPLATE """{text}"""']
    lines += [f"RENDERER {variant.renderer}"] if variant.renderer else []
    lines += [f"PARSER {variant.parser}"] if variant.parser else []
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in variant.stop]
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
