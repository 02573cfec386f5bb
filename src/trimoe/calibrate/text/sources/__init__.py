"""Where calibration text comes from: one small model per kind of source, told apart by `kind`."""

from typing import Annotated

from pydantic import Field

from trimoe.calibrate.text.sources.base import BaseSource, RawReply, SourceText
from trimoe.calibrate.text.sources.dataset import DatasetSource
from trimoe.calibrate.text.sources.local import JsonlSource, TextSource, TinySource
from trimoe.calibrate.text.sources.prompts import PromptsSource
from trimoe.calibrate.text.sources.traces import LmEvalSource, RunLogSource

KINDS: tuple[type[BaseSource], ...] = (
    JsonlSource,
    TextSource,
    DatasetSource,
    PromptsSource,
    RunLogSource,
    LmEvalSource,
    TinySource,
)
"""Every kind of source; the reference page is made from it."""

Source = Annotated[
    JsonlSource | TextSource | DatasetSource | PromptsSource | RunLogSource | LmEvalSource | TinySource,
    Field(discriminator="kind"),
]

__all__ = ["KINDS", "BaseSource", "RawReply", "Source", "SourceText"]
