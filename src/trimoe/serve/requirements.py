"""What a bench requires of a server, in terms that no engine prescribes: thinking, budget, context, slots, cache type.

Invariants: derived from the bench's spec; an option given by the user overrides it. Pure: nothing is started or read
from a server here.
"""

from dataclasses import dataclass, replace
from typing import Any

from trimoe.bench.spec import BenchSpec
from trimoe.errors import UsageError
from trimoe.model.family.serving import Serving

ANSWER_ROOM = 4096  # tokens an answer needs beside its thinking budget (protocol section 2)
PROMPT_ROOM = 2048  # tokens left for a prompt where no bench says more


@dataclass(frozen=True)
class Requirements:
    """`context` is in tokens per slot. `budget` None: no limit on thinking; `kv` None: the engine decides."""

    thinking: bool
    budget: int | None
    context: int
    parallel: int
    kv: str | None
    reasoning_parser: bool
    max_new_tokens: int

    @property
    def required_context(self) -> int:
        """Least tokens per slot: the longest reply, or the budget and room for an answer."""
        return required_context(self.max_new_tokens, self.budget or 0)


def required_context(max_new_tokens: int, think: int) -> int:
    """max(max_new_tokens, think + 4096), protocol section 2."""
    return max(max_new_tokens, think + ANSWER_ROOM if think else 0)


def requirements_for(
    spec: BenchSpec | None,
    *,
    context: int | None = None,
    parallel: int | None = None,
    kv: str | None = None,
    thinking: bool | None = None,
    budget: int | None = None,
    max_new_tokens: int = 2048,
) -> Requirements:
    """The requirements of a bench, or modest defaults without one; given options override them. Raises `UsageError`.

    A bench states the context of the whole server (as llama-server's -c does); it is divided among the slots.
    """
    found = _defaults(max_new_tokens) if spec is None else _of_bench(spec)
    if thinking is not None:
        found = replace(found, thinking=thinking, reasoning_parser=thinking, budget=found.budget if thinking else None)
    given = {"budget": budget, "context": context, "parallel": parallel, "kv": kv}
    found = replace(found, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if found.budget is not None and not found.thinking:
        raise UsageError("a thinking budget needs thinking", actual=f"budget {found.budget}", remedy="add --thinking")
    return found


def _defaults(max_new_tokens: int) -> Requirements:
    return Requirements(False, None, max_new_tokens + PROMPT_ROOM, 1, None, False, max_new_tokens)


def _of_bench(spec: BenchSpec) -> Requirements:
    serving, generation = spec.serving.llamacpp, spec.generation
    think = generation.thinking == "on"
    needed = required_context(generation.max_new_tokens, generation.think_budget if think else 0)
    return Requirements(
        think,
        generation.think_budget if think and serving.reasoning == "budget" else None,
        max(serving.context // serving.parallel, needed),
        serving.parallel,
        serving.kv,
        bool(spec.serving.vllm and spec.serving.vllm.reasoning_parser),
        generation.max_new_tokens,
    )


def template_arguments(serving: Serving | None, needs: Requirements) -> dict[str, Any]:
    """Arguments of the chat template that switch thinking; empty where the family is unknown or has no switch."""
    return {serving.thinking: needs.thinking} if serving and serving.thinking else {}
