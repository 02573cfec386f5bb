"""Every refusal of preflight against a server that says the wrong thing, and none against one that is right."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trimoe.bench.catalog import find
from trimoe.bench.spec import BenchSpec
from trimoe.errors import MissingPrerequisite, Refused
from trimoe.evaluate.preflight import check
from trimoe.model.gguf.file import open_gguf
from trimoe.model.tiny import path as bundled
from trimoe.serve import open_server
from trimoe.serve.endpoint import Endpoint


class Pages(ThreadingHTTPServer):
    """Says what `pages` holds; a page that is absent is 404. The chat page is what a POST gets."""

    pages: dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    server: Pages

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = self.server.pages.get(self.path)
        data = json.dumps(body).encode()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Silent."""


def message(**fields: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "usage": {"prompt_tokens": 5, "completion_tokens": 9},
        "choices": [{"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}],
    }


@pytest.fixture
def server() -> Iterator[Pages]:
    """A llama-server that is right for gsm8k-100: pages as build b0-0c1e57098 has them, numbers changed."""
    pages = Pages(("127.0.0.1", 0), _Handler)
    pages.pages = {
        "/v1/models": {"object": "list", "data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": 32768}}]},
        "/props": {"default_generation_settings": {"n_ctx": 32768}, "total_slots": 2, "model_path": "/models/m.gguf"},
        "/slots": [{"id": 0, "n_ctx": 32768}, {"id": 1, "n_ctx": 32768}],
        "/v1/chat/completions": message(content="8"),
    }
    thread = threading.Thread(target=pages.serve_forever, daemon=True)
    thread.start()
    yield pages
    pages.shutdown()
    pages.server_close()
    thread.join()


