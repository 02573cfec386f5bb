"""Builds the reference page of calibration sets from the types that validate them; called by generate.py."""

import ast
import inspect
import types
import typing

from msgspec import NODEFAULT, to_builtins
from msgspec.structs import FieldInfo, fields

from trimoe.calibrate.text.calibration import CalibrationSet, shipped
from trimoe.calibrate.text.records import Fields
from trimoe.calibrate.text.sources import KINDS, BaseSource
from trimoe.io.datafile import Data

SET_PAGE = """\
# The calibration set file

A YAML file in UTF-8. Unknown keys, keys given twice and values of another type are refused. Paths lie below the file's
folder, or below `--data`; others (absolute, or with `..`) are refused, because a set from somebody else must not read
other files of this machine. A symbolic link that you make in the folder is followed. `--set`
also accepts the name of a shipped set ({shipped}).

```yaml
name: my-work
window: 2048
classes:
  generic_math: [{{kind: prompts, builtin: math}}]
  targeted_code:
    - {{kind: run-log, path: samples.jsonl, model: base, against: v4, benches: [humaneval]}}
    - {{kind: jsonl, path: passed.jsonl, fields: {{prompt: task, reply: output}}, only: {{passed: true}}}}
```

## The file
"""

SET_KEPT = """\
The metadata of the statistics record their origin; `trimoe stats show FILE --json` prints them without the document
hashes.
"""
SET_METADATA = {
    "`set`, `set_name`": "hash of what is measured (token ids, classes, masks, weights, window), and the file's `name`",
    "`window`": "tokens per window",
    "`sources`": "class -> its sources: kind, file name or data set and commit, weight",
    "`document_hashes`": "class -> one hash of the tokens per document, with which `trimoe stats merge` detects a "
    "document that two runs measured",
    "`documents`, `windows`, `tokens`": "counts per class; `tokens` counts measured positions",
    "`recon`, `sequential`": "reply positions of the reconstruction (0: none), and to how many experts layers were "
    "cut one after the other (null: none)",
    "`positions`": "class -> kind of position (`text`, `prompt`, `own`, `recorded`) -> measured positions, see "
    "[statistics](../explanation/statistics.md)",
    "`repeated_documents`": "class -> number of duplicate documents",
    "`long_documents`, `cut_tokens`": "rule -> class -> documents longer than the window; class -> tokens removed by "
    "`cut`",
    "`unmeasured_documents`": "class -> documents in which `count_before` marks no position",
    "`replies`": "the model's own answers: hash of the file beside the statistics, rows, tokens, and how many the "
    "model ended itself",
    "`bench_items`": "bench -> ids of its items that are declared in the set (`bench` of a source, traces)",
    "`leak_check`": "result of `--leak-check`: per bench the number of items, those not checked (shorter than 8 "
    "words), ids of `overlapping` items and of the `undeclared` ones among them, ids of items that share only "
    "`boilerplate`, and the `rule` that distinguishes them. After a merge: a list with one report per run, null where "
    "none was made",
}


def set_page() -> str:
    """The keys of a calibration set, and what the statistics record of it."""
    parts = [SET_PAGE.format(shipped=", ".join(f"`{name}`" for name in shipped()))]
    parts += [key_table(CalibrationSet), "\n## Every source\n", key_table(BaseSource)]
    shared = {field.name: field for field in fields(BaseSource)}
    for model in KINDS:
        own = [f.name for f in fields(model) if f.name not in shared or f.default != shared[f.name].default]
        about = inspect.cleandoc(model.__doc__ or "")
        parts += [f"\n## `kind: {model.__struct_config__.tag}`\n", about, "", key_table(model, keep=tuple(own))]
    parts += ["\n## `fields`\n", f"{inspect.cleandoc(Fields.__doc__ or '')}\n", key_table(Fields)]
    parts += ["\n## What the statistics file records\n", SET_KEPT, "| Key | What it holds |\n|---|---|"]
    parts += [f"| {key} | {text} |" for key, text in SET_METADATA.items()]
    return "\n".join(parts) + "\n"


def key_table(model: type[Data], keep: tuple[str, ...] | None = None) -> str:
    """A table of a type's keys with the docstrings below them."""
    meaning: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Data) and base is not Data:
            meaning |= attribute_docs(base)
    lines = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for field in fields(model):
        if keep is not None and field.name not in keep:
            continue
        shown = "required" if field.required else as_yaml(default_of(field))
        lines.append(f"| `{field.name}` | {value_of(field.type)} | {shown} | {meaning.get(field.name, '')} |")
    return "\n".join(lines)


def default_of(field: FieldInfo) -> object:
    """A field's default value."""
    return field.default if field.default_factory is NODEFAULT else field.default_factory()


def attribute_docs(model: type) -> dict[str, str]:
    """attribute -> the docstring written below it."""
    body = ast.parse(inspect.getsource(model).lstrip()).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, node in zip(body.body, body.body[1:], strict=False):
        text = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(text, str):
            found[before.target.id] = " ".join(text.split()).replace("|", "\\|")
    return found


def value_of(annotation: object) -> str:
    """A type in words of YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return value_of(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(value_of(a) for a in arguments if a is not type(None)))
    if origin is list:
        return "list"
    if origin is dict:
        return "class: list of sources" if typing.get_origin(arguments[1]) is list else "mapping"
    words = {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "`true` or `false`",
        "Path": "path",
        "Fields": "see [fields](#fields)",
    }
    return words[getattr(annotation, "__name__", "")]


def as_yaml(value: object) -> str:
    """A default as it would be written."""
    if value is None:
        return ""
    if isinstance(value, Fields):
        return f"`{{{', '.join(f'{k}: {v}' for k, v in to_builtins(value).items() if v is not None)}}}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != {} else ""
