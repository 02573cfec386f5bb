"""The templates of our Modelfiles, run by Go's own text/template as in ollama, against the checkpoints' chat templates
as transformers renders them. (ollama itself is in no package registry, so it is not run here.)"""

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from trimoe.errors import BadInput
from trimoe.llamacpp.tools import cache_folder
from trimoe.model import tiny
from trimoe.model.family.file import family_of
from trimoe.model.family.serving import Ollama
from trimoe.model.gguf.file import open_gguf
from trimoe.publish.modelfile import modelfile, tier_of, variant_of

GEMMA = "vendor/llama.cpp/models/templates/google-gemma-4-31B-it.jinja"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {
                "city": {"type": "string", "description": "Name of the place"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "integer", "description": "How many"},
            },
        },
    },
}
NOW = {
    "type": "function",
    "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
DEEP = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a trip",
        "parameters": {
            "type": "object",
            "required": ["who", "stops"],
            "properties": {
                "who": {
                    "type": "object",
                    "description": "The guest",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "age": {"type": "integer", "description": "in years"},
                        "tags": {"type": "array", "items": {"type": "string"}},
                    },
                },
                "stops": {
                    "type": "array",
                    "description": "In order",
                    "items": {
                        "type": "object",
                        "required": ["place"],
                        "properties": {
                            "place": {"type": "string", "description": "where"},
                            "nights": {"type": "number"},
                        },
                    },
                },
                "flexible": {"type": "boolean"},
            },
        },
    },
}


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """The header of a GGUF of the bundled model as the converter writes it, as far as a Modelfile looks at it."""
    import gguf
    import numpy as np

    path = tmp_path / "tiny-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_context_length(4096)
    writer.add_chat_template((tiny.path() / "chat_template.jinja").read_text())
    writer.add_add_bos_token(True)
    writer.add_tensor("token_embd.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(name: str, ident: str = "", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": ident, "function": {"name": name, "arguments": arguments}}