def endpoint_of(server: Pages, **changes: Any) -> Endpoint:
    settings = {"thinking": "on", "think_budget": 12288}
    return replace(Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", "llamacpp", settings=settings), **changes)


def spec_of(name: str) -> BenchSpec:
    spec = find([name])[0].protocol
    assert spec is not None
    return spec


GSM = "gsm8k-100"


def status(report: Any) -> dict[str, str]:
    return {found.name: found.status for found in report.findings}


def test_a_right_server_passes_and_an_unknown_hash_is_shown(server: Pages) -> None:
    report = check(endpoint_of(server), spec_of(GSM))
    assert status(report)["context"] == status(report)["thinking budget"] == status(report)["canary"] == "ok"
    assert report.warnings == ["unverified model: the server names m; the file's hash is unknown"]
    assert (report.endpoint.context, report.endpoint.slots) == (32768, 2)


@pytest.mark.parametrize("small", [4096, 16383])
def test_a_slot_that_is_too_small_is_refused_with_the_number(server: Pages, small: int) -> None:
    server.pages["/slots"][1]["n_ctx"] = small
    with pytest.raises(Refused, match=r"--context 16384") as caught:
        check(endpoint_of(server), spec_of(GSM))
    assert f"{small} tokens per slot" in caught.value.actual


def test_a_slot_of_exactly_the_need_passes(server: Pages) -> None:
    for slot in server.pages["/slots"]:
        slot["n_ctx"] = 16384
    assert status(check(endpoint_of(server), spec_of(GSM)))["context"] == "ok"


def test_a_context_that_cannot_be_read_is_a_visible_warning(server: Pages) -> None:
    del server.pages["/slots"], server.pages["/props"]
    report = check(endpoint_of(server), spec_of(GSM))
    assert any(line.startswith("unverified context: 16384 tokens") for line in report.warnings)
    assert report.endpoint.context is None


def test_without_slots_the_props_are_read(server: Pages) -> None:
    del server.pages["/slots"]
    server.pages["/props"]["default_generation_settings"]["n_ctx"] = 4096
    with pytest.raises(Refused, match="/props"):
        check(endpoint_of(server), spec_of(GSM))


def test_vllms_context_is_read_from_its_models(server: Pages) -> None:
    server.pages["/v1/models"]["data"][0] |= {"owned_by": "vllm", "max_model_len": 8192}
    with pytest.raises(Refused, match="8192 tokens per slot"):
        check(endpoint_of(server, engine="vllm"), spec_of(GSM))


def test_ollamas_context_is_read_from_its_loaded_models(server: Pages) -> None:
    server.pages["/api/ps"] = {"models": [{"name": "m", "context_length": 4096}]}
    with pytest.raises(Refused, match="/api/ps"):
        check(endpoint_of(server, engine="ollama"), spec_of(GSM))


@pytest.mark.parametrize("served", [None, -1, 8192])
def test_another_budget_is_refused(server: Pages, served: int | None) -> None:
    settings = {"thinking": "on", "think_budget": served}
    with pytest.raises(Refused, match="thinking budget"):
        check(endpoint_of(server, settings=settings), spec_of(GSM))


def test_a_budget_nobody_tells_is_unverified(server: Pages) -> None:
    report = check(endpoint_of(server, settings={}), spec_of(GSM))
    assert status(report)["thinking budget"] == status(report)["thinking"] == "unverified"


def test_thinking_where_the_bench_has_none_is_refused(server: Pages) -> None:
    with pytest.raises(Refused, match="thinking on the server does not match"):
        check(endpoint_of(server), spec_of("arc-challenge"))
    server.pages["/v1/chat/completions"] = message(content="8", reasoning_content="Let me think.")
    with pytest.raises(Refused, match="thinks although"):
        check(endpoint_of(server, settings={"thinking": "off"}), spec_of("arc-challenge"))


def test_another_model_is_refused(server: Pages) -> None:
    with pytest.raises(Refused, match="does not have this model"):
        check(endpoint_of(server, model="other"), spec_of(GSM))
    with pytest.raises(Refused, match="another file"):
        check(endpoint_of(server), spec_of(GSM), model=Path("/models/n.gguf"))


def test_files_changed_under_a_server_are_noticed(server: Pages) -> None:
    known = endpoint_of(server, model_hash="0" * 64, operational={"path": str(bundled())})
    with pytest.raises(Refused, match="have changed since the server was started"):
        check(known, spec_of(GSM))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_an_answer_in_another_field_is_readable_and_none_at_all_is_refused(server: Pages, field: str) -> None:
    server.pages["/v1/chat/completions"] = message(content=None, **{field: "8"})
    check(endpoint_of(server), spec_of(GSM))
    server.pages["/v1/chat/completions"] = message(content="", thoughts="8")
    with pytest.raises(Refused, match="its text is missing"):
        check(endpoint_of(server), spec_of(GSM))


def test_leaking_markers_and_wrong_shapes_are_refused(server: Pages) -> None:
    server.pages["/v1/chat/completions"] = message(content="<|channel>thought\n8<channel|>8")
    with pytest.raises(Refused, match="contains markers"):
        check(endpoint_of(server), spec_of(GSM))
    server.pages["/v1/chat/completions"] = {"error": "loading"}
    with pytest.raises(Refused, match="test question"):
        check(endpoint_of(server), spec_of(GSM))
    del server.pages["/v1/chat/completions"]
    with pytest.raises(MissingPrerequisite, match="does not reply"):
        check(endpoint_of(server), spec_of(GSM))


def test_gated_data_needs_a_token_or_a_copy(server: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    spec = spec_of("gpqa-diamond")
    with pytest.raises(Refused, match=r"set HF_TOKEN, or give --data"):
        check(endpoint_of(server), spec)
    copy = tmp_path / "data" / spec.dataset[0].local
    copy.parent.mkdir(parents=True)
    copy.write_text("")
    assert status(check(endpoint_of(server), spec, data=tmp_path / "data"))["gated data"] == "ok"
    monkeypatch.setenv("HF_TOKEN", "x")
    assert status(check(endpoint_of(server), spec))["gated data"] == "ok"


def test_a_gguf_is_no_tokenizer(server: Pages, tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="GGUF file was given as the tokenizer"):
        check(endpoint_of(server), spec_of(GSM), tokenizer=tiny_gguf)
    with pytest.raises(Refused, match="has no tokenizer"):
        check(endpoint_of(server), spec_of(GSM), tokenizer=tmp_path)
    assert status(check(endpoint_of(server), spec_of(GSM), tokenizer=bundled()))["tokenizer"] == "ok"


def test_a_full_disk_is_refused(server: Pages, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not enough disk space"):
        check(endpoint_of(server), spec_of(GSM), log_path=tmp_path / "log.db", rows=10**12)


def test_a_running_llama_server_is_read(tiny_gguf: Path) -> None:
    """The same through the real program: small slots are refused; the budget is read from its command line."""
    with open_server(tiny_gguf, parallel=2, context=1024, thinking=True, budget=100) as endpoint:
        assert (endpoint.context, endpoint.slots) == (1024, 2)
        report = check(endpoint, None, max_new_tokens=64)
        assert status(report)["model"] == status(report)["context"] == "ok"
        with pytest.raises(Refused, match="1024 tokens per slot, 2 slots"):
            check(endpoint, spec_of(GSM))
        lying = replace(endpoint, settings={"thinking": "on", "think_budget": 12288})
        generation = msgspec.structs.replace(spec_of(GSM).generation, max_new_tokens=512, think_budget=256)
        wide = msgspec.structs.replace(spec_of(GSM), generation=generation)
        with pytest.raises(Refused) as caught:
            check(lying, wide)
        assert "slot" in str(caught.value)  # 256 + 4096 do not fit


def test_a_file_whose_markers_are_ordinary_text_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    """As the converter writes it from a tokenizer_config.json without extra_special_tokens (type 1 instead of 3)."""
    from gguf import GGUFReader

    broken = tmp_path / "broken.gguf"
    shutil.copy(tiny_gguf, broken)
    field = GGUFReader(broken, "r+").get_field("tokenizer.ggml.token_type")
    assert field is not None
    tokens = open_gguf(tiny_gguf).get("tokenizer.ggml.tokens")
    field.parts[field.data[list(tokens).index("<|turn>")]][0] = 1
    with open_server(tiny_gguf) as endpoint:
        assert status(check(endpoint, None, max_new_tokens=64))["template markers"] == "ok"
    with open_server(broken) as endpoint, pytest.raises(Refused, match=r"<\|turn> is \d tokens"):
        check(endpoint, None, max_new_tokens=64)


def vllm(server: Pages, content: str, **message_fields: Any) -> Endpoint:
    """A vLLM server whose tokenizer has every tag as one token, and which answers with this content."""
    server.pages["/v1/models"]["data"][0] |= {"owned_by": "vllm", "max_model_len": 32768}
    server.pages["/tokenize"] = {"tokens": [7]}
    server.pages["/v1/chat/completions"] = message(content=content, **message_fields)
    return endpoint_of(server, engine="vllm")


def special(server: Pages, endpoint: Endpoint) -> tuple[str, str]:
    (finding,) = [one for one in check(endpoint, spec_of(GSM)).findings if one.name == "special tokens"]
    return finding.status, finding.detail


def test_a_vllm_server_that_drops_the_tags_of_a_thought_is_unverified(server: Pages) -> None:
    status_, detail = special(server, vllm(server, "8"))
    assert (status_, "cannot be told from the answer" in detail) == ("unverified", True)
    assert any("special tokens" in line for line in check(vllm(server, "8"), spec_of(GSM)).warnings)


def test_a_vllm_server_that_separates_or_keeps_a_thought_passes(server: Pages) -> None:
    assert special(server, vllm(server, "8", reasoning="so"))[0] == "ok"
    parsed = vllm(server, "8")
    parsed = replace(parsed, settings={**parsed.settings, "reasoning_parser": "gemma4"})
    assert special(server, parsed)[0] == "ok"
    server.pages["/tokenize"] = {"tokens": [7, 8]}
    assert special(server, endpoint_of(server, engine="vllm")) == (
        "ok",
        "no known tag of a thought is one token of this model",
    )
    del server.pages["/tokenize"]
    assert special(server, endpoint_of(server, engine="vllm"))[0] == "unverified"


@pytest.mark.parametrize(("declared", "expected"), [(True, "unverified"), (False, "ok")])
def test_transformers_drops_what_the_tokenizer_declares_as_special(
    server: Pages, tmp_path: Path, declared: bool, expected: str
) -> None:
    added = [{"content": "<|channel>", "special": declared}, {"content": "<bos>", "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tmp_path / "chat_template.jinja").write_text("<|turn>model\n<|channel>thought\n")
    endpoint = endpoint_of(server, engine="transformers", operational={"path": str(tmp_path)}, context=32768)
    endpoint = replace(endpoint, settings={"thinking": "on", "think_budget": 12288})
    assert special(server, endpoint)[0] == expected
    (tmp_path / "chat_template.jinja").write_text("<|turn>model\n")
    assert special(server, endpoint)[0] == "ok", "a model that does not think"
    (tmp_path / "tokenizer.json").unlink()
    assert special(server, endpoint)[0] == "unverified"
