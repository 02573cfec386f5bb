"""Commands of every engine from model, bench and family; what recorded answers of real servers are taken for."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimoe.bench.catalog import benches, find
from trimoe.bench.spec import BenchSpec
from trimoe.errors import BadInput, Refused, UsageError
from trimoe.evaluate.answer import Fault, read_answer
from trimoe.model.tiny import path as bundled
from trimoe.serve import engine as engines_module
from trimoe.serve import open_server, planned
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Plan, engines
from trimoe.serve.engines.ollama import from_pages, model_name
from trimoe.serve.engines.vllm import model_card
from trimoe.serve.requirements import required_context, requirements_for


def spec_of(name: str) -> BenchSpec:
    spec = find([name])[0].protocol
    assert spec is not None
    return spec


def plan_of(model: Path, **options: Any) -> Plan:
    plan = planned(model, **options)[2]
    assert plan is not None
    return plan


def after(plan: Plan, flag: str) -> str:
    return plan.command[plan.command.index(flag) + 1]


def recorded(name: str) -> Any:
    """The body of a recorded answer; each file names where it comes from."""
    data = json.loads((Path(__file__).parent / "recorded" / f"{name}.json").read_text())
    assert data["source"]
    return data["body"]


def test_engines_are_the_files_of_the_folder() -> None:
    folder = Path(engines_module.__file__).parent / "engines"
    named = {file.stem for file in folder.glob("*.py") if "\nENGINE = Engine(" in file.read_text()}
    assert set(engines()) == named == {"endpoint", "llamacpp", "ollama", "transformers", "vllm"}


@pytest.mark.parametrize("name", [b.name for b in benches().values() if b.protocol])
@pytest.mark.parametrize("parallel", [None, 1, 8])
def test_every_slot_has_the_context_its_bench_needs(name: str, parallel: int | None) -> None:
    """Protocol section 2: slots of 4096 tokens were the reference's costliest fault."""
    spec = spec_of(name)
    needs = requirements_for(spec, parallel=parallel)
    think = spec.generation.think_budget if spec.generation.thinking == "on" else 0
    assert needs.context >= max(spec.generation.max_new_tokens, think + 4096 if think else 0)
    assert needs.thinking == (spec.generation.thinking == "on")
    assert needs.budget in (None, spec.generation.think_budget)


def test_llamacpp_gets_budget_context_and_cache_of_the_bench(tiny_gguf: Path) -> None:
    plan = plan_of(tiny_gguf, spec=spec_of("gsm8k-100"), port=8080)
    assert after(plan, "--reasoning") == "on"
    assert after(plan, "--reasoning-format") == "deepseek"
    assert after(plan, "--reasoning-budget") == "12288"
    assert int(after(plan, "-c")) == 65536
    assert after(plan, "--parallel") == "2"
    assert after(plan, "--cache-type-k") == after(plan, "--cache-type-v") == "q8_0"
    off = plan_of(tiny_gguf, spec=spec_of("arc-challenge"))
    assert after(off, "--reasoning") == "off"
    assert "--reasoning-budget" not in off.command
    gpqa = plan_of(tiny_gguf, spec=spec_of("gpqa-diamond"))
    assert after(gpqa, "--parallel") == "1"
    assert after(gpqa, "--cache-type-k") == "f16"


def test_more_slots_need_more_context_not_smaller_slots(tiny_gguf: Path) -> None:
    for slots in (1, 2, 8):
        plan = plan_of(tiny_gguf, spec=spec_of("gsm8k-100"), parallel=slots)
        assert int(after(plan, "-c")) // slots >= required_context(16384, 12288) == 16384


def test_vllm_gets_parser_budget_and_template_arguments() -> None:
    plan = plan_of(bundled(), engine="vllm", spec=spec_of("gsm8k-100"), port=8000)
    assert plan.command[1:3] == ("serve", str(bundled()))
    assert after(plan, "--reasoning-parser") == "gemma4"
    assert plan.body == {
        "skip_special_tokens": False,
        "chat_template_kwargs": {"enable_thinking": True},
        "thinking_token_budget": 12288,
    }
    assert json.loads(after(plan, "--reasoning-config"))["reasoning_start_str"] == "<|channel>"
    assert int(after(plan, "--max-model-len")) >= 16384
    assert after(plan, "--generation-config") == "vllm"
    off = plan_of(bundled(), engine="vllm", spec=spec_of("arc-challenge"))
    assert "--reasoning-parser" not in off.command
    assert off.body == {"skip_special_tokens": False, "chat_template_kwargs": {"enable_thinking": False}}


