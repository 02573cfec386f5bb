"""Collects a model's replies to prompts from an OpenAI-compatible server, for `kind: prompts` with `replies`.

    python examples/replies.py prompts.jsonl http://127.0.0.1:8080 -o replies.jsonl

Reads JSON lines with `prompt`, or the shipped prompts (`generic`). Prompts already answered in the output are skipped.
Start llama-server with `--reasoning-format none` so that the reasoning stays in the reply.
"""

import argparse
import json
import urllib.request
from pathlib import Path

from trimoe.calibrate.text.records import read_jsonl
from trimoe.calibrate.text.sources.prompts import builtin_prompts


def main() -> int:
    """Request every missing reply in order; each is written before the next request."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompts", help="JSON lines with `prompt`, or `generic` for the shipped ones")
    parser.add_argument("url", help="the server, without /v1")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--model", default="default", help="name of the model, if the server has several models")
    options = parser.parse_args()
    if options.prompts == "generic":
        prompts = [prompt for several in builtin_prompts().values() for prompt in several]
    else:
        prompts = [record.row["prompt"] for record in read_jsonl(Path(options.prompts))]
    known = {record.row["prompt"] for record in read_jsonl(options.out)} if options.out.exists() else set()
    with options.out.open("a", encoding="utf-8") as out:
        for number, prompt in enumerate(prompts, 1):
            if prompt in known:
                continue
            reply, finish_reason = ask(options.url, options.model, prompt, options.new_tokens)
            row = {"prompt": prompt, "reply": reply, "finish_reason": finish_reason, "model": options.model}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            known.add(prompt)
            print(f"{number} of {len(prompts)}")
    return 0


def ask(url: str, model: str, prompt: str, new_tokens: int) -> tuple[str, str]:
    """(raw reply, finish reason), greedy, with thinking; reasoning that the server separated is put in front."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": new_tokens,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=1800) as answer:
        choice = json.load(answer)["choices"][0]
    message = choice["message"]
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    reply = "\n".join(part for part in (thought, message.get("content") or "") if part)
    if not reply:
        raise SystemExit(f"the server returned an empty reply to: {prompt[:80]}")
    return reply, str(choice["finish_reason"])


if __name__ == "__main__":
    raise SystemExit(main())
