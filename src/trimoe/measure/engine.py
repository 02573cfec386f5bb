"""Expert statistics from one forward pass: the values the model computes anyway, grouped per expert.

The model runs with its own code; only the function that applies the experts is replaced, through transformers'
registry of experts implementations, by one that computes the same sum and also adds to the statistics. Each window is
a row of a padded batch; padding is masked out, and every statistic is per window, so batch size changes nothing.
w_t is the weight the model multiplies the expert's output with (for Gemma 4 including per_expert_scale).
Invariants: reductions in float64; tokens with NaN, infinity or |h| > 1e6 are left out and counted.
Not guaranteed here: bounded memory; the whole model is loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.artifact import require_absent
from trimoe.errors import CalibrationError
from trimoe.measure.calibration import CalibrationSet, Document, set_hash
from trimoe.measure.stats import FIELDS, ExpertStats
from trimoe.model.checkpoint import check_finite, open_checkpoint
from trimoe.model.load import load_model, load_tokenizer

Progress = Callable[[int, int, str], None]
LIMIT = 1e6
_NAME = "trimoe_measured"


class Accumulator:
    """Sums per class, layer, expert. `begin` announces a batch: its classes per row and which positions are real."""

    def __init__(self, classes: int, layers: int, experts: int) -> None:
        self.sums = {name: np.zeros((classes, layers, experts)) for name in FIELDS}
        self.skipped_tokens = 0
        self.rows: np.ndarray = np.zeros(0, int)
        self.mask: Any = None
        self.layer = 0

    def begin(self, rows: list[int], mask: Any) -> None:
        """`rows[b]` is the class of window b; `mask` [B, S] is true on real tokens."""
        self.rows, self.mask, self.layer = np.array(rows), mask, 0

    def add(self, experts: int, expert_ids: Any, tokens: Any, weights: Any, norms: Any) -> None:
        """One layer's routed pairs: expert id, flat token index, weight w_t, and |o_t|; all one-dimensional."""
        import torch

        sound = torch.isfinite(norms) & torch.isfinite(weights) & (norms <= LIMIT)
        real = self.mask.reshape(-1)[tokens]
        self.skipped_tokens += int((real & ~sound).sum())
        use = real & sound
        windows = len(self.rows)
        cell = (tokens[use] // self.mask.shape[1]) * experts + expert_ids[use]
        w, o = weights[use].double().abs(), norms[use].double()
        count = torch.bincount(cell, minlength=windows * experts).double()

        def total(values: Any) -> Any:
            return torch.zeros(windows * experts, dtype=torch.float64).index_add_(0, cell, values)

        wsq, rsq, wsum = total((w * o) ** 2), total(o**2), total(w)
        parts = {
            "tc": count, "cc": (count > 0).double(), "wnorm": wsq.sqrt(), "rnorm": rsq.sqrt(), "wnsq": wsq, "rnsq": rsq,
            "wsum": wsum / count.clamp(min=1), "wsum_total": wsum, "reap_sum": total(w * o), "ean_sum": total(o),
        }  # fmt: skip
        for name, values in parts.items():
            np.add.at(self.sums[name][:, self.layer], self.rows, values.reshape(windows, experts).numpy())
        self.layer += 1


def _measured_experts(accumulator: Accumulator) -> Callable[..., Any]:
    """An experts implementation for modules with `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I]."""
    import torch
    from torch.nn import functional

    def forward(self: Any, hidden: Any, index: Any, weights: Any) -> Any:
        out = torch.zeros_like(hidden)
        top_k, experts = index.shape[-1], self.gate_up_proj.shape[0]
        order = index.reshape(-1).argsort(stable=True)
        tokens, sorted_ids = order // top_k, index.reshape(-1)[order]
        sorted_weights = weights.reshape(-1)[order]
        norms = torch.empty(len(order))
        begin = 0
        for expert, count in enumerate(torch.bincount(sorted_ids, minlength=experts).tolist()):
            if count:
                part = slice(begin, begin + count)
                gate, up = functional.linear(hidden[tokens[part]], self.gate_up_proj[expert]).chunk(2, dim=-1)
                result = functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
                norms[part] = torch.linalg.vector_norm(result.float(), dim=-1)
                out.index_add_(0, tokens[part], (result * sorted_weights[part, None]).to(out.dtype))
                begin += count
        accumulator.add(experts, sorted_ids, tokens, sorted_weights.float(), norms)
        return out

    return forward


def tokenise(documents: list[Document], tokenizer: Any, window: int) -> list[tuple[str, list[int]]]:
    """(class, token ids) of every window, in document order; chats through the tokenizer's own template."""
    windows = []
    for document in documents:
        if document.text is not None:
            ids = tokenizer(document.text).input_ids
        else:
            if not tokenizer.chat_template:
                raise CalibrationError("the tokenizer has no chat template", expected="chat_template.jinja",
                                       remedy="use a chat model, or plain `text` sources")  # fmt: skip
            turns = [{"role": "user", "content": document.prompt}, {"role": "assistant", "content": document.completion}]
            ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False).input_ids
        windows += [(document.class_name, ids[i : i + window]) for i in range(0, len(ids), window)]
    return windows


def calibrate(model_dir: Path | str, set_path: Path, out: Path, *, batch: int = 32, device: str = "cpu",
              progress: Progress | None = None) -> ExpertStats:  # fmt: skip
    """Measure every expert on the set and publish the statistics as `out`."""
    import torch
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    require_absent(out)
    checkpoint = open_checkpoint(model_dir)
    chosen, documents = CalibrationSet.load(set_path)
    check_finite(checkpoint)
    tokenizer = load_tokenizer(checkpoint.path)
    classes = tuple(chosen.classes)
    windows = tokenise(documents, tokenizer, chosen.window)
    order = sorted(range(len(windows)), key=lambda i: (len(windows[i][1]), i))
    model = load_model(checkpoint.path, device)
    accumulator = Accumulator(len(classes), checkpoint.num_layers, checkpoint.num_experts)
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _measured_experts(accumulator))
    model.set_experts_implementation(_NAME)
    done = 0
    with torch.inference_mode():
        for at in range(0, len(order), batch):
            rows = [windows[i] for i in order[at : at + batch]]
            width = max(len(ids) for _, ids in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros(len(rows), width, dtype=torch.bool)
            for b, (_, tokens) in enumerate(rows):
                ids[b, : len(tokens)], mask[b, : len(tokens)] = torch.tensor(tokens), True
            accumulator.begin([classes.index(name) for name, _ in rows], mask)
            model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            done += len(rows)
            if progress is not None:
                progress(done, len(windows), "windows")
    per_class = {c: sum(len(ids) for name, ids in windows if name == c) for c in classes}
    metadata = {"model": checkpoint.fingerprint, "set": set_hash(documents, chosen.window), "set_name": chosen.name,
                "tokens": per_class, "windows": len(windows), "skipped_tokens": accumulator.skipped_tokens}  # fmt: skip
    stats = ExpertStats(classes, accumulator.sums, metadata)
    stats.save(out)
    return stats
