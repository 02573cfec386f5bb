"""Where calibration text comes from: one small type per kind of source, told apart by the key `kind`."""

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

Source = JsonlSource | TextSource | DatasetSource | PromptsSource | RunLogSource | LmEvalSource | TinySource

__all__ = ["KINDS", "BaseSource", "RawReply", "Source", "SourceText"]
