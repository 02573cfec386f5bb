"""tiny-format: an instruction whose form can be checked; any reply that obeys it passes, not only the reference."""

import json
from typing import Any

from trimoe.evaluate.bench import Bench, Verdict
from trimoe.evaluate.benches import heldout


def _words(parts: list[str], check: dict[str, Any]) -> bool:
    first = check["letter"]
    good = all(p.isalpha() and p.lower().startswith(first) and len(p) > 1 for p in parts)
    return len(parts) == check["n"] and len(set(parts)) == len(parts) and good


def obeys(reply: str, check: dict[str, Any]) -> bool:
    """Whether a stripped reply has the form that was asked for."""
    match check["kind"]:
        case "letter":
            return _words(reply.split(", "), check) and reply == reply.lower()
        case "upper":
            return _words(reply.split("/"), check) and reply == reply.upper()
        case "json":
            try:
                return bool(json.loads(reply) == check["value"])
            except ValueError:
                return False
        case "lines":
            return reply.split("\n") == [check["word"]] * check["n"]
        case "count":
            return reply == "-".join(str(v) for v in range(check["start"], check["start"] + check["n"] + 1))
        case "wrap":
            return reply.split() == [f"{check['left']}{w}{check['right']}" for w in check["words"]]
        case "numbered":
            return reply.split("\n") == [f"{i}. {w}" for i, w in enumerate(check["words"], 1)]
        case "pairs":
            return reply == f"{check['words'][0]} -> {check['words'][1]} END"
        case other:
            raise ValueError(f"unknown form {other}")


def score(reply: str, check: dict[str, Any]) -> Verdict:
    """The form decides."""
    correct = obeys(reply.strip(), check)
    return Verdict(correct, "correct" if correct else "wrong", reply.strip())


BENCH = Bench("tiny-format", 1, 48, lambda: heldout("format", 100), score)
