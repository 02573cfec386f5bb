"""What a server is started with, before any engine's own words for it: thinking, budget, context, slots, cache type.

Invariants: derived from the bench's spec and the family's section [[serving]], both data; an option given by the user
wins over both. Pure: nothing is started or read from a server here.
"""

from dataclasses import dataclass, replace
from typing import Any

from trimoe.bench.spec import BenchSpec
from trimoe.errors import UsageError
from trimoe.model.family.serving import Serving

ANSWER_ROOM = 4096  # tokens an answer needs beside its thinking budget (protocol section 2)
PROMPT_ROOM = 2048  # tokens left for a prompt where no bench says more


@dataclass(frozen=True)
class Wanted:
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
    """max(max_gen, think + 4096), protocol section 2."""
    return max(max_new_tokens, think + ANSWER_ROOM if think else 0)


def wanted_for(
    spec: BenchSpec | None,
    *,
    context: int | None = None,
    parallel: int | None = None,
    kv: str | None = None,
    thinking: bool | None = None,
    budget: int | None = None,
    max_new_tokens: int = 2048,
) -> Wanted:
    """From the bench's spec, or modest defaults without one; what is given wins. Raises `UsageError`.

    A bench's context is the whole server's (as llama-server's -c is), divided among its slots.
    """
    if spec is None:
        chosen = Wanted(False, None, max_new_tokens + PROMPT_ROOM, 1, None, False, max_new_tokens)
    else:
        own, generation = spec.serving.llamacpp, spec.generation
        think = generation.thinking == "on"
        slots = own.parallel
        needed = required_context(generation.max_new_tokens, generation.think_budget if think else 0)
        chosen = Wanted(
            think,
            generation.think_budget if think and own.reasoning == "budget" else None,
            max(own.context // slots, needed),
            slots,
            own.kv,
            bool(spec.serving.vllm and spec.serving.vllm.reasoning_parser),
            generation.max_new_tokens,
        )
    if thinking is not None:
        chosen = replace(
            chosen, thinking=thinking, reasoning_parser=thinking, budget=chosen.budget if thinking else None
        )
    if budget is not None:
        chosen = replace(chosen, budget=budget)
    if context is not None:
        chosen = replace(chosen, context=context)
    if parallel is not None:
        chosen = replace(chosen, parallel=parallel)
    if kv is not None:
        chosen = replace(chosen, kv=kv)
    if chosen.budget is not None and not chosen.thinking:
        raise UsageError(
            "a thinking budget without thinking", actual=f"budget {chosen.budget}", remedy="add --thinking"
        )
    return chosen


def template_arguments(serving: Serving | None, wanted: Wanted) -> dict[str, Any]:
    """Arguments of the chat template that switch thinking; empty where the family has no switch or is unknown."""
    return {serving.thinking: wanted.thinking} if serving and serving.thinking else {}