def test_ollama_gets_a_server_and_a_store_of_its_own(tiny_gguf: Path) -> None:
    plan = plan_of(tiny_gguf, engine="ollama", spec=spec_of("arc-challenge"), port=9000)
    assert plan.environment["OLLAMA_HOST"] == "127.0.0.1:9000"
    assert ".ollama" not in plan.environment["OLLAMA_MODELS"]
    assert int(plan.environment["OLLAMA_CONTEXT_LENGTH"]) >= 16384
    assert plan.environment["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
    assert plan.environment["OLLAMA_FLASH_ATTENTION"] == "1"
    assert plan.body == {"reasoning_effort": "none"}
    assert plan.prepare[0][1:3] == ("create", model_name(tiny_gguf.stem))
    assert plan.files[plan.prepare[0][4]] == f"FROM {tiny_gguf}\n"
    budget = plan_of(tiny_gguf, engine="ollama", spec=spec_of("gsm8k-100"))
    assert "no thinking budget" in budget.notes[0]


@pytest.mark.parametrize("engine", ["llamacpp", "ollama"])
def test_the_printed_command_survives_a_shell(tiny_gguf: Path, tmp_path: Path, engine: str) -> None:
    odd = tmp_path / "a b'$(x)"
    odd.mkdir()
    model = odd / "m.gguf"
    model.symlink_to(tiny_gguf)
    plan = plan_of(model, engine=engine)
    words = shlex.split(plan.text)
    assert tuple(words[len(plan.environment) :]) == plan.command
    assert dict(word.split("=", 1) for word in words[: len(plan.environment)]) == dict(plan.environment)


def test_impossible_wishes_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not serve"):
        plan_of(tiny_gguf, engine="vllm")
    with pytest.raises(UsageError, match="budget needs thinking"):
        plan_of(tiny_gguf, budget=100)
    with pytest.raises(UsageError, match="unknown option"):
        plan_of(tiny_gguf, contxt=100)
    with pytest.raises(UsageError, match="no engine"):
        plan_of(tiny_gguf, engine="sglang")
    with pytest.raises(BadInput, match="cannot be served"):
        plan_of(tmp_path / "nothing.gguf")


def test_vllms_model_card_is_read() -> None:
    listed = recorded("vllm_models")
    name = listed["data"][0]["id"]
    assert model_card(listed, name)["max_model_len"] == 1024
    assert model_card(listed, name)["root"] == name
    assert model_card(listed, "another") == {}


def test_ollamas_loaded_model_is_read_and_another_is_refused() -> None:
    endpoint = Endpoint("http://127.0.0.1:1/v1", "gemma4", "ollama", context=16384)
    found = from_pages(endpoint, recorded("ollama_ps"), {"version": "0.40.12"})
    assert found.context == 4096  # what is served, not what was asked for
    assert found.settings["build"] == "0.40.12"
    assert found.settings["digest"].startswith("c6eb396d")
    with pytest.raises(Refused, match="another model"):
        from_pages(replace(endpoint, model="other"), recorded("ollama_ps"), {"version": "0.40.12"})


def test_a_recorded_tool_call_of_ollama_is_no_answer() -> None:
    body = recorded("ollama_chat")
    with pytest.raises(Fault, match="tool call"):
        read_answer(json.dumps(body).encode(), [body["model"]], 64)
    with pytest.raises(Fault, match="wrong model"):
        read_answer(json.dumps(body).encode(), ["gemma4"], 64)


def test_a_file_that_is_no_model_ends_with_the_servers_own_words(tiny_gguf: Path, tmp_path: Path) -> None:
    """llama-server refuses a file whose tensors are cut off; the message carries its log."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:-100_000])
    with pytest.raises(BadInput), open_server(broken):
        pytest.fail("not reached")


@pytest.mark.parametrize("number", range(4))
def test_replies_of_vllm_as_users_published_them(number: int) -> None:
    """Four shapes in two years: the reasoning's field changed its name, and the answer once stood in it."""
    row = json.loads((Path(__file__).parent / "recorded" / "vllm_chat_shapes.json").read_text())["replies"][number]
    answer = read_answer(json.dumps(row["body"]).encode(), [row["body"]["model"]], 64)
    assert {key: getattr(answer, key) for key in row["reads"]} == row["reads"], row["source"]
    assert (answer.prompt_tokens, answer.reply_tokens, answer.finish_reason) == (12, 30, "stop")


TEMPLATES = {
    "deepseek_hybrid": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ '<|Assistant|>' }}"
    "{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}",
    "deepseek_r1": "{{ content.split('</think>')[-1] }}{{ '<|Assistant|><think>\\n' }}",
    "deepseek_chat": "{{ content.split('</think>')[-1] }}{{ '<|Assistant|>' }}",
    "deepseek_unknown": "",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_models_of_one_type_are_told_apart_by_their_chat_template(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    if TEMPLATES[name]:
        entry = TEMPLATES[name] if name != "deepseek_r1" else [{"name": "default", "template": TEMPLATES[name]}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}))
    plan = plan_of(tmp_path, engine="vllm", spec=spec_of("gsm8k-100"))
    parser = {"deepseek_hybrid": "deepseek_v3", "deepseek_r1": "deepseek_r1"}.get(name)
    assert ("--reasoning-parser" in plan.command) == (parser is not None)
    assert parser is None or after(plan, "--reasoning-parser") == parser
    switch = plan.body.get("chat_template_kwargs")
    assert switch == ({"thinking": True} if name == "deepseek_hybrid" else None)
    label = {"deepseek_hybrid": "DeepSeek V3.1 and later", "deepseek_r1": "DeepSeek R1", "deepseek_chat": "DeepSeek V3"}
    assert any(note.startswith(f"{label.get(name, 'DeepSeek without a chat template')}: ") for note in plan.notes)


def test_ollama_has_no_flags(tiny_gguf: Path) -> None:
    with pytest.raises(UsageError, match="ollama takes no flag --verbose"):
        plan_of(tiny_gguf, engine="ollama", extra=("--verbose",))
