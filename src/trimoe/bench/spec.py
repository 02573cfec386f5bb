"""What a benchmark is, as data: one TOML file per bench, unknown keys refused, variants as overrides.

Invariants: a spec holds everything that decides which questions are asked, in which words, and how long a reply may be;
changing any of it is another bench or another version. Operational settings (threads, ports, paths) are not here.
A variant is named after a colon (`gsm8k-100:smoke`), overrides only the keys it lists (`without` names keys it drops),
and is a bench of its own.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimoe.errors import BenchError, UsageError

Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rows(_Data):
    """Which rows, in which order: the first n, every stride-th, or pinned ids. None of them: all."""

    first: int | None = Field(default=None, ge=1)
    stride: int | None = Field(default=None, ge=2)
    ids: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_rule(self) -> "Rows":
        if self.ids and (self.first or self.stride):
            raise ValueError("rows are chosen by ids, or by first and stride, not by both")
        return self


class Dataset(_Data):
    """One data set, from the hub at a pinned revision or from a file below `--data`; without `hub`, from a file only.

    `part` names a group within the bench (a language); `local` is the path below `--data`; `where` keeps the rows whose
    field lies in an inclusive range (one file holding several splits); `rows` is how many there are then.
    """

    hub: str = ""
    revision: Revision | None = None
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    gated: bool = False
    local: str
    where: dict[str, tuple[int, int]] = {}
    rows: int | None = Field(default=None, ge=1)
    part: str = ""

    @model_validator(mode="after")
    def _split_or_files(self) -> "Dataset":
        if not self.local or Path(self.local).is_absolute() or ".." in Path(self.local).parts:
            raise ValueError("`local` is a path below the folder of the data")
        if bool(self.hub) != bool(self.revision):
            raise ValueError("a data set of the hub is pinned to a revision; a local one has neither")
        if not self.hub and self.rows is None:
            raise ValueError("a local data set states how many `rows` it has")
        if self.hub and bool(self.split) == bool(self.files):
            raise ValueError("a data set of the hub has a split, or a list of files to read in order")
        return self


class FewShot(_Data):
    """Examples shown before the question, each as a turn of the user and one of the assistant.

    `random`: k rows of `dataset` drawn per question by one generator with `seed`, as lm-eval does, so the examples of a
    question depend on its place. `listed`: the same `examples` for every question.
    """

    k: int = Field(ge=1)
    rule: Literal["random", "listed"]
    seed: int = 0
    dataset: Dataset | None = None
    examples: tuple[dict[str, str], ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> "FewShot":
        if (self.rule == "random") != (self.dataset is not None) or (self.rule == "listed") != (
            len(self.examples) == self.k
        ):
            raise ValueError("random examples need a dataset, listed ones exactly k examples")
        return self


def _template(text: str) -> str:
    """Text whose braces are plain names of fields, or doubled."""
    for _, name, form, conversion in Formatter().parse(text):  # raises ValueError for a brace without its other half
        if name is not None and (not re.fullmatch(r"\w+", name) or form or conversion):
            raise ValueError(f"{{{name}}} is no plain name of a field; a brace is written {{{{ or }}}}")
    return text


Template = Annotated[str, AfterValidator(_template)]


class Prompt(_Data):
    """Templates with `{fields}`, in the words of the reference; `assistant` renders a few-shot answer."""

    user: Template
    assistant: Template = ""


class Answer(_Data):
    """Where the answer of a reply stands and what is right, for a bench without Python (see `declared`).

    `gold` is a template over the row's fields. `find` are regular expressions, tried in order; `ignore` are removed
    from both answers before they are compared as text. `options` names a field that lists options: it is shown as
    lettered lines, and the gold, which `gold_is` a place from 0, a letter or a text, becomes a letter. `reference`
    makes of `{gold}` and the row a reply that must pass.
    """

    gold: Template
    find: tuple[str, ...] = Field(min_length=1)
    ignore: tuple[str, ...] = ()
    ignore_case: bool = False
    options: str = ""
    gold_is: Literal["place", "letter", "text"] | None = None
    reference: Template = "{gold}"

    @model_validator(mode="after")
    def _patterns(self) -> "Answer":
        if bool(self.options) != (self.gold_is is not None):
            raise ValueError("`options` and `gold_is` (place, letter or text) are given together")
        for pattern in (*self.find, *self.ignore):
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ValueError(f"{pattern!r} is no regular expression: {exc}") from exc
        return self


class Sampler(_Data):
    """Greedy unless a cohort needs otherwise."""

    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)


class Generation(_Data):
    """How long and by which rule a reply is made. `think_budget` is taken from `max_new_tokens`, not added to it."""

    max_new_tokens: int = Field(ge=1)
    think_budget: int = Field(default=0, ge=0)
    thinking: Literal["on", "off"]
    stops: tuple[str, ...] = ()
    sampler: Sampler = Sampler()

    @model_validator(mode="after")
    def _room(self) -> "Generation":
        if self.think_budget >= self.max_new_tokens:
            raise ValueError("the thinking budget leaves no room for an answer")
        return self


class LlamaCpp(_Data):
    """llama-server: reasoning switched off, or split from the content (deepseek format) with a budget."""

    reasoning: Literal["off", "budget"]
    context: int = Field(default=65536, ge=1024)
    parallel: int = Field(default=2, ge=1)
    kv: Literal["q8_0", "f16"] = "q8_0"


class Vllm(_Data):
    """vLLM: whether the family's reasoning parser runs, and what the chat template is told about thinking."""

    reasoning_parser: bool
    enable_thinking: bool | None = None


