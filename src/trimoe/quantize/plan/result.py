"""Results of `plan`: predicted sizes and memory as typed values. `as_dict` is the contract of `trimoe plan --json`."""

from dataclasses import dataclass
from typing import Any

from trimoe.quantize.nvfp4.sizes import Nvfp4Size
from trimoe.quantize.plan.candidates import Candidate
from trimoe.quantize.plan.memory import Memory, Serving
from trimoe.quantize.types.sizes import Size
from trimoe.quantize.types.vision import Vision


@dataclass(frozen=True)
class CheckpointBytes:
    """Bytes of a checkpoint's weight files; `exact` is false if its headers are estimated."""

    file_bytes: int
    exact: bool

    def as_dict(self) -> dict[str, Any]:
        """The size as JSON values."""
        return {"file_bytes": self.file_bytes, "exact": self.exact}


@dataclass(frozen=True)
class TierSize:
    """One tier: its file and the memory for serving it."""

    tier: str
    size: Size
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        """The tier as JSON values."""
        size, memory = self.size, self.memory
        return {
            "tier": self.tier,
            "file_bytes": size.file_bytes,
            "bits_per_weight": round(size.bits_per_weight, 4),
            "weights": size.values,
            "types": size.type_mix(),
            "fallback_tensors": sum(choice.fell_back for choice in size.choices),
            "memory": {
                "weights": memory.weights,
                "kv_cache": memory.kv_cache,
                "compute_estimate": memory.compute,
                "vision": memory.vision,
                "total": memory.total,
            },
        }


@dataclass(frozen=True)
class PlannedModel:
    """The model of a plan: `keep` of `experts` in each layer; `exact` is false if the vocabulary is estimated.

    `safetensors` is the unquantized checkpoint, None for a GGUF file; `mmproj` the vision tower, if it was asked for.
    """

    model: str
    experts: int
    keep: int
    exact: bool
    serving: Serving
    safetensors: CheckpointBytes | None
    mmproj: Vision | None

    def as_dict(self) -> dict[str, Any]:
        """The model as JSON values."""
        tower = self.mmproj
        return {
            "model": self.model,
            "experts": self.experts,
            "keep": self.keep,
            "exact": self.exact,
            "context": self.serving.context,
            "parallel": self.serving.parallel,
            "kv": self.serving.kv_type.lower(),
            "safetensors": self.safetensors and self.safetensors.as_dict(),
            "mmproj": tower and {"file_bytes": tower.file_bytes, "weights": tower.weights, "exact": False},
        }


@dataclass(frozen=True)
class Nvfp4Plan:
    """The size of an NVFP4 checkpoint; `exact` is false without the headers of the source.

    `kv_cache` is None for a family whose cache is not known. Buffers of the server are not counted.
    """

    model: str
    tier: str
    layout: str
    experts: int
    keep: int
    exact: bool
    size: Nvfp4Size
    serving: Serving
    kv_cache: int | None

    @property
    def file_bytes(self) -> int:
        """Bytes of all weight files."""
        return self.size.file_bytes

    def size_dict(self) -> dict[str, Any]:
        """The size alone as JSON values, for the table of a ladder."""
        size = self.size
        return {
            "tier": self.tier,
            "layout": self.layout,
            "experts": self.experts,
            "keep": self.keep,
            "exact": self.exact,
            "file_bytes": size.file_bytes,
            "tensor_bytes": size.tensor_bytes,
            "files": size.files,
            "weights": size.values,
            "quantized_weights": size.quantized_values,
            "quantized_bytes": size.quantized_bytes,
            "bits_per_weight": round(size.bits_per_weight, 4),
        }

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        weights, cache = self.size.tensor_bytes, self.kv_cache
        return {
            "model": self.model,
            **self.size_dict(),
            "context": self.serving.context,
            "parallel": self.serving.parallel,
            "kv": self.serving.kv_type.lower(),
            "memory": {"weights": weights, "kv_cache": cache, "total": None if cache is None else weights + cache},
        }


@dataclass(frozen=True)
class TierPlan:
    """One tier of a model."""

    head: PlannedModel
    tier: TierSize

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return self.tier.size.file_bytes

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {**self.head.as_dict(), **self.tier.as_dict()}


@dataclass(frozen=True)
class LadderPlan:
    """Every tier of a ladder, and the NVFP4 checkpoint where the model has one."""

    head: PlannedModel
    tiers: tuple[TierSize, ...]
    nvfp4: Nvfp4Plan | None

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        nvfp4 = self.nvfp4 and self.nvfp4.size_dict()
        return {**self.head.as_dict(), "nvfp4": nvfp4, "tiers": [tier.as_dict() for tier in self.tiers]}


@dataclass(frozen=True)
class BudgetPlan:
    """What fits into `memory_bytes`: of all `candidates` those in `fits`, best expected quality first."""

    head: PlannedModel
    memory_bytes: int
    candidates: tuple[Candidate, ...]
    fits: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            **self.head.as_dict(),
            "memory_bytes": self.memory_bytes,
            "candidates": len(self.candidates),
            "fits": [_candidate_dict(one) for one in self.fits],
        }


SizePlan = TierPlan | LadderPlan | BudgetPlan | Nvfp4Plan


def _candidate_dict(one: Candidate) -> dict[str, Any]:
    rival = one.rival
    return {
        "keep": one.keep,
        **TierSize(one.tier, one.size, one.memory).as_dict(),
        "expert_bits": round(one.bits, 4),
        "expected_cost": round(one.cost, 5),
        "reason": one.reason,
        "rival": rival
        and {
            "keep": rival.keep,
            "tier": rival.tier,
            "file_bytes": rival.size.file_bytes,
            "expert_bits": round(rival.bits, 4),
            "expected_cost": round(rival.cost, 5),
        },
    }
