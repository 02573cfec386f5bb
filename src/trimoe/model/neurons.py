"""Where the neurons of an expert lie in each of its tensors, and in what groups they can be kept.

A neuron is one column of the down projection and the rows of gate and up that feed it. Read from the shapes of the
family's roles and of the tensors, so that packed values and scales of every quantization follow the same rule: a
tensor with L entries along I neurons has one entry for I/L of them, and they are kept or removed together.
"""

from dataclasses import dataclass
from math import lcm

from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.family.recognise import kinds_of


@dataclass(frozen=True)
class NeuronAxis:
    """The neurons along one axis of a tensor. With `parts` = 2 the axis holds gate and up, one after the other or, if
    `interleaved`, by turns. One entry holds `unit` neurons."""

    axis: int
    unit: int
    parts: int = 1
    interleaved: bool = False


def neuron_axis(checkpoint: Checkpoint, tensor: ExpertTensor) -> NeuronAxis | None:
    """The axis of `tensor` over neurons; None if it has none. Raises `CheckpointError` if its length does not fit."""
    role, shape = checkpoint.hf.roles[tensor.role.partition(".")[0]], tensor.info.shape
    axis, width = role.width_axis, expert_width(checkpoint)
    if axis is None or not shape:
        return None
    parts = 2 if role.shape[axis].startswith("2") else 1
    if len(shape) != len(role.shape):
        raise _unknown(tensor, f"{list(shape)} instead of [{', '.join(role.shape)}]")
    if shape[axis] == 1 and "." in tensor.role:  # one scale for all neurons serves those that remain
        return None
    unit, rest = divmod(parts * width, shape[axis])
    if rest or (role.interleaved and unit > 1) or (unit > 1 and width % unit):
        raise _unknown(tensor, f"{shape[axis]} entries for {parts} x {width} neurons")
    return NeuronAxis(axis, unit, parts, role.interleaved)


def neuron_unit(checkpoint: Checkpoint) -> int:
    """Neurons that can only be kept or removed together: 1 for 16-bit weights, the block of a quantized layout."""
    found = (neuron_axis(checkpoint, tensor) for tensor in checkpoint.expert_tensors.values())
    return lcm(*{axis.unit for axis in found if axis is not None})


def expert_width(checkpoint: Checkpoint) -> int:
    """Neurons per expert, by config.json. Raises `CheckpointError` if this model's experts cannot be made narrower."""
    if reason := cannot_narrow(checkpoint):
        raise CheckpointError(
            "the experts of this model cannot be made narrower",
            expected="a family whose config.json has a width for routed experts alone",
            actual=reason,
            remedy="drop whole experts only: make the map without --width",
        )
    width = checkpoint.setting(checkpoint.hf.config.expert_width)
    assert width is not None
    return width


def cannot_narrow(checkpoint: Checkpoint) -> str | None:
    """Why the experts of this model cannot be made narrower, or None."""
    if checkpoint.hf.narrow is None:
        return f"the file of family {checkpoint.family.name} has no section [hf.narrow]"
    kinds = kinds_of(checkpoint.config)
    if not set(kinds) & set(checkpoint.family.model_types):
        return f"model_type {' '.join(kinds)} is unknown; another part of it may have the same width"
    if checkpoint.setting(checkpoint.hf.config.expert_width) is None:
        return f"config.json has no {checkpoint.hf.config.expert_width}"
    if checkpoint.draft_blocks:
        return "it has a drafting block with experts, of whose neurons nothing is measured"
    return None


def _unknown(tensor: ExpertTensor, actual: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {tensor.info.name} cannot be cut by neurons",
        expected="a whole number of neurons for each entry",
        actual=actual,
        remedy="make the unquantized checkpoint narrower and quantize the result",
    )
