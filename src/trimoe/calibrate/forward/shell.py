"""A transformers model without weights, and which tensors of the checkpoint belong where in it.

Weights are read by byte range, through transformers' own renaming and stacking rules for checkpoints.
Invariants: every tensor of a loaded layer came from the checkpoint (missing, unexpected and mismatched ones raise
`CheckpointError`); weights that are not finite raise it with the tensor's name.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from trimoe.calibrate.forward.experts import IMPLEMENTATION, register
from trimoe.calibrate.forward.routing import Router
from trimoe.calibrate.forward.weights import (
    LazyTensor,
    require_finite,
    require_readable,
    return_freed_memory,
    values_of,
)
from trimoe.errors import CheckpointError
from trimoe.model.auto import auto_class
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.dequantize.parts import FloatTensor, NotFloats
from trimoe.model.dequantize.plan import float_tensors

_FINAL_NORMS = ("norm", "final_layernorm", "norm_f", "embedding_norm")


class ModelShell:
    """The model of a checkpoint; weights are loaded onto `device` in `dtype` and dropped part by part."""

    implementation = IMPLEMENTATION
    """Name of the experts function in transformers' registry."""
    attention: Mapping[str, str] = MappingProxyType({})
    """Options of the model's attention; none: transformers' default."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        import torch
        from transformers import initialization
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        register()
        self.checkpoint, self.device, self.dtype = checkpoint, torch.device(device), getattr(torch, dtype)
        self.tensors = floats_of(checkpoint)
        config = _configuration(checkpoint)
        _refuse_unsupported(config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # tensors are decoded here
        with torch.device("meta"), initialization.meta_device_safe_creation_ops():
            self.model: Any = auto_class(config).from_config(config, dtype=self.dtype, **self.attention)
        self.model.eval().requires_grad_(False)
        self.model.set_experts_implementation(self.implementation)
        self.mapping: Any = get_model_conversion_mapping(self.model)
        self._renamings = [m for m in self.mapping if isinstance(m, WeightRenaming)]
        self._converters = [m for m in self.mapping if isinstance(m, WeightConverter)]
        self._meta_state = self.model.state_dict()
        self.layers_name, self.layers, self.text = self._find_layers()
        self.hidden_size = int(config.get_text_config().hidden_size)
        self.edits: dict[str, Callable[[bytes], bytes]] = {}
        """Changes to tensors by name that are made while they are loaded."""
        self._vocabulary = np.zeros(0, np.int64)
        self._converted: set[str] = set()
        self._targets = self._map_names()
        for name, tensor in self.tensors.items():
            if self._targets[name] in self._meta_state and tensor.stored is not None:
                require_readable(tensor.stored)
        self._materialize_buffers()

    def _find_layers(self) -> tuple[str, Any, Any]:
        """(name, module list, text model): the list of decoder layers that holds the experts."""
        from torch.nn import ModuleList

        for name, module in self.model.named_modules():
            long_enough = isinstance(module, ModuleList) and len(module) == self.checkpoint.num_layers
            if long_enough and any(experts_in(layer) is not None for layer in module.children()):
                return name, module, self.model.get_submodule(name.rpartition(".")[0])
        raise CheckpointError(
            "transformers builds no expert layers from this config.json",
            expected="a mixture of experts",
            actual=type(self.model).__name__,
            remedy="use the config.json that came with the weights",
        )

    @property
    def final_norm_name(self) -> str:
        """Attribute of the norm after the last layer. Raises `CheckpointError` if the model has none of the known."""
        name = next((n for n in _FINAL_NORMS if hasattr(self.text, n)), None)
        if name is None:
            raise CheckpointError(
                f"{type(self.text).__name__} has no norm after its last layer that trimoe knows",
                expected=", ".join(_FINAL_NORMS),
                remedy="this model type cannot be run layer by layer",
            )
        return name

    @property
    def final_norm(self) -> Any:
        """The norm after the last layer."""
        return getattr(self.text, self.final_norm_name)

    def _map_names(self) -> dict[str, str]:
        """Checkpoint tensor name -> parameter name. Refuses a tensor of a decoder layer that the model does not have.

        Other tensors may have no parameter: parts of a multimodal model, or a drafting block, are not loaded.
        """
        from transformers.core_model_loading import rename_source_key

        targets, unknown = {}, []
        for name in self.tensors:
            target, converter = rename_source_key(
                name, self._renamings, self._converters, self.model.base_model_prefix, self._meta_state
            )
            targets[name] = target
            if converter is not None:
                self._converted.add(name)
            if target not in self._meta_state and self.checkpoint.layer_of(name) is not None:
                unknown.append(name)
        self._report_unknown(unknown)
        return targets

    def _report_unknown(self, names: list[str]) -> None:
        """Refuse tensors of decoder layers that the model has no place for."""
        if names:
            raise CheckpointError(
                f"tensor {names[0]} has no place in {type(self.model).__name__}",
                expected="a tensor of the model",
                actual=f"{len(names)} such tensors",
                remedy="config and weights are of different models",
            )

    def _materialize_buffers(self) -> None:
        """Compute buffers that no checkpoint stores (rotary frequencies) with the model's own initialiser."""
        import torch

        for module in self.text.modules():
            names = [n for n in module._non_persistent_buffers_set if module._buffers.get(n) is not None]
            for name in names:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            if names:
                self.text._init_weights(module)

    def names_of(self, layer: int) -> list[str]:
        """Checkpoint tensors of a layer."""
        prefix = self.checkpoint.prefix.replace("{L}", str(layer))
        return [name for name in self.tensors if name.startswith(prefix)]

    def nbytes_of(self, layer: int) -> int:
        """Bytes of a layer's weights in memory."""
        prefix = f"{self.layers_name}.{layer}."
        return sum(t.numel() * t.element_size() for name, t in self._meta_state.items() if name.startswith(prefix))

    def loading_bytes(self, layer: int) -> int:
        """Peak memory of loading a layer, beyond the bytes of its weights.

        Weights that are used as stored are memory-mapped and take nothing more. Others are read one by one, in the
        worst case a large one last. Tensors stored per expert are converted, then stacked, and gate and up are joined.
        Quantized ones are decoded to float32 first, with a part of their codes beside them.
        """
        tensors = [self.tensors[name] for name in self.names_of(layer)]
        another_type = any(t.nbytes != math.prod(t.shape) * self.dtype.itemsize for t in tensors)
        codes = max((t.nbytes // 4 for t in tensors if t.decode is not None), default=0)
        if len({self._targets[t.name] for t in tensors}) < len(tensors):
            own = self.nbytes_of(layer)
            return own * 2 // 3 + (own if another_type else sum(t.nbytes for t in tensors)) + codes
        return (max(t.nbytes for t in tensors) if another_type else 0) + codes

    @property
    def inner_size(self) -> int:
        """Width I of an expert."""
        module = self.experts(self.checkpoint.moe_layers[0])
        return int(module.down_proj.shape[1 if module.is_transposed else 2])

    def widest(self, layer: int) -> int:
        """Widest output, in values per token, of a linear layer outside the experts (attention heads, dense FFN)."""
        prefix = f"{self.layers_name}.{layer}."
        shapes = [t.shape for name, t in self._meta_state.items() if name.startswith(prefix) and t.dim() == 2]
        return max(int(shape[0]) for shape in shapes)

    def _load(self, names: list[str], wanted: set[str]) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        # The dtype plan lists what a family keeps in float32 in any case, such as routing corrections.
        config = LoadStateDictConfig(
            device_map={"": self.device},
            dtype=self.dtype,
            weight_mapping=self.mapping,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
        )
        lazy = {name: self._tensor(name) for name in names}
        info, _ = convert_and_load_state_dict_in_model(self.model, lazy, config)
        self._report_loading(info, wanted)

    def _tensor(self, name: str) -> Any:
        """A tensor of the checkpoint that is read when transformers asks for it."""
        return LazyTensor(self.tensors[name], self.edits.get(name))

    def _report_loading(self, info: Any, wanted: set[str]) -> None:
        """Refuse what transformers could not load, and parameters of `wanted` that got no tensor."""
        wrong = sorted(str(mismatch[0]) for mismatch in info.mismatched_keys) + sorted(info.unexpected_keys)
        wrong += sorted(info.conversion_errors) + sorted(info.missing_keys & wanted)
        if wrong:
            raise CheckpointError(
                f"tensor {wrong[0]} could not be loaded",
                expected="every tensor of the layer in its shape",
                actual=f"{len(wrong)} missing, mismatched or unexpected",
                remedy="config.json and the weights are of different models",
            )

    def load(self, layer: int) -> None:
        """Read the weights of one layer. Raises `CheckpointError` for an edit of a tensor that is decoded."""
        for name in self.edits:
            if name not in self.tensors or self.tensors[name].stored is None:
                raise CheckpointError(
                    f"tensor {name} is part of a quantized weight, and a change of it cannot be tried",
                    expected="changes to tensors that are stored as floats, such as routers",
                    remedy="heal the unquantized checkpoint and quantize the result, or heal with --unmeasured",
                )
        prefix = f"{self.layers_name}.{layer}."
        self._load(self.names_of(layer), {name for name in self._meta_state if name.startswith(prefix)})

    def free(self, layer: int) -> None:
        """Release the weights of one layer."""
        _to_meta(self.layers[layer])
        return_freed_memory()

    def load_embedding(self, tokens: np.ndarray) -> None:
        """Read the rows of `tokens` (distinct ids, ascending) of the input embedding; only the first layer needs them.

        The whole table is among the largest tensors of a model, and a calibration set uses only part of it.
        """
        import torch

        module = self.text.get_input_embeddings()
        target = next(n for n, m in self.model.named_modules() if m is module) + ".weight"
        name = next((name for name, t in self._targets.items() if t == target), None)
        if name is None:
            raise CheckpointError(
                f"tensor {target} is missing",
                expected="the input embedding",
                remedy="the checkpoint is incomplete: download it again",
            )
        rows = values_of(self.tensors[name])[torch.from_numpy(tokens)]
        require_finite(rows, name)
        module.weight = torch.nn.Parameter(rows.to(self.device, self.dtype), requires_grad=False)
        module.padding_idx = None  # only gradients need it, and its row may not be loaded
        self._vocabulary = tokens

    def free_embedding(self) -> None:
        """Release the input embedding."""
        _to_meta(self.text.get_input_embeddings())

    def experts(self, layer: int) -> Any:
        """The experts module of a layer, or None in a dense layer."""
        return experts_in(self.layers[layer])

    def router(self, layer: int) -> Router:
        """The router of a layer with experts."""
        hf = self.checkpoint.hf
        owner = self._owner(self.checkpoint.role_name("router", layer))[0]
        names = [self.checkpoint.role_name(name, layer) for name, role in hf.roles.items() if role.selects]
        owners = [self._owner(name) for name in names if name in self.tensors]
        factors = [self.checkpoint.role_name(name, layer) for name in hf.scales]
        scales = [self._owner(name) for name in factors if name in self.checkpoint.index]
        return Router(owner, hf.routing, owners, scales)

    def norm_after_experts(self, layer: int) -> Any:
        """The norm that follows the sum of the routed experts' outputs, or None where the family has none."""
        gain = self.checkpoint.hf.routed_gain
        if gain is None:
            return None
        return self._owner(self.checkpoint.prefix.replace("{L}", str(layer)) + gain)[0]

    def _owner(self, name: str) -> tuple[Any, str]:
        """The module and attribute that a checkpoint tensor is loaded into."""
        path, _, attribute = self._targets[name].rpartition(".")
        return self.model.get_submodule(path), attribute

    def load_head(self) -> None:
        """Read what follows the last layer: the norm and the output matrix, or the embedding where they are tied."""
        import torch

        state, layers = self._meta_state, f"{self.layers_name}."
        text = self.layers_name.rpartition(".")[0] + "."
        head, embedding = self.model.get_output_embeddings(), self.text.get_input_embeddings()
        names_of_heads = [n for n, m in self.model.named_modules() if m is head]
        tied = any(f"{n}.weight" in self.model.all_tied_weights_keys for n in names_of_heads)
        heads = {n + "." for n, m in self.model.named_modules() if m is head or (tied and m is embedding)}
        wanted = (f"{text}{self.final_norm_name}.", *heads)
        names = [
            n for n, t in self._targets.items() if t in state and t.startswith(wanted) and not t.startswith(layers)
        ]
        # `load_embedding` may have left some of its rows
        target = next(n for n, m in self.model.named_modules() if m is embedding) + ".weight"
        embedding.weight = torch.nn.Parameter(torch.empty_like(self._meta_state[target]), requires_grad=False)
        self.model.tie_weights()
        self._load(names, set())
        self.model.tie_weights()
        loose = [n for n, p in self.model.named_parameters() if n.startswith(wanted) and p.is_meta]
        if loose:
            raise CheckpointError(
                f"tensor {loose[0]} is missing",
                expected="the final norm and the output matrix",
                remedy="the checkpoint is incomplete: download it again",
            )

    def free_head(self) -> None:
        """Release what `load_head` read."""
        _to_meta(self.final_norm)
        _to_meta(self.text.get_input_embeddings())
        _to_meta(self.model.get_output_embeddings())
        return_freed_memory()


def floats_of(checkpoint: Checkpoint) -> dict[str, FloatTensor]:
    """Every tensor of a checkpoint as floats. Raises `CheckpointError` for a quantization without a decoder."""
    try:
        return float_tensors(checkpoint)
    except NotFloats as exc:
        raise CheckpointError(
            f"the quantization of {checkpoint.path} is unknown in this form",
            expected="weights in a form that can be decoded",
            actual=str(exc),
            remedy="use the unquantized checkpoint, or one in another form of the same model",
        ) from exc


def _refuse_unsupported(config: Any) -> None:
    text = config.get_text_config()
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if getattr(text, key, None):
            raise CheckpointError(
                f"config.json has {key} = {getattr(text, key)}",
                expected="0: layers that share only hidden states",
                remedy="this variant cannot be calibrated layer by layer",
            )


def experts_in(layer: Any) -> Any:
    """The module with the stacked matrices of all experts of a layer, or None."""
    return next((m for m in layer.modules() if getattr(getattr(m, "down_proj", None), "ndim", 0) == 3), None)


def _to_meta(root: Any) -> None:
    import torch

    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(buffer, device="meta")


def _configuration(checkpoint: Checkpoint) -> Any:
    """The configuration of the installed transformers. Raises `CheckpointError` for a `model_type` it does not know."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(checkpoint.path))
    except (ValueError, KeyError) as exc:
        raise CheckpointError(
            f"transformers cannot build the model of {checkpoint.path}",
            expected="a model_type that the installed transformers knows",
            actual=str(exc).split(". ")[0][:200],
            remedy="upgrade transformers; or make a GGUF file, and calibrate that (llama.cpp runs it)",
        ) from exc
