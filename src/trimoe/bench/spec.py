"""The keys of a bench's TOML file: data sets, rows, prompts, extraction, generation, serving, variants.

Invariants: a spec holds everything that determines the questions, their wording and the length of replies. Changing any
of it makes another bench or another version. Operational settings (threads, ports, paths) are not part of it.
"""

import re
from collections.abc import Iterable
from string import Formatter
from typing import Annotated, Any, Literal

from msgspec import Meta, field, to_builtins

from trimoe.bench.patterns import refusal
from trimoe.io.datafile import Data
from trimoe.io.paths import require_inner

Revision = Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]
Positive = Annotated[int, Meta(ge=1)]


class Rows(Data, frozen=True, kw_only=True):
    """Which rows are taken, in which order: the first n, every stride-th, or pinned ids; all if none is given."""

    first: Positive | None = None
    stride: Annotated[int, Meta(ge=2)] | None = None
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ids and (self.first or self.stride):
            raise ValueError("rows are chosen by ids, or by first and stride, not by both")


class Dataset(Data, frozen=True, kw_only=True):
    """One data set, from the hub at a pinned revision or from a file below `--data`; without `hub`, only from a file.

    `part` names a group within the bench (a language). `local` is the path below `--data`. `where` keeps the rows whose
    field lies in an inclusive range, for files with several splits. `rows` is the number of rows after that.
    """

    hub: str = ""
    revision: Revision | None = None
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    gated: bool = False
    local: str
    where: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: Positive | None = None
    part: str = ""

    def __post_init__(self) -> None:
        require_inner(self.local, "local")
        for file in self.files:
            require_inner(file, "files")
        if bool(self.hub) != bool(self.revision):
            raise ValueError("a data set of the hub needs a `revision`, a local one must have neither")
        if not self.hub and self.rows is None:
            raise ValueError("a local data set must state its number of `rows`")
        if self.hub and bool(self.split) == bool(self.files):
            raise ValueError("a data set of the hub needs either a `split` or a list of `files` to read in order")


class FewShot(Data, frozen=True, kw_only=True):
    """Examples shown before the question, each as one user turn and one assistant turn.

    `random`: k rows of `dataset` per question, drawn by one generator with `seed` as in lm-eval, so the examples depend
    on the question's position. `listed`: the same `examples` for every question.
    """

    k: Positive
    rule: Literal["random", "listed"]
    seed: int = 0
    dataset: Dataset | None = None
    examples: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.rule == "random") != (self.dataset is not None) or (self.rule == "listed") != (
            len(self.examples) == self.k
        ):
            raise ValueError("random examples need a `dataset`, listed ones exactly k `examples`")


def _require_templates(texts: Iterable[str]) -> None:
    """`ValueError` for a template with braces that are neither a plain field name nor doubled."""
    for text in texts:
        for _, name, form, conversion in Formatter().parse(text):  # raises ValueError for an unmatched brace
            if name is not None and (not re.fullmatch(r"\w+", name) or form or conversion):
                raise ValueError(f"{{{name}}} is not a plain field name; write a literal brace as {{{{ or }}}}")


class Prompt(Data, frozen=True, kw_only=True):
    """Templates with `{fields}`, in the reference's wording. `assistant` renders the answer of a few-shot example."""

    user: str
    assistant: str = ""

    def __post_init__(self) -> None:
        _require_templates((self.user, self.assistant))


class Answer(Data, frozen=True, kw_only=True):
    """How answers are extracted and compared, for a bench without Python code (see `answer_table`).

    `gold` is a template over the row's fields. `find` are regular expressions, tried in order. Matches of `ignore` are
    removed from both answers before they are compared as text. `options` names a field with a list of options, which is
    shown as lettered lines; the gold answer, which `gold_is` an index from 0, a letter or a text, becomes a letter.
    `reference` is a template over `{gold}` and the row for a reply that must pass.
    """

    gold: str
    find: Annotated[tuple[str, ...], Meta(min_length=1)]
    ignore: tuple[str, ...] = ()
    ignore_case: bool = False
    options: str = ""
    gold_is: Literal["place", "letter", "text"] | None = None
    reference: str = "{gold}"

    def __post_init__(self) -> None:
        _require_templates((self.gold, self.reference))
        if bool(self.options) != (self.gold_is is not None):
            raise ValueError("`options` and `gold_is` (place, letter or text) need each other")
        for pattern in (*self.find, *self.ignore):
            if why := refusal(pattern):
                raise ValueError(f"{pattern!r} is not a regular expression: {why}")


