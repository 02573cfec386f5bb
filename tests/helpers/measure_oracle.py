"""Protocol section 4 written down naively: one window per forward, one token and one expert at a time, float64.

Only the tokens that enter a layer's router and experts come from transformers' forward pass of the whole model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from helpers.family_maths import Maths, OnDisk, Routed
from trimoe.calibrate.text.calibration import Windows
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import read_array

NAMES = (
    "tc",
    "cc",
    "wnorm",
    "rnorm",
    "wnsq",
    "rnsq",
    "wsum",
    "wsum_total",
    "reap_sum",
    "reap_l2_sum",
    "ean_sum",
    "runner_up",
    "logit_sum",
    "logit_sqsum",
    "contrib_max",
    "out_max",
    "tokens",
    "routed",
)
Inputs = dict[int, tuple[Any, Any]]
"""Layer -> float64 [tokens, H] that enter the router, and the experts."""


def record_inputs(model_dir: Path, windows: Windows, maths: Maths) -> list[Inputs]:
    """For each window, from transformers' own eager forward."""
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, experts_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    model.eval()
    layers = model.model.layers if hasattr(model.model, "layers") else model.model.language_model.layers
    seen: dict[str, Any] = {}

    def remember(key: str) -> Any:
        return lambda module, args, output: seen.__setitem__(key, args[0].double().reshape(-1, args[0].shape[-1]))

    present = []
    for number, layer in enumerate(layers):
        if all(any(name == path for name, _ in layer.named_modules()) for path in (maths.router, maths.experts)):
            layer.get_submodule(maths.router).register_forward_hook(remember(f"router {number}"))
            layer.get_submodule(maths.experts).register_forward_hook(remember(f"experts {number}"))
            present.append(number)
    result = []
    with torch.no_grad():
        for window in windows.windows:
            model(input_ids=torch.from_numpy(window.tokens)[None], use_cache=False)
            # where the router scales the experts' input, the experts see what the router sees, and copies of it
            enters = "router" if maths.scales_input else "experts"
            result.append({n: (seen[f"router {n}"], seen[f"{enters} {n}"]) for n in present})
    return result


def oracle(model_dir: Path, windows: Windows, experts: int) -> dict[str, np.ndarray]:
    """Fields [class, layer, expert] of protocol section 4 and the further sums."""
    disk = OnDisk(model_dir)
    config = disk.config
    maths = disk.maths_of(config)
    shape = (len(windows.classes), config["num_hidden_layers"], experts)
    fields = {name: np.zeros(shape) for name in NAMES} | {"coactivation": np.zeros((*shape, experts))}
    neurons: dict[tuple[int, int, int], Any] = {}
    contributions: dict[tuple[int, int, int], Any] = {}
    vectors: dict[tuple[int, int, int], Any] = {}
    weights = {number: disk.layer(number) for number in range(shape[1])}
    for window, inputs in zip(windows.windows, record_inputs(model_dir, windows, maths), strict=True):
        c, a = window.category, window.weight
        for number, (enters_router, enters_experts) in inputs.items():
            w, routed = weights[number], dict[int, list[tuple[float, Any, Any]]]()
            for t in np.flatnonzero(window.counted):
                found = maths.route(w, config, enters_router[t])
                _add_token(fields, (c, number), a, found)
                for e, weight in zip(found.experts, found.weights, strict=True):
                    x = enters_experts[t] * weight if maths.scales_input else enters_experts[t]
                    applied = 1.0 if maths.scales_input else weight
                    routed.setdefault(e, []).append((applied, *maths.expert(w, config, e, x)))
                    for other in found.experts:
                        fields["coactivation"][c, number, e, other] += a
            for e, pairs in routed.items():
                _add_expert(fields, (c, number, e), a, pairs)
                at = (c, number, e)
                vectors[at] = vectors.get(at, 0) + a * sum(o for _, _, o in pairs)
                neurons[at] = neurons.get(at, 0) + a * sum(h * h for _, h, _ in pairs)
                contributions[at] = contributions.get(at, 0) + a * sum((w * h) ** 2 for w, h, _ in pairs)
    fields["out_mean_norm"] = np.zeros(shape)
    fields["neuron_act"] = np.zeros((*shape, len(next(iter(neurons.values())))))
    fields["neuron_contrib"] = np.zeros_like(fields["neuron_act"])
    columns = {number: _column_squares(model_dir, number) for number in {number for _, number, _ in vectors}}
    for at, total in vectors.items():
        fields["out_mean_norm"][at] = (total / fields["tc"][at]).norm().item()
        fields["neuron_act"][at] = neurons[at].numpy()
        fields["neuron_contrib"][at] = contributions[at].numpy() * columns[at[1]][at[2]]
    return fields


def _column_squares(model_dir: Path, layer: int) -> dict[int, np.ndarray]:
    """Expert -> float64 [I] squared norms of the columns of its down projection, from the file."""
    checkpoint = open_checkpoint(model_dir)
    found = {}
    for name, tensor in checkpoint.expert_tensors.items():
        if tensor.role == "down" and checkpoint.layer_of(name) == layer:
            values = read_array(tensor.info).astype(np.float64)
            width = checkpoint.hf.roles["down"].width_axis
            for expert, matrix in enumerate(values) if tensor.expert is None else [(tensor.expert, values)]:
                axis = width - 1 if tensor.expert is None else width
                found[expert] = (matrix**2).sum(1 - axis)
    return found


def _add_token(fields: dict[str, np.ndarray], at: tuple[int, int], a: float, found: Routed) -> None:
    rest = [e for e in range(len(found.logits)) if e not in found.experts]
    fields["runner_up"][(*at, max(rest, key=lambda e: found.preference[e].item()))] += a
    fields["logit_sum"][at] += a * found.logits.numpy()
    fields["logit_sqsum"][at] += a * found.logits.numpy() ** 2
    fields["tokens"][at] += a


def _add_expert(
    fields: dict[str, np.ndarray], at: tuple[int, int, int], a: float, pairs: list[tuple[float, Any, Any]]
) -> None:
    """One window's tokens of one expert: (w_t, h_t, o_t) each."""
    w = [weight for weight, _, _ in pairs]
    norm = [o.norm().item() for _, _, o in pairs]
    part = [x * y for x, y in zip(w, norm, strict=True)]
    fields["tc"][at] += a * len(pairs)
    fields["cc"][at] += 1
    fields["routed"][at] += len(pairs)
    fields["wnorm"][at] += a * sum(x * x for x in part) ** 0.5
    fields["rnorm"][at] += a * sum(x * x for x in norm) ** 0.5
    fields["wnsq"][at] += a * sum(x * x for x in part)
    fields["rnsq"][at] += a * sum(x * x for x in norm)
    fields["wsum"][at] += a * sum(w) / len(w)
    fields["wsum_total"][at] += a * sum(w)
    fields["reap_sum"][at] += a * sum(part)
    fields["reap_l2_sum"][at] += a * sum(x * y for x, y in zip(part, norm, strict=True))
    fields["ean_sum"][at] += a * sum(norm)
    fields["contrib_max"][at] = max(fields["contrib_max"][at], *part)
    fields["out_max"][at] = max(fields["out_max"][at], *norm)
