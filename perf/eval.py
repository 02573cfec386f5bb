"""Throughput of asking a server: trimoe's client and run log against lm-eval's `local-chat-completions` with its cache.

    python perf/eval.py [--requests 2000] [--concurrency 32] [--rounds 3] [--lm-eval PYTHON] [--json]

PYTHON is an interpreter with lm-eval 0.4.13 and its `api` extra (default: this interpreter, if it has it):

    python -m venv lm-eval && lm-eval/bin/pip install 'lm-eval[api]==0.4.13'     # then --lm-eval lm-eval/bin/python

The server runs in its own process, answers at once, and gives every reply its own id. Each contestant is a process of
its own and asks the same questions. They take turns, and each round starts with empty stores. The time runs from the
first request until the last reply is stored (for trimoe: also judged, with its verdict stored).

trimoe's log commits with synchronous=FULL before it counts a reply; lm-eval's cache commits in the background, so its
figure does not include durable storage. The figure without a cache, which stores nothing, is shown for scale. The
script fails if a store holds fewer replies than were requested.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "zero"
PROMPT = "Question {}: what is seven times six? End with the number, and say first how you came to it."
REPLY = "Seven times six is six times seven: 7 + 7 + 7 + 7 + 7 + 7, which makes 42."


# ---------------------------------------------------------------- the server


class Zero(asyncio.Protocol):
    """HTTP/1.1 with persistent connections and one fixed reply with a numbered id."""

    count = 0
    body = json.dumps(
        {
            "id": "chatcmpl-%09d",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 30, "total_tokens": 60},
        }
    )
    models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            if head.startswith(b"get"):
                body = self.models
            else:
                Zero.count += 1
                body = (self.body % Zero.count).encode()
            self.transport.write(  # type: ignore[attr-defined]
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )


async def serve() -> None:
    """Print the port, then answer until killed."""
    server = await asyncio.get_running_loop().create_server(Zero, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---------------------------------------------------------------- the contestants


def ours(url: str, requests: int, concurrency: int, folder: Path) -> dict[str, Any]:
    """Ask, store and judge with trimoe; then verify the log."""
    from trimoe.bench.bench import Bench, Doc, exact, whole_reply
    from trimoe.evaluate.intake import Job
    from trimoe.evaluate.log.run_log import RunLog
    from trimoe.evaluate.loop import answer_missing
    from trimoe.evaluate.request_limits import RequestLimits
    from trimoe.evaluate.server import Server
    from trimoe.serve.probe import connect

    docs = [Doc(str(i), PROMPT.format(i), REPLY, {"answer": REPLY}) for i in range(requests)]
    score = exact(lambda answer, check: bool(answer == check["answer"]))
    bench = Bench("zero", 1, requests, 256, lambda _rows, _data: docs, whole_reply, score)
    server = Server(connect(url), RequestLimits(concurrency))
    with RunLog(folder / "runs.db") as log:
        run = log.start("zero", bench.name, bench.spec(docs), "zero", server.sampler(bench), {})
        begin = time.perf_counter()
        answer_missing(log, Job(bench, docs, run), {d.doc_id for d in docs}, server)
        seconds = time.perf_counter() - begin
        samples = log.samples(run)
        assert log.verify() == []
        assert all(s.verdict.correct for s in samples)
    return {"seconds": seconds, "stored": len(samples)}


def theirs(url: str, requests: int, concurrency: int, folder: Path, cached: bool) -> dict[str, Any]:
    """Ask with lm-eval's client class and cache, as its evaluator calls them."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM
    from lm_eval.models.openai_completions import LocalChatCompletion

    lm: Any = LocalChatCompletion(
        base_url=f"{url}/chat/completions", model=MODEL, num_concurrent=concurrency, max_retries=3
    )
    asked = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(
                lm.apply_chat_template([{"role": "user", "content": PROMPT.format(i)}]),
                {"until": [], "max_gen_toks": 256, "do_sample": False, "temperature": 0},
            ),
            idx=0,
        )
        for i in range(requests)
    ]
    store = folder / "cache.db"
    lm = CachingLM(lm, str(store)) if cached else lm
    begin = time.perf_counter()
    replies = lm.generate_until(asked)
    if cached:
        lm.dbdict.commit()
    seconds = time.perf_counter() - begin
    assert all(reply == REPLY for reply in replies)
    return {"seconds": seconds, "stored": len(lm.dbdict) if cached else len(replies)}


# ---------------------------------------------------------------- the comparison


def contest(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Replies per second of each contestant, one value per round."""
    rates: dict[str, list[float]] = {"trimoe": [], "lm-eval, cache on": [], "lm-eval, nothing kept": []}
    sides = {"trimoe": "ours", "lm-eval, cache on": "cached", "lm-eval, nothing kept": "bare"}
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        for number in range(arguments.rounds):
            names = list(sides) if number % 2 == 0 else list(reversed(sides))
            for name in names:
                python = sys.executable if name == "trimoe" else str(arguments.lm_eval)
                with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                    command = [
                        python,
                        __file__,
                        "--side",
                        sides[name],
                        url,
                        folder,
                        "--requests",
                        str(arguments.requests),
                        "--concurrency",
                        str(arguments.concurrency),
                    ]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
                    result = json.loads(done.stdout.strip().split("\n")[-1])
                if result["stored"] < arguments.requests:
                    raise SystemExit(f"{name} stored {result['stored']} of {arguments.requests} replies")
                rates[name].append(arguments.requests / result["seconds"])
    finally:
        server.terminate()
        server.wait()
    return rates


def main() -> None:
    """Parse options, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lm-eval", type=Path, default=Path(sys.executable), metavar="PYTHON")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="folder for the stores, on a real disk")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    if arguments.side:
        side, url, folder = arguments.side
        counts = (arguments.requests, arguments.concurrency, Path(folder))
        result = ours(url, *counts) if side == "ours" else theirs(url, *counts, side == "cached")
        print(json.dumps(result))
        return
    rates = contest(arguments)
    ratios = [a / b for a, b in zip(rates["trimoe"], rates["lm-eval, cache on"], strict=True)]
    result = {
        "requests": arguments.requests,
        "concurrency": arguments.concurrency,
        "per_second": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "ratio": [round(ratio, 2) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 2),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, found in rates.items():
        print(f"{name:<24} {statistics.median(found):7,.0f} replies/s  ({', '.join(f'{rate:,.0f}' for rate in found)})")
    print(f"trimoe / lm-eval with cache: {result['median_ratio']:.2f} (per round {result['ratio']})")


if __name__ == "__main__":
    main()