class Sampler(Data, frozen=True, kw_only=True):
    """Decoding; greedy by default. `top_k` 0 means all tokens."""

    temperature: Annotated[float, Meta(ge=0)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0


class Generation(Data, frozen=True, kw_only=True):
    """Length of replies in tokens, and decoding. `think_budget` is part of `max_new_tokens`, not added to it."""

    max_new_tokens: Positive
    think_budget: Annotated[int, Meta(ge=0)] = 0
    thinking: Literal["on", "off"]
    stops: tuple[str, ...] = ()
    sampler: Sampler = Sampler()

    def __post_init__(self) -> None:
        if self.think_budget >= self.max_new_tokens:
            raise ValueError("think_budget must be smaller than max_new_tokens, or no tokens are left for the answer")


class LlamaCpp(Data, frozen=True, kw_only=True):
    """llama-server: reasoning off, or separated from the content (deepseek format) with a budget."""

    reasoning: Literal["off", "budget"]
    context: Annotated[int, Meta(ge=1024)] = 65536
    parallel: Positive = 2
    kv: Literal["q8_0", "f16"] = "q8_0"


class Vllm(Data, frozen=True, kw_only=True):
    """vLLM: whether the family's reasoning parser runs, and the chat template's `enable_thinking`."""

    reasoning_parser: bool
    enable_thinking: bool | None = None


class Serving(Data, frozen=True, kw_only=True):
    """Settings that a server for this bench must be started with."""

    parallel: Positive = 2
    timeout_s: Positive = 1800
    llamacpp: LlamaCpp
    vllm: Vllm | None = None


class Known(Data, frozen=True, kw_only=True):
    """A row whose recorded verdict may differ from trimoe's, with the reason."""

    doc_id: str
    reason: str


class BenchSpec(Data, frozen=True, kw_only=True):
    """One bench. `metric` is the score's name in the reference; `notes` explain decisions where it is unclear.

    `dataset_sha256` pins the rendered rows (ids, prompts, gold answers); local files with another hash are refused.
    `placeholder` marks questions that were withheld from a copy of the data: such rows can be scored, but not asked.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9-]+\Z")]
    version: Positive
    about: str
    paper: str = ""
    licence: str
    metric: str
    reads: Literal["content", "reasoning and content"] = "content"
    average: Literal["mean", "macro"] = "mean"
    id_field: str = ""
    dataset_sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    placeholder: str = ""
    options: dict[str, str | int | bool] = field(default_factory=dict)
    dataset: Annotated[tuple[Dataset, ...], Meta(min_length=1)]
    rows: Rows = Rows()
    few_shot: FewShot | None = None
    prompt: Prompt
    answer: Answer | None = None
    generation: Generation
    serving: Serving
    notes: tuple[str, ...] = ()
    exceptions: tuple[Known, ...] = ()
    variant: dict[str, dict[str, Any]] = field(default_factory=dict)
    variant_about: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.variant) != set(self.variant_about):
            raise ValueError("every variant needs a line in variant_about, and no other name may have one")
        if odd := [name for name in self.variant if not re.fullmatch(r"[a-z0-9-]+", name)]:
            raise ValueError(f"the name of variant {odd[0]!r} may only have lower-case letters, digits and -")
        if self.answer is None:
            return
        if any(part.rows is None for part in self.dataset):
            raise ValueError("every data set of a bench with [answer] must state its number of `rows`")
        shots = self.few_shot.dataset if self.few_shot else None
        if shots is not None and shots in self.dataset:
            raise ValueError("the few-shot examples come from the rows that are asked; draw them from another split")

    def identity(self) -> dict[str, Any]:
        """Whatever determines the questions and the length of replies, apart from the rows."""
        return {
            "name": self.name,
            "version": self.version,
            "metric": self.metric,
            "reads": self.reads,
            "average": self.average,
            "generation": to_builtins(self.generation),
        }
