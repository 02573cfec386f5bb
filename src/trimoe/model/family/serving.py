"""Sections [nvfp4], [[serving]] and [[ollama]]: names and flags that loaders and servers expect of a family."""

from typing import Annotated

from msgspec import Meta, field

from trimoe.io.datafile import Data


class Nvfp4Section(Data, frozen=True, kw_only=True):
    """What NVFP4A16 needs to know of a family."""

    unstack: str | None = None
    """Layout of [hf.layouts] that a stack of experts is written as, one tensor per expert."""
    keep: tuple[str, ...] = ()
    """Shell patterns of tensor names that stay unquantized, beside those that hold for every family."""


class ChatVariant(Data, frozen=True, kw_only=True):
    """Base of sections that apply to some chat templates of a family only."""

    name: str
    """The family's name unless the file gives another."""
    template_has: tuple[str, ...] = ()
    template_lacks: tuple[str, ...] = ()

    def fits(self, chat_template: str) -> bool:
        """Whether the chat template has all texts it must have and none it must lack."""
        return all(text in chat_template for text in self.template_has) and not any(
            text in chat_template for text in self.template_lacks
        )


class Serving(ChatVariant, frozen=True, kw_only=True):
    """How servers switch thinking on and off. None means that there is no such switch, parser or text."""

    thinking: str | None = None
    """Argument of the chat template."""
    vllm_parser: str | None = None
    """Reasoning parser of vLLM."""
    opens: str | None = None
    closes: str | None = None
    """Texts around a thought."""
    note: str = ""


class Ollama(ChatVariant, frozen=True, kw_only=True):
    """A Modelfile."""

    template: str
    """Text of the template (Go text/template); the family file names the file beside it that holds the text."""
    renderer: str | None = None
    parser: str | None = None
    stop: Annotated[tuple[str, ...], Meta(min_length=1)]
    parameters: dict[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if '"""' in self.template or any('"' in stop for stop in self.stop):
            raise ValueError("a Modelfile cannot hold a template with three quotes or a stop text with a quote")
