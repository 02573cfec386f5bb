"""A server that starts is not believed: its loading report, and its replies against those of the checkpoint."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.evaluate.evaluate import evaluate
from trimoe.model.tiny import path as bundled
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4
from trimoe.quantize.quantize import quantize
from trimoe.quantize.replies import PROMPTS, TOKENS, agreement, recorded_replies
from trimoe.serve import open_server, start
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engines import transformers as engine
from trimoe.serve.loaded import compare_replies, require_loaded
from trimoe.serve.target import find_target

# As transformers 5.23.0 writes it for Gemma 4 in the layout compressed-tensors, colours included.
REPORT = """[transformers] Loading /models/g@main
[transformers] \x1b[1mGemma4ForCausalLM LOAD REPORT\x1b[0m from: /models/g
Key                                                              | Status     |
-----------------------------------------------------------------+------------+-
model.layers.{0, 1, 2, 3}.experts.{0...31}.up_proj.weight_packed | \x1b[33mUNEXPECTED\x1b[0m |
model.layers.{0, 1, 2, 3}.experts.down_proj                      | \x1b[31mMISSING\x1b[0m    |

Notes:
- MISSING:\tthose params were newly initialized because missing from the checkpoint.
INFO:     Started server process [18125]
"""


def report(*rows: str) -> str:
    return "[transformers] M LOAD REPORT from: x\nKey | Status |\n" + "".join(f"{row} |\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (REPORT, "model.layers.{0, 1, 2, 3}.experts.down_proj missing"),
        (report("lm_head.weight | MISSING"), "lm_head.weight missing"),
        (report("model.layers.2.mlp.gate.weight | MISMATCH"), "model.layers.2.mlp.gate.weight mismatch"),
        (report("model.layers.3.mlp.extra | UNEXPECTED"), "model.layers.3.mlp.extra unexpected"),
        (report("model.layers.{2, 3}.mlp.extra | UNEXPECTED"), "mlp.extra unexpected"),
        (
            "Some weights of M were not initialized from the model checkpoint at x and are newly initialized: ['a']",
            "['a']",
        ),
    ],
)
def test_weights_that_were_not_loaded_are_named(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(BadInput, match="has not loaded the checkpoint") as caught:
        require_loaded(tmp_path / "log", 4)
    assert caught.value.actual.startswith(named) or named in caught.value.actual
    assert str(tmp_path / "log") in caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "INFO: Started server process\nINFO: 127.0.0.1 - GET /health | 200\n",
        report("model.vision_tower.encoder.layers.0.q.weight | UNEXPECTED", "mtp.fc.weight | UNEXPECTED"),
        report(
            "model.layers.{4, 5}.mlp.experts.gate_up_proj | UNEXPECTED", "model.layers.4.eh_proj.weight | UNEXPECTED"
        ),
    ],
)
def test_towers_and_draft_blocks_may_be_unused(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    require_loaded(tmp_path / "log", 4)


# ---------------------------------------------------------------- replies


class Replies(ThreadingHTTPServer):
    """Answers each question with what `texts` maps it to."""

    texts: dict[str, str]
    asked: list[dict[str, Any]]


class _Handler(BaseHTTPRequestHandler):
    server: Replies

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        message = {"content": self.server.texts[body["messages"][-1]["content"]]}
        data = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Replies]:
    made = Replies(("127.0.0.1", 0), _Handler)
    made.texts, made.asked = {}, []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nvfp4") / "model"
    quantize_nvfp4(bundled(), out, layout="compressed-tensors", replies=None)
    return out


def test_the_manifest_holds_what_the_checkpoint_answers(quantized: Path) -> None:
    record = json.loads((quantized / "trimoe.json").read_text())["facts"]["replies"]
    assert (len(record["texts"]), record["tokens"]) == (len(PROMPTS), TOKENS)
    assert record["texts"][0].startswith("```python\ndef")
    assert recorded_replies(quantized) == record, "the same again"


def compared(server: Replies, folder: Path) -> str:
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", "vllm", body={"skip_special_tokens": False})
    return compare_replies(endpoint, find_target(folder))


def test_a_server_with_other_replies_is_refused(quantized: Path, server: Replies) -> None:
    known = json.loads((quantized / "trimoe.json").read_text())["facts"]["replies"]["texts"]
    server.texts = dict(zip(PROMPTS, known, strict=True))
    assert compared(server, quantized).startswith(f"{len(known)} of {len(known)} replies are the recorded ones, 100 %")
    body = server.asked[0]
    assert (body["temperature"], body["max_tokens"], body["skip_special_tokens"]) == (0, TOKENS, False)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    server.texts = dict.fromkeys(PROMPTS, "\n\n\n\n")
    with pytest.raises(Refused, match="vllm does not compute what the checkpoint holds") as caught:
        compared(server, quantized)
    assert "0 of 20 replies" in caught.value.actual
    # half of the replies, as after other rounding, is enough
    server.texts = {p: text if i % 2 else "x" for i, (p, text) in enumerate(zip(PROMPTS, known, strict=True))}
    assert "of their text" in compared(server, quantized)


def test_what_was_not_compared_is_said(quantized: Path, server: Replies, tmp_path: Path) -> None:
    assert compared(server, bundled()) == "replies not compared: the checkpoint has no recorded replies"
    quantize_nvfp4(bundled(), tmp_path / "without")
    assert compared(server, tmp_path / "without") == "replies not compared: not wanted"
    other = Path(shutil.copytree(quantized, tmp_path / "other"))
    manifest = json.loads((other / "trimoe.json").read_text())
    manifest["facts"]["replies"]["prompts"] = "0" * 64
    (other / "trimoe.json").write_text(json.dumps(manifest))
    assert "prompts of another version" in compared(server, other)
    assert server.asked == []


def test_agreement_is_the_share_of_the_known_text() -> None:
    assert agreement(["abcd", " same "], ["abxx", "same"]) == 0.75
    assert agreement(["", "a"], ["x", "b"]) == 0.0
    assert agreement([""], ["x"]) == 1.0


def test_replies_are_of_nvfp4_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--replies is for NVFP4A16"):
        quantize(bundled(), tiers="Q8_0", out=tmp_path / "out", replies=True)


@pytest.mark.parametrize("preflight", [True, False])
def test_eval_compares_unless_the_preflight_is_off(
    preflight: bool, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `evaluate` asks of the server that it starts."""
    asked: list[Any] = []

    def opened(*_: Any, **options: Any) -> Any:
        asked.append(options["compare"])
        raise Refused("stop here")

    monkeypatch.setattr("trimoe.evaluate.evaluate.open_server", opened)
    with pytest.raises(Refused, match="stop here"):
        evaluate(quantized, bench="tiny-math", engine="vllm", log=tmp_path / "runs.db", preflight=preflight)
    assert asked == [preflight]


@pytest.mark.skipif(engine.missing(start.Options()) is not None, reason="needs transformers serve")
def test_a_real_server_with_random_experts_is_refused_twice(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its loading report, and, if that said nothing, by its replies. (The engine's own refusal is switched off.)"""

    def allow(*_: object) -> None:
        """Refuse nothing."""

    monkeypatch.setattr(engine, "require_runnable", allow)
    options = {"engine": "transformers", "dtype": "bfloat16", "log": tmp_path / "log"}
    with pytest.raises(BadInput, match="has not loaded the checkpoint") as caught, open_server(quantized, **options):
        pass
    assert "experts.down_proj missing" in caught.value.actual
    monkeypatch.setattr(start, "require_loaded", allow)
    with pytest.raises(Refused, match="does not compute what the checkpoint holds"), open_server(quantized, **options):
        pass
    with open_server(quantized, compare=False, **options) as endpoint:
        assert endpoint.operational["compared"] == "replies not compared: switched off"
