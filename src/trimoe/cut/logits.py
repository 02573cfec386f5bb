"""Logits of the original with the dropped experts masked, against the pruned model's. Needs torch.

The mask is put on the output of the router's projection, found by the family's data (role `router`), as -inf on the
dropped ids; softmax and top-k then never select them. fp32 on CPU.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint

PROMPTS = (
    "Write a Python function solve(xs) that returns the sum of the even numbers in xs.",
    "Ana has 47 apples, buys 38 and gives away 12. How many apples are left?",
    "What colour is a gorbra?\n(A) red\n(B) blue\n(C) green\n(D) black",
    "Give JSON with name lamp and size 45.",
    "Translate into Glim: glass jar",
    "Kim took the ring to the harbor. Finn took the rope to the garden. Where is the rope?",
    "Explain in two sentences why the sky is blue, and then again in French: pourquoi le ciel est-il bleu ?",
    "def fib(n):\n    a, b = 0, 1\n    while n:\n        a, b, n = b, a + b, n - 1\n    return a",
)


@dataclass
class Outcome:
    """Result of the comparison over every position and the whole vocabulary."""

    max_difference: float
    prompts: int
    tokens: int
    failures: list[str] = field(default_factory=list)


def load_model(path: Path, device: str = "cpu") -> Any:
    """The model in fp32; refuses when the loader left out, invented or reshaped any tensor."""
    from trimoe.cut.certify import require_torch

    require_torch()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True,
                                                       local_files_only=True)  # fmt: skip
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise CheckpointError(f"{path} does not load exactly: {kind}", expected="none",
                                  actual=", ".join(map(str, sorted(info[kind], key=str)[:5])),
                                  remedy="the architecture and the weights do not belong together")  # fmt: skip
    return model.eval().to(device)


def mask_experts(model: Any, checkpoint: Checkpoint, drop_map: DropMap) -> None:
    """Hook every router so that the dropped experts of its layer can never be selected."""
    for layer, ids in drop_map.drop.items():
        name = checkpoint.role_name("router", layer).removesuffix(".weight")
        module = _module(model, name)
        gone = list(ids)

        def mask(_module: Any, _inputs: Any, output: Any, gone: list[int] = gone) -> Any:
            output = output.clone()
            output[..., gone] = float("-inf")
            return output

        module.register_forward_hook(mask)


def _module(model: Any, name: str) -> Any:
    modules = dict(model.named_modules())
    for candidate in (name, name.replace("model.language_model.", "model.", 1), name.replace("model.", "model.language_model.", 1)):
        if candidate in modules:
            return modules[candidate]
    raise CheckpointError(f"the loaded model has no module {name}", expected="the router of the family's data file")


def compare_logits(checkpoint: Checkpoint, pruned: Path, drop_map: DropMap, prompts: list[str] | None) -> Outcome:
    """Run both models on the prompts, one model in memory at a time."""
    from trimoe.cut.certify import require_torch

    require_torch()
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    texts = list(prompts or PROMPTS)
    batches = [tokenizer(t, return_tensors="pt", truncation=True, max_length=512).input_ids for t in texts]
    tokens = sum(int(b.numel()) for b in batches)
    kept: list[Any] = []
    with torch.inference_mode():
        model = load_model(checkpoint.path)
        mask_experts(model, checkpoint, drop_map)
        kept = [model(input_ids=b).logits for b in batches]
        del model
        try:
            model = load_model(pruned)
        except (CheckpointError, RuntimeError, ValueError) as exc:
            return Outcome(float("inf"), len(texts), tokens, [f"the pruned model does not load: {str(exc)[:300]}"])
        worst, failures = 0.0, []
        for text, batch, expected in zip(texts, batches, kept, strict=True):
            actual = model(input_ids=batch).logits
            if not bool(torch.isfinite(actual).all() and torch.isfinite(expected).all()):
                failures.append(f"logits are not finite on prompt {text[:40]!r}")
            worst = max(worst, float((actual - expected).abs().max()))
    return Outcome(worst, len(texts), tokens, failures)