def calls(*made: dict[str, Any], text: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": list(made), **more}


def result(name: str, text: str, ident: str = "") -> dict[str, Any]:
    return {"role": "tool", "name": name, "content": text, "tool_call_id": ident}


SYSTEM = {"role": "system", "content": "Be brief."}
ASKS = calls(call("get_weather", city="Bonn", unit="C", days=3))
CASES: list[tuple[list[dict[str, Any]], list[dict[str, Any]], bool]] = [
    ([user("Hi")], [], False),
    ([user("Hi")], [], True),
    ([SYSTEM, user("Hi")], [], False),
    ([SYSTEM, user("Hi")], [], True),
    ([user("Hi"), says("Hello."), user('And "now" <b>&</b>?\n\nNew line: ü 漢')], [], False),
    ([SYSTEM, user("1"), says("2"), user("3"), says("4"), user("5")], [], True),
    ([user("Weather?")], [WEATHER], False),
    ([user("Weather?")], [WEATHER, NOW], True),
    ([SYSTEM, user("Go")], [DEEP], False),
    ([user("Weather?"), ASKS], [WEATHER], False),
    ([user("Weather?"), ASKS, result("get_weather", "12 degrees")], [WEATHER], False),
    ([user("Weather?"), ASKS, result("get_weather", '{"t": 12}')], [WEATHER], True),
    (
        [
            user("W?"),
            calls(call("get_weather", city="Bonn"), reasoning="I need the tool."),
            result("get_weather", "12"),
        ],
        [WEATHER],
        True,
    ),
    (
        [
            user("W?"),
            calls(call("get_weather", city="Bonn"), reasoning="old thoughts"),
            result("get_weather", "12"),
            says("It is 12."),
            user("Thanks"),
        ],
        [WEATHER],
        True,
    ),
    ([user("W?"), ASKS, result("get_weather", "12"), says("It is 12."), user("And Rome?")], [WEATHER], False),
    (
        [
            user("W?"),
            calls(call("get_weather", "a1", city="Bonn"), call("now", "a2")),
            result("", "12", "a1"),
            result("", "noon", "a2"),
            says("12 at noon."),
            user("ok"),
        ],
        [WEATHER, NOW],
        False,
    ),
    ([user("W?"), ASKS, result("get_weather", "12"), calls(call("now")), result("now", "noon")], [WEATHER, NOW], False),
    (
        [
            user("W?"),
            calls(
                call(
                    "book",
                    who={"name": "Ada", "age": 36, "tags": ["x", "y"]},
                    flexible=True,
                    stops=[{"place": "Rome", "nights": 2.5}, {"place": "Bonn", "nights": 1}],
                )
            ),
        ],
        [DEEP],
        False,
    ),
    (
        [
            user("W?"),
            calls(call("get_weather", city="Bonn", days=1000000), text="One moment."),
            result("get_weather", "12"),
            says("Done."),
            user("more"),
        ],
        [WEATHER],
        True,
    ),
    (
        [
            SYSTEM,
            user("W?"),
            calls(call("now")),
            result("now", "noon"),
            says("Noon."),
            user("Bye"),
            says("Bye."),
            user("One more"),
        ],
        [NOW],
        False,
    ),
    # a reply that is to be gone on with
    ([user("Count"), says("One, two,")], [], False),
    ([SYSTEM, user("W?"), ASKS, result("get_weather", "12"), says("It is")], [WEATHER], False),
]


def render(text: str, cases: list[tuple[list[dict[str, Any]], list[dict[str, Any]], bool]], folder: Path) -> list[str]:
    """By Go, with the messages in ollama's words."""
    if shutil.which("go") is None:
        pytest.skip("no Go toolchain (apt-get install golang-go, or make toolchains)")
    words = {"name": "tool_name", "reasoning": "thinking"}
    body = {
        "template": text,
        "cases": [
            {"messages": [{words.get(k, k): v for k, v in m.items()} for m in messages], "tools": tools, "think": think}
            for messages, tools, think in cases
        ],
    }
    program = folder / "render"
    subprocess.run(
        ["go", "build", "-o", str(program), str(Path(__file__).with_name("render.go"))],
        check=True,
        env={
            "PATH": "/usr/bin:/bin:/usr/local/go/bin",
            "HOME": str(folder),
            "GO111MODULE": "off",
            "GOCACHE": str(cache_folder().parent / "go"),
        },
        timeout=280,
    )
    done = subprocess.run([str(program)], input=json.dumps(body), capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def ours(cases: list[Any]) -> list[Any]:
    """Tool results under `name` only where they have one, as transformers' templates expect it."""
    return [
        ([{k: v for k, v in m.items() if v or k in ("role", "content")} for m in messages], t, think)
        for messages, t, think in cases
    ]


def expected(chat_template: str, cases: list[Any]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.path())
    made = []
    for messages, tools, think in ours(cases):
        open_end = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            chat_template=chat_template,
            enable_thinking=think,
            tokenize=False,
            add_generation_prompt=not open_end,
            continue_final_message=open_end,
        )
        made.append(text.removeprefix("<bos>"))
    return made


def variant(name: str) -> Ollama:
    family = family_of("gemma4")
    assert family is not None
    return next(one for one in family.ollama if one.name == name)


def test_gemma_4_with_tools_and_thinking(tmp_path: Path) -> None:
    archives = sorted(cache_folder().glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        pytest.skip("the source archive of llama.cpp, which has Google's chat template, is not in the cache")
    with tarfile.open(archives[-1]) as tar:
        member = next((m for m in tar if m.name.endswith(GEMMA)), None)
        if member is None:
            pytest.skip(f"{archives[-1].name} holds no {GEMMA}")
        chat_template = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
    assert len(CASES) >= 20
    assert variant("gemma4").template_has
    assert all(word in chat_template for word in variant("gemma4").template_has)
    wanted = expected(chat_template, CASES)
    for case, made, right in zip(CASES, render(variant("gemma4").template, CASES, tmp_path), wanted, strict=True):
        assert made == right, case


def test_the_bundled_models_turns(tmp_path: Path) -> None:
    cases = [case for case in CASES if not case[1] and not case[2]]
    cases += [
        ([*case[0], says("ok"), user(f"more {n}")], [], False)
        for n, case in enumerate(cases)
        if case[0][-1]["role"] == "user"
    ]
    chat_template = (tiny.path() / "chat_template.jinja").read_text()
    wanted = expected(chat_template, cases)
    assert render(variant("gemma4-turns").template, cases, tmp_path) == wanted


def test_a_modelfile_is_what_the_family_says(tiny_gguf: Path) -> None:
    made = modelfile(tiny_gguf, "Q8_0")
    assert made.text.startswith(f'FROM ./{tiny_gguf.name}\nTEMPLATE """')
    assert "RENDERER" not in made.text  # the bundled model knows no tools
    lines = made.text.rpartition('"""\n')[2].splitlines()
    assert lines == [
        "PARAMETER repeat_penalty 1.15",
        "PARAMETER repeat_last_n 256",
        "PARAMETER temperature 0.6",
        "PARAMETER top_p 0.95",
        "PARAMETER num_ctx 4096",
        'PARAMETER stop "<turn|>"',
    ]


def test_gemma_4s_own_family() -> None:
    made = variant("gemma4")
    assert (made.renderer, made.parser, made.stop) == ("gemma4", "gemma4", ("<turn|>", "<|tool_response>"))
    assert '"""' not in made.template  # it stands between three quotes
    assert made.parameters == {
        "repeat_penalty": 1.15,
        "repeat_last_n": 256,
        "temperature": 0.6,
        "top_p": 0.95,
        "num_ctx": 256000,
    }


def test_one_family_must_fit(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = open_gguf(tiny_gguf)
    assert variant_of(gguf).name == "gemma4-turns"
    monkeypatch.setattr(type(gguf), "get", lambda self, key, default=None: {"general.architecture": "other"}.get(key))
    with pytest.raises(BadInput, match=re.escape("architecture other")):
        variant_of(gguf)


def test_tiers_in_names() -> None:
    assert tier_of("gemma-98e-it-Q4_K_M.gguf") == "Q4_K_M"
    assert tier_of("gemma-98e-it-CD-Q4_K_M.gguf") == "CD-Q4_K_M"
    assert tier_of("mmproj.gguf") is None
