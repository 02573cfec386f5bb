"""Protocol section 4 written down naively: one window per forward, one expert at a time, float64."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from trimoe.measure.calibration import Windows


def record_inputs(model_dir: Path, windows: Windows) -> list[list[dict[str, Any]]]:
    """[window][layer] -> what went into the experts, from transformers' own eager forward of one window."""
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, experts_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    model.eval()
    layers = model.model.layers if hasattr(model.model, "layers") else model.model.language_model.layers
    seen: list[dict[str, Any]] = []
    for layer in layers:
        layer.experts.register_forward_hook(lambda m, a, o: seen.append({"module": m, "args": a}))
        layer.router.proj.register_forward_hook(lambda m, a, o: seen.append({"logits": o}))
    result = []
    with torch.no_grad():
        for window in windows.windows:
            seen.clear()
            model(input_ids=torch.from_numpy(window.tokens)[None], use_cache=False)
            result.append([{**seen[2 * i], **seen[2 * i + 1]} for i in range(len(layers))])
    return result


def oracle(model_dir: Path, windows: Windows, experts: int) -> dict[str, np.ndarray]:
    """Fields [class, layer, expert] of protocol section 4 and the further sums."""
    recorded = record_inputs(model_dir, windows)
    layers = len(recorded[0])
    names = ("tc", "cc", "wnorm", "rnorm", "wnsq", "rnsq", "wsum", "wsum_total", "reap_sum", "reap_l2_sum", "ean_sum",
             "runner_up", "logit_sum", "logit_sqsum", "contrib_max", "out_max", "tokens", "routed")  # fmt: skip
    fields = {name: np.zeros((len(windows.classes), layers, experts)) for name in names}
    fields["coactivation"] = np.zeros((*fields["tc"].shape, experts))
    fields["neuron_act"] = np.zeros((*fields["tc"].shape, recorded[0][0]["module"].down_proj.shape[2]))
    vectors: dict[tuple[int, int, int], Any] = {}
    for window, by_layer in zip(windows.windows, recorded, strict=True):
        c, a = window.category, window.weight
        counted = torch.from_numpy(window.counted)
        for layer, seen in enumerate(by_layer):
            module, (hidden, index, weight) = seen["module"], seen["args"]
            logits = seen["logits"].double()
            at = (c, layer)
            for t in range(len(logits)):
                if not counted[t]:
                    continue
                rest = [e for e in range(experts) if e not in set(index[t].tolist())]
                fields["runner_up"][(*at, max(rest, key=lambda e: logits[t, e].item()))] += a
                fields["logit_sum"][at] += a * logits[t].numpy()
                fields["logit_sqsum"][at] += a * logits[t].numpy() ** 2
                fields["tokens"][at] += a
                for one in index[t].tolist():
                    for other in index[t].tolist():
                        fields["coactivation"][(*at, one, other)] += a
            for e in range(experts):
                where, slot = torch.nonzero((index == e) & counted[:, None], as_tuple=True)
                if not len(where):
                    continue
                gate, up = (hidden[where].double() @ module.gate_up_proj[e].double().T).chunk(2, -1)
                h = module.act_fn(gate) * up
                o = h @ module.down_proj[e].double().T
                w = weight[where, slot].double()
                norm = o.norm(dim=1)
                at_e = (c, layer, e)
                fields["tc"][at_e] += a * len(where)
                fields["cc"][at_e] += 1
                fields["routed"][at_e] += len(where)
                fields["neuron_act"][at_e] += a * (h**2).sum(0).detach().numpy()
                fields["wnorm"][at_e] += a * (o * w[:, None]).norm().item()
                fields["rnorm"][at_e] += a * o.norm().item()
                fields["wnsq"][at_e] += a * (o * w[:, None]).norm().item() ** 2
                fields["rnsq"][at_e] += a * o.norm().item() ** 2
                fields["wsum"][at_e] += a * w.mean().item()
                fields["wsum_total"][at_e] += a * w.sum().item()
                fields["reap_sum"][at_e] += a * (w * norm).sum().item()
                fields["reap_l2_sum"][at_e] += a * (w * norm**2).sum().item()
                fields["ean_sum"][at_e] += a * norm.sum().item()
                fields["contrib_max"][at_e] = max(fields["contrib_max"][at_e], (w * norm).max().item())
                fields["out_max"][at_e] = max(fields["out_max"][at_e], norm.max().item())
                vectors[at_e] = vectors.get(at_e, 0) + a * o.sum(0)
    fields["out_mean_norm"] = np.zeros_like(fields["tc"])
    for at_e, total in vectors.items():
        fields["out_mean_norm"][at_e] = (total / fields["tc"][at_e]).norm().item()
    return fields
