"""The prompts of the logit check: a small bundled list, or the user's file.

They need variety, so that many experts are routed to; the proof does not depend on how well a model answers.
"""

import json
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput

Message = dict[str, str]
Conversation = list[Message]


def _turns(*texts: str) -> Conversation:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


# Several domains and languages, short and long, questions and finished dialogues (so that positions inside the model's
# own turns are compared as well as those of a prompt).
DEFAULT: tuple[Conversation, ...] = (
    _turns("Write a Python function `def median(values)` that returns the median of a list of numbers."),
    _turns(
        "def add(a, b):",
        "```python\ndef add(a, b):\n    return a + b\n```",
        "Now make it accept any number of arguments.",
    ),
    _turns("Fix this SQL: SELECT name, COUNT(*) FROM orders WHERE total > 10 HAVING COUNT(*) > 3"),
    _turns('What does `[[ -f "$1" ]] && source "$1"` do in bash?'),
    _turns("A train leaves at 14:25 and arrives at 17:10. How many minutes does the journey take?"),
    _turns("Compute 37 * 48 - 19.", "37 * 48 = 1776 and 1776 - 19 = 1757. The answer is 1757.", "And divided by 7?"),
    _turns("Solve for x: 3x^2 - 12x + 9 = 0. Show each step."),
    _turns("Which of these is a noble gas? A) nitrogen B) argon C) chlorine D) hydrogen. Answer with one letter."),
    _turns("If all bloops are razzies and some razzies are lazzies, are some bloops surely lazzies? Why?"),
    _turns("Explain in two sentences why the sky is blue and sunsets are red."),
    _turns(
        "List three uses of copper as a JSON array of strings, and nothing else.", '["wiring", "plumbing", "coins"]'
    ),
    _turns("Rewrite in upper case, words reversed: the quick brown fox jumps over the lazy dog"),
    _turns(
        "Begin a short story about a lighthouse keeper who finds a letter in a bottle.",
        "The tide had left it between two stones, green glass gone dull with salt. Mara wiped it on her sleeve.",
    ),
    _turns("Übersetze ins Englische: Der Zug kommt heute zehn Minuten später an, weil es schneit."),
    _turns("Resume en una frase: la fotosíntesis convierte la luz del sol en energía química."),
    _turns("请用一句话解释什么是递归。"),
    _turns("What is the capital of Australia?", "Canberra.", "Who chose it, and when?"),
    _turns("Sort these dates, oldest first: 3 March 1999; 2001-12-24; 17/08/1987; May 5, 1999."),
    _turns("Write a polite e-mail of at most 40 words that moves tomorrow's meeting from 9 to 11 o'clock."),
    _turns("A patient has a fever, a stiff neck and is sensitive to light. Which condition must be ruled out first?"),
)


def load_prompts(path: Path | None) -> list[Conversation]:
    """The bundled prompts, or those of a file.

    `.json` is a list, `.jsonl` one entry per line; an entry is a text, a list of {"role", "content"} messages, or an
    object with `prompt` or `messages`. Any other file is text with one prompt per line. Raises `BadInput`.
    """
    if path is None:
        return [list(c) for c in DEFAULT]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(
            f"prompts {path} cannot be read", expected="a UTF-8 text, .json or .jsonl file", actual=str(exc)
        ) from exc
    try:
        if path.suffix == ".json":
            entries = json.loads(text)
        else:
            lines = [line for line in text.split("\n") if line.strip()]
            entries = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"prompts {path} are not valid JSON", actual=str(exc)[:200]) from exc
    if not isinstance(entries, list) or not entries:
        raise BadInput(
            f"prompts {path} contain no prompt", expected="at least one", remedy="add a prompt, or leave --prompts out"
        )
    return [_conversation(entry, f"entry {number} of {path}") for number, entry in enumerate(entries, 1)]


def _conversation(entry: Any, where: str) -> Conversation:
    if isinstance(entry, dict):
        entry = entry.get("messages", entry.get("prompt"))
    if isinstance(entry, str) and entry.strip():
        return _turns(entry)
    if isinstance(entry, list) and entry and all(_is_message(m) for m in entry):
        return [{"role": m["role"], "content": m["content"]} for m in entry]
    raise BadInput(
        f"{where} is not a prompt",
        expected='a text, or messages [{"role": ..., "content": ...}]',
        actual=repr(entry)[:100],
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
