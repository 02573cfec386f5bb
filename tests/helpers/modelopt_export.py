"""Runs in an environment of its own with NVIDIA Model Optimizer (see modelopt_env.py), never in the project's.

python modelopt_export.py export MODEL OUT      Model Optimizer's own W4A16 NVFP4 export of a checkpoint
python modelopt_export.py golden OUT.npz        what its NVFP4QTensor makes of hard cases (nvfp4_golden.npz)
python modelopt_export.py time FILE THREADS     for perf/nvfp4.py: a line on standard input starts a round
"""

import json
import sys
import time
from typing import Any

BLOCK = 16


def export(model: str, out: str) -> None:
    """Quantize with `W4A16_NVFP4_CFG` and write with `export_hf_checkpoint`."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    tokens = torch.arange(64)[None]
    export_hf_checkpoint(mtq.quantize(loaded, mtq.W4A16_NVFP4_CFG, forward_loop=lambda m: m(tokens)), export_dir=out)


def cases() -> dict[str, Any]:
    """Matrices that are hard to round, by name."""
    import torch

    torch.manual_seed(5)
    normal = torch.randn(8, 704) * 0.02
    # Scales become exactly 1: the largest weight is 2688, each block has a 6, the rest are ties and their neighbours.
    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    near = torch.cat([bounds, torch.nextafter(bounds, bounds * 0), torch.nextafter(bounds, bounds * 9)])
    ties = torch.zeros(4, 64)
    ties[0, 0] = 2688.0
    ties[1:, ::16] = 6.0
    for row in range(1, 4):
        places = [i for i in range(64) if i % 16][: len(near)]
        ties[row, places] = near * (-1 if row == 2 else 1)
    scales = torch.zeros(64, 64)  # block scales across and beyond all of E4M3
    scales[:, 0] = 2688.0
    scales[:, 16] = 6 * 2.0 ** torch.linspace(-14, 8.8, 64)
    scales[:, 32] = 6 * torch.linspace(0.0, 40.0, 64)
    scales[:, 17:24] = torch.randn(64, 7) * 2.0 ** torch.linspace(-16, 6, 64)[:, None]
    zeros = normal[:, :64].clone()
    zeros[::2, 16:32] = 0.0
    zeros[1::2, 32:48] = -0.0
    small = normal.clone()
    small[3:, :] *= 1e-7
    small[0, :] *= 1e3
    return {
        "bf16 704": normal.bfloat16(),
        "bf16 2112": (torch.randn(4, 2112) * 0.05).bfloat16(),
        "f16": (torch.randn(8, 96) * 0.3).half(),
        "f32": torch.randn(8, 96) * 0.3,
        "ties f32": ties,
        "ties bf16": ties.bfloat16(),
        "ties f16": ties.half(),
        "scales f32": scales,
        "scales bf16": scales.bfloat16(),
        "zero blocks": zeros.bfloat16(),
        "small beside large": small.bfloat16(),
        "huge": (torch.randn(4, 64).clamp(-3, 3) * 1e38).bfloat16(),
        "huge f16": (torch.randn(4, 64) * 1e4).half(),
        "denormal beside one": torch.cat([torch.randn(4, 48) * 1e-39, torch.ones(4, 16)], 1).bfloat16(),
        "denormal f16": (torch.randn(4, 64) * 2.0**-20).half(),
    }


def golden(out: str) -> None:
    """Inputs (their bits), codes, bits of the block scales, scale_2; for some also with a larger shared scale_2."""
    import modelopt
    import numpy as np
    import torch
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    found: dict[str, Any] = {}
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    for name, weight in cases().items():
        for factor in (1.0, 3.7):
            second = NVFP4QTensor.get_weights_scaling_factor_2(weight) * factor
            if not torch.isfinite(second):
                continue
            scale, _ = NVFP4QTensor.get_weights_scaling_factor(weight, BLOCK, second)
            packed = NVFP4QTensor.quantize(weight, BLOCK, scale, second)[0]._quantized_data
            key = f"{name}|{names[weight.dtype]}|{factor}"
            width = torch.int32 if weight.dtype == torch.float32 else torch.int16
            unsigned = np.uint32 if weight.dtype == torch.float32 else np.uint16
            found |= {
                f"{key}|bits": weight.view(width).numpy().view(unsigned),
                f"{key}|packed": packed.numpy(),
                f"{key}|scales": scale.view(torch.uint8).numpy(),
                f"{key}|scale_2": second.numpy(),
            }
    found["version"] = np.array(modelopt.__version__)
    np.savez_compressed(out, **found)


def timed(file: str, threads: str) -> None:
    """For each line on standard input quantize the experts of FILE once; write the seconds and processor seconds."""
    import torch
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
    from safetensors import safe_open

    torch.set_num_threads(int(threads))
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        with safe_open(file, "pt") as tensors:
            for name in [n for n in tensors.keys() if ".experts." in n]:  # noqa: SIM118 a safe_open is no dictionary
                for stack in tensors.get_tensor(name):
                    for weight in stack.chunk(2) if "gate_up" in name else (stack,):
                        NVFP4QTensor.quantize(weight, BLOCK)
        sys.stdout.write(json.dumps([time.perf_counter() - wall, time.process_time() - processor]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    {"export": export, "golden": golden, "time": timed}[sys.argv[1]](*sys.argv[2:])
