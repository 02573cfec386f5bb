"""A chat-completions server that follows a script with faults; the only fake of the evaluation tests.

It speaks HTTP by hand, so that it can also break off in the middle of a reply. A question is known by the text of its
last turn; each has a right reply and a list of behaviours, one per request, the last of which stays. `asked` counts the
requests of each question, whatever their outcome.
"""

import asyncio
import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

MODEL = "scripted"
CONTEXT = 4096
PROMPT_TOKENS = 20

Shape = Callable[[dict[str, Any], str], None]


def _message(body: dict[str, Any]) -> dict[str, Any]:
    return body["choices"][0]["message"]


def _says(field: str, content: str | None) -> Shape:
    """The reply is in another field."""

    def shape(body: dict[str, Any], reply: str) -> None:
        _message(body).update({"content": content, field: reply})

    return shape


def _content(text: Callable[[str], Any]) -> Shape:
    return lambda body, reply: _message(body).update({"content": text(reply)})


def _cut(tokens: int, prompt: int = PROMPT_TOKENS, finish: str = "length") -> Shape:
    def shape(body: dict[str, Any], reply: str) -> None:
        _message(body)["content"] = "It is hard to say, let me"
        body["choices"][0]["finish_reason"] = finish
        body["usage"] = {"prompt_tokens": prompt, "completion_tokens": tokens}

    return shape


def _set(**values: Any) -> Shape:
    return lambda body, reply: body.update(values)


def _finish(reason: Any) -> Shape:
    return lambda body, reply: body["choices"][0].update({"finish_reason": reason})


# replies with status 200
SHAPES: dict[str, Shape] = {
    "right": lambda body, reply: None,
    "null, reasoning_content": _says("reasoning_content", None),
    "empty, reasoning_content": _says("reasoning_content", ""),
    "null, reasoning": _says("reasoning", None),
    "blank, reasoning": _says("reasoning", " \n"),
    "both": lambda body, reply: _message(body).update({"reasoning_content": "nonsense"}),
    "half-open": lambda body, reply: _message(body).update({"content": None, "reasoning": f"<|channel>{reply}"}),
    "half-open in content": _content(lambda reply: f"<think>{reply}"),
    "nothing": _content(lambda reply: ""),
    "null": _content(lambda reply: None),
    "wrong": _content(lambda reply: "I do not know."),
    "only thoughts": lambda body, reply: _message(body).update({"content": "", "reasoning_content": "Hm. Let me see."}),
    "parts": _content(lambda reply: [{"type": "text", "text": reply}]),
    "wrong model": _set(model="another"),
    "duplicate id": _set(id="chatcmpl-again"),
    "no choices": _set(choices=[]),
    "error with 200": lambda body, reply: (body.clear(), body.update({"error": {"message": "boom"}}))[0],
    "number": _content(lambda reply: 7),
    "odd finish": _finish("because"),
    "null finish": _finish(None),
    "filtered": _finish("content_filter"),
    "cap ignored": _cut(5000),
    "slot cut": _cut(10, prompt=CONTEXT - 10),
}
STATUS = {
    "429": (429, {"error": {"message": "slow down"}}),
    "500": (500, {"error": {"message": "internal"}}),
    "502": (502, "<html>bad gateway</html>"),
    "401": (401, {"error": {"message": "no key"}}),
    "slot overflow": (
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size (4096 tokens)",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 5000,
                "n_ctx": 4096,
            }
        },
    ),
}
BREAKS = (
    "reset",
    "reset at once",
    "hang",
    "invalid JSON",
    "half JSON",
    "restarted",
    "slow",
    "at cap",
    "stopped at cap",
)


