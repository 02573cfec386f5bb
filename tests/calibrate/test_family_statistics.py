"""Every family: statistics against the naive oracle, and the layerwise forward against the whole model's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.families import EXPERTS, MADE, TEXT, Made
from helpers.measure_oracle import oracle
from trimoe.calibrate.engine import Options, measure
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.stats.fields import COACTIVATION, COUNT, MAXIMA, MEAN_VECTOR, NEURON_CONTRIBUTION, NEURONS, SUMS
from trimoe.calibrate.text.calibration import Document, Windows, windows_of
from trimoe.model.checkpoint import open_checkpoint

COUNTS = ("tc", "cc", "runner_up", "tokens", "routed", "coactivation")
WIDE = {"coactivation": True, "neurons": True}
MEASURED = [made for made in MADE if not made.quantized]
Checkpoints = Callable[[Made], Path]


@pytest.fixture(scope="module")
def windows() -> Windows:
    """Windows of 3 to 24 tokens in two classes; one document counts three times, one is measured in part."""
    rng = np.random.default_rng(0)

    def document(category: str, length: int, weight: float = 1.0, part: bool = False) -> Document:
        tokens = tuple(rng.integers(3, TEXT, length).tolist())
        return Document(category, tokens, weight, tuple(i % 3 > 0 for i in range(length)) if part else None)

    texts = [document("a", 60), document("a", 3), document("b", 31, weight=3.0), document("b", 17, part=True)]
    return windows_of(texts, 24, 3)


@pytest.mark.parametrize("made", MEASURED, ids=lambda made: made.name)
def test_statistics_equal_the_naive_oracle(made: Made, family_checkpoint: Checkpoints, windows: Windows) -> None:
    path = family_checkpoint(made)
    stats = measure(open_checkpoint(path), windows, Options(shards=3, batch_tokens=60, **WIDE), "t")
    expected = oracle(path, windows, EXPERTS)
    assert set(expected) == {*SUMS, *MAXIMA, MEAN_VECTOR, COUNT, COACTIVATION, NEURONS, NEURON_CONTRIBUTION}
    for name, wanted in expected.items():
        have = stats.wide[name] if name in stats.wide else stats.field(name)
        if name in COUNTS:
            assert (have == wanted).all(), name
        else:
            # Logits of both signs cancel in their sum, and products in a neuron: errors are relative to what cancels.
            size = np.sqrt(expected["logit_sqsum"] * expected["tokens"]) if name == "logit_sum" else np.abs(wanted)
            size = wanted.max(-1, keepdims=True) if name in (NEURONS, NEURON_CONTRIBUTION) else size
            assert (np.abs(have - wanted) <= 1e-5 * size).all(), f"{name}: {np.abs(have - wanted).max()}"
    assert stats.metadata["moe_layers"] == list(made.moe_layers)
    routed = expected["tc"].sum(-1)
    for layer in range(routed.shape[1]):
        tokens = expected["tokens"][:, layer, 0] * (made.top_k if layer in made.moe_layers else 0)
        assert (routed[:, layer] == tokens).all()


@pytest.mark.parametrize("made", MEASURED, ids=lambda made: made.name)
def test_layer_by_layer_equals_the_whole_model(made: Made, family_checkpoint: Checkpoints) -> None:
    from transformers import AutoModelForCausalLM

    path = family_checkpoint(made)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation="eager").eval()
    tokens = torch.randint(3, TEXT, (2, 20), generator=torch.Generator().manual_seed(0))
    text = model.model if hasattr(model.model, "layers") else model.model.language_model
    expected: list[torch.Tensor] = []
    for layer in text.layers:
        layer.register_forward_hook(lambda m, a, o: expected.append(o[0] if isinstance(o, tuple) else o))
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
        layerwise = LayerModel(open_checkpoint(path), "cpu", "float32")
        layerwise.load_embedding(np.unique(tokens))
        hidden = layerwise.embed(tokens.numpy())
        for number, wanted in enumerate(expected):
            layerwise.load(number)
            hidden = layerwise.run(number, hidden)
            layerwise.free(number)
            torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("made", MEASURED, ids=lambda made: made.name)
def test_weights_have_the_types_of_the_whole_model(made: Made, family_checkpoint: Checkpoints) -> None:
    """Some families keep corrections or routers in float32 when the rest is in bfloat16; the choice depends on it."""
    from transformers import AutoModelForCausalLM

    path, layer = family_checkpoint(made), made.moe_layers[-1]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    layerwise = LayerModel(open_checkpoint(path), "cpu", "bfloat16")
    layerwise.load(layer)
    prefix = f"{layerwise.layers_name}.{layer}."
    have, want = (
        {n: t.dtype for n, t in m.state_dict().items() if n.startswith(prefix)} for m in (layerwise.model, model)
    )
    assert have == want
    assert len(have) > 5