class Serving(_Data):
    """What a server must be started with for this bench."""

    parallel: int = Field(default=2, ge=1)
    timeout_s: int = Field(default=1800, ge=1)
    llamacpp: LlamaCpp
    vllm: Vllm | None = None


class Known(_Data):
    """A row whose recorded verdict may differ from ours, with the reason."""

    doc_id: str
    reason: str


class BenchSpec(_Data):
    """One bench. `metric` is the score's name in the reference; `notes` say how a doubt in the reference was decided.

    `dataset_sha256` pins the rendered rows (ids, prompts, gold); local files that give another hash are refused.
    `placeholder` marks statements that were withheld from a copy of the data: such rows can be scored, not asked.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    version: int = Field(ge=1)
    about: str
    paper: str = ""
    licence: str
    metric: str
    reads: Literal["content", "reasoning and content"] = "content"
    average: Literal["mean", "macro"] = "mean"
    id_field: str = ""
    dataset_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    placeholder: str = ""
    options: dict[str, str | int | bool] = {}
    dataset: tuple[Dataset, ...] = Field(min_length=1)
    rows: Rows = Rows()
    few_shot: FewShot | None = None
    prompt: Prompt
    answer: Answer | None = None
    generation: Generation
    serving: Serving
    notes: tuple[str, ...] = ()
    exceptions: tuple[Known, ...] = ()
    variant: dict[str, dict[str, Any]] = {}
    variant_about: dict[str, str] = {}

    @model_validator(mode="after")
    def _variants(self) -> "BenchSpec":
        if set(self.variant) != set(self.variant_about):
            raise ValueError("every variant has a line in variant_about, and no other name has")
        if odd := [name for name in self.variant if not re.fullmatch(r"[a-z0-9-]+", name)]:
            raise ValueError(f"variant {odd[0]!r} cannot be asked for: its name has small letters, digits and - only")
        return self

    @model_validator(mode="after")
    def _declared(self) -> "BenchSpec":
        if self.answer is None:
            return self
        if any(part.rows is None for part in self.dataset):
            raise ValueError("the data of a bench with [answer] state how many `rows` they have")
        shots = self.few_shot.dataset if self.few_shot else None
        if shots is not None and shots in self.dataset:
            raise ValueError("examples are drawn from the rows that are asked")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the question and the length of the answer, apart from the rows themselves."""
        return {
            "name": self.name,
            "version": self.version,
            "metric": self.metric,
            "reads": self.reads,
            "average": self.average,
            "generation": self.generation.model_dump(mode="json"),
        }


def parse_spec(text: str, source: str) -> BenchSpec:
    """A spec from TOML text; `BenchError` names file and key. Every variant is built once, so a bad one shows here."""
    try:
        spec = _validated(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as exc:
        raise BenchError(f"bench {source} is not valid TOML", actual=str(exc)) from exc
    for name in spec.variant:
        with_variants(spec, [name])
    return spec


def load_spec(file: str) -> BenchSpec:
    """A shipped spec by its file name without `.toml`."""
    path = resources.files("trimoe.bench") / "benches" / f"{file}.toml"
    return parse_spec(path.read_text(encoding="utf-8"), f"{file}.toml")


def with_variants(spec: BenchSpec, variants: Sequence[str]) -> BenchSpec:
    """The bench `name:variant:...`, its overrides applied in the given order; `UsageError` lists the known ones."""
    data = spec.model_dump(mode="json")
    for name in variants:
        if name not in spec.variant:
            raise UsageError(
                f"bench {spec.name} has no variant {name}",
                expected=", ".join(sorted(spec.variant)) or "no variant",
                actual=name,
                remedy="see docs/reference/benches.md",
            )
        # the rows of a variant are other rows: the base's hash does not hold unless the variant states its own
        changes = dict(spec.variant[name])
        without = changes.pop("without", [])
        if not isinstance(without, list) or not all(isinstance(key, str) for key in without):
            raise BenchError(
                f"bench {spec.name}: variant {name}", expected="`without` as a list of keys", actual=repr(without)[:200]
            )
        data = _merged({**data, "dataset_sha256": ""}, changes)
        for key in without:
            data.pop(key, None)
    return _validated(data, ":".join([spec.name, *variants]))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, table by table. The row rule is one choice, so it is replaced as a whole."""
    out = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping) and key != "rows"
        out[key] = _merged(out[key], value) if nested else value
    return out


def _validated(data: dict[str, Any], source: str) -> BenchSpec:
    try:
        return BenchSpec.model_validate(data)
    except ValidationError as exc:
        first, *others = exc.errors()
        more = "".join(f"; {'.'.join(map(str, error['loc']))}: {error['msg']}" for error in others[:5])
        raise BenchError(
            f"bench {source}: {'.'.join(map(str, first['loc']))}",
            expected="a known key with a possible value",
            actual=first["msg"] + more,
            remedy="see docs/howto/add-a-bench.md",
        ) from exc