class FaultServer:
    """Use as a context manager; it runs in its own thread. `delay` is the seconds before each reply."""

    def __init__(self, replies: Mapping[str, str], script: Mapping[str, Sequence[str]] = {}, *, delay: float = 0.0):
        known = {*SHAPES, *STATUS, *BREAKS}
        assert not (unknown := {b for steps in script.values() for b in steps} - known), unknown
        self.replies, self.script, self.delay = dict(replies), {k: list(v) for k, v in script.items()}, delay
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.settings = {"build_info": "b1", "n_ctx": CONTEXT}
        self.listed, self.answers, self.owner = [MODEL], "", "llamacpp"
        self.busiest = self._busy = 0
        self.retry_after = "0"
        self.content_tokens = 5
        self._connections: set[asyncio.StreamWriter] = set()

    # ---------------------------------------------------------------- life

    def __enter__(self) -> "FaultServer":
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    def settle(self) -> None:
        """Wait until every request of clients that are gone was counted and its connection closed.

        The server accepts connections in order, so the request made here is behind all of theirs.
        """
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/props", timeout=60) as answer:
            answer.read()
        limit = time.monotonic() + 60
        while self._connections:
            assert time.monotonic() < limit, "a connection stays open"
            time.sleep(0.005)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await self._end.wait()
        server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    # ---------------------------------------------------------------- HTTP

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                await self._answer(lines[0].split()[1], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            about = {"owned_by": self.owner, "created": id(body), "meta": {"n": 1}}
            about |= {"max_model_len": self.settings["n_ctx"]} if self.owner == "vllm" else {}
            _send(writer, 200, {"data": [{"id": name, **about} for name in self.listed]})
        elif path == "/props":
            _send(
                writer,
                200,
                {
                    "build_info": self.settings["build_info"],
                    "total_slots": 4,
                    "model_path": "/m/s.gguf",
                    "default_generation_settings": {"n_ctx": self.settings["n_ctx"], "params": {}},
                },
            )
        elif path == "/tokenize":
            _send(writer, 200, {"tokens": [0] * self.content_tokens})
        elif path == "/v1/chat/completions":
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            try:
                await self._complete(json.loads(body), writer)
            finally:
                self._busy -= 1
        else:
            _send(writer, 404, {"error": "no such page"})
        await writer.drain()

    async def _complete(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        question = request["messages"][-1]["content"]
        steps = self.script.get(question) or ["right"]
        step = steps[min(self.asked[question], len(steps) - 1)]
        self.asked[question] += 1
        number = self.asked[question]
        self.bodies.append(request)
        await asyncio.sleep(self.delay * (10 if step == "slow" else 1))
        reply = self.replies.get(question, "8")  # the test question of the preflight
        right: dict[str, Any] = {
            "id": f"chatcmpl-{abs(hash(question))}-{number}",
            "object": "chat.completion",
            "model": self.answers or request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}],
            "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": max(1, len(reply) // 4)},
        }
        cap = request["max_tokens"]
        if step in SHAPES:
            SHAPES[step](right, reply)
        elif step in ("at cap", "stopped at cap"):
            _cut(cap, finish="length" if step == "at cap" else "stop")(right, reply)
        elif step in STATUS:
            status, page = STATUS[step]
            return _send(writer, status, page, {"Retry-After": self.retry_after} if status == 429 else {})
        elif step == "hang":
            await self._end.wait()
        elif step == "restarted":
            self.settings = {"build_info": "b1", "n_ctx": CONTEXT // 2}
            for other in list(self._connections - {writer}):
                other.transport.abort()
            writer.transport.abort()
            return None
        elif step == "reset at once":
            writer.transport.abort()
            return None
        elif step in ("reset", "half JSON", "invalid JSON"):
            page = json.dumps(right).encode()
            half = page[: len(page) // 2]
            if step == "reset":
                writer.write(_head(200, len(page)) + half)
                await writer.drain()
                writer.transport.abort()
            else:
                _send(writer, 200, half if step == "half JSON" else b"Internal \xff error")
            return None
        return _send(writer, 200, right)


def _head(status: int, length: int, extra: Mapping[str, str] = {}) -> bytes:
    fields = {"Content-Type": "application/json", "Content-Length": str(length), **extra}
    return (f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n").encode()


def _send(writer: asyncio.StreamWriter, status: int, page: Any, extra: Mapping[str, str] = {}) -> None:
    raw = page if isinstance(page, bytes) else page.encode() if isinstance(page, str) else json.dumps(page).encode()
    writer.write(_head(status, len(raw), extra) + raw)
