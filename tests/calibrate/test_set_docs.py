"""The documentation of set files is checked by the schema, and the example script by a real model."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.calibrate.text.sources import KINDS
from trimoe.model import tiny

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/howto/calibration-set.md", "docs/reference/calibration-set.md")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_set_shown_is_valid(page: str, tmp_path: Path) -> None:
    found = blocks(page)
    assert found
    for body in found:
        (tmp_path / "set.yaml").write_text(body)
        CalibrationSet.load(tmp_path / "set.yaml")


def test_the_how_to_shows_every_kind_but_the_bundled_models() -> None:
    shown = {
        source["kind"]
        for body in blocks(PAGES[0])
        for sources in yaml.safe_load(body)["classes"].values()
        for source in sources
    }
    kinds = {str(model.__struct_config__.tag) for model in KINDS}
    assert shown == kinds - {"tiny"}


def test_the_reference_names_every_key() -> None:
    text = (ROOT / PAGES[1]).read_text()
    for model in (CalibrationSet, *KINDS):
        for name in model.__struct_fields__:
            assert f"| `{name}` |" in text, name


def test_every_key_of_the_statistics_metadata_is_explained(random_model: Path, tmp_path: Path) -> None:
    from trimoe.calibrate.text.tokenise import tokenise
    from trimoe.model.checkpoint import open_checkpoint

    (tmp_path / "q.jsonl").write_text('{"prompt": "What?"}\n')
    (tmp_path / "set.yaml").write_text(
        "name: t\nclasses:\n  a: [{kind: prompts, path: q.jsonl, new_tokens: 2, bench: b}]\n"
    )
    windows = tokenise(
        open_checkpoint(random_model),
        CalibrationSet.load(tmp_path / "set.yaml"),
        4,
        replies=tmp_path / "r.jsonl",
        benches=[],
    )
    text = (ROOT / PAGES[1]).read_text()
    assert {"replies", "bench_items"} <= windows.origin.keys()
    for key in windows.origin:
        assert f"`{key}`" in text, key


@pytest.fixture
def server() -> Iterator[str]:
    """The bundled model behind an OpenAI-compatible endpoint of a few lines."""
    from trimoe.model.generate import Generator

    model = Generator(tiny.path())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["temperature"] == 0
            reply = model.reply([model.encode(asked["messages"][-1]["content"])], asked["max_tokens"])[0]
            message = {"role": "assistant", "content": reply.text}
            body = json.dumps({"choices": [{"message": message, "finish_reason": reply.finish_reason}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_the_example_makes_replies_that_a_set_accepts(server: str, tmp_path: Path) -> None:
    from trimoe.model.tiny.tasks import generate

    prompts = [item.prompt for item in generate("math", "train", 3, 4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    out = tmp_path / "r.jsonl"
    command = [
        sys.executable,
        ROOT / "examples" / "replies.py",
        tmp_path / "p.jsonl",
        server,
        "-o",
        out,
        "--new-tokens",
        "24",
    ]
    for lines in ("1 of 3\n2 of 3\n3 of 3\n", ""):  # the second time nothing is asked again
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == lines
    (tmp_path / "set.yaml").write_text(
        "name: t\nclasses:\n  a: [{kind: prompts, path: p.jsonl, replies: r.jsonl, new_tokens: 24}]\n"
    )
    found = CalibrationSet.load(tmp_path / "set.yaml").texts()["a"]
    assert [t.body[0]["content"] for t in found if not isinstance(t.body, str)] == prompts
    assert all(t.reply and t.reply.text for t in found)
