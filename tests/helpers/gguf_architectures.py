"""Tiny random GGUF models of llama.cpp's architectures, with the tensors that llama.cpp itself asks for.

The builder writes a file with metadata only, lets llama.cpp load it, and adds or corrects the tensor that the refusal
names, until the model loads. So the loader is the specification, and no list of tensors can be wrong or old. Tensors of
experts that a loader takes but does not require (biases, corrections, shared experts) are tried afterwards.
"""

import hashlib
import re
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.llamacpp.tools import LlamaCpp

EXPERTS = 8
_MOST_LOADS = 400
_SEEDS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_OPTIONAL = (
    "ffn_gate_exps.weight",
    "ffn_down_exps.scale",
    *("exp_probs_b.bias", "ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"),
    *("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight", "ffn_gate_inp_shexp.weight"),
)


class CannotBuild(Exception):
    """llama.cpp refuses every model of the architecture that this builder can make; the text is its message."""


def settings_of(architecture: str) -> dict[str, Any]:
    """Metadata of an architecture, without its prefix."""
    data = tomllib.loads((Path(__file__).parent / "gguf_architectures.toml").read_text())
    own = dict(data.get(architecture, {}))
    while "like" in own:
        own = {**data[own.pop("like")], **own}
    return {**data["common"], **own}


@dataclass
class Builder:
    """One model in the making. `tensors` maps names to shapes, slowest axis first."""

    architecture: str
    tools: LlamaCpp
    settings: dict[str, Any]
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes by the name without its layer."""
    optional: tuple[str, ...] = _OPTIONAL
    """Names of tensors of experts to try, without the layer."""

    def write(self, path: Path) -> None:
        """The model as it is now."""
        import gguf

        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.settings.items():
            self._add(writer, f"{self.architecture}.{key}", value)
        _add_vocabulary(writer)
        for name, shape in self.tensors.items():
            writer.add_tensor(name, values_of(name, shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _add(self, writer: Any, key: str, value: Any) -> None:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](key, value)

    def build(self, path: Path) -> None:
        """Write a model that llama.cpp runs. Raises `CannotBuild`."""
        for _ in range(_MOST_LOADS):
            problem = self.try_load(path)
            if problem is None:
                break
            self._correct(problem)
        else:
            raise CannotBuild(f"still refused after {_MOST_LOADS} loads: {problem}")
        self._add_optional(path)
        self.write(path)

    def try_load(self, path: Path) -> str | None:
        """llama.cpp's message about the model as it is now; None if it loads and runs."""
        self.write(path)
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder) / "job.json"
            job.write_text('{"threads": 1, "tokens": [[5, 40, 77, 140, 201, 9, 33]]}')
            program = self.tools.program("trimoe-masked-logits")
            done = subprocess.run([program, path, job, folder], capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            return None
        lines = [line for line in done.stderr.splitlines() if line.strip() and "llama_model_loader:" not in line]
        wanted = [line for line in lines if re.search(r"error|assert|missing|wrong|not found|invalid", line, re.I)]
        return next((w for w in wanted if "missing tensor" in w or "wrong shape" in w), None) or " | ".join(
            (wanted or lines[-3:])[:3]
        )

    def _correct(self, problem: str) -> None:
        if found := re.search(r"missing tensor '([^']+)'|tensor '([^']+)' not found", problem):
            name = found[1] or found[2]
            self.tensors[name] = self.known.get(_plain(name), (1,))
        elif found := re.search(r"tensor '([^']+)' has wrong shape; expected\s+([\d, ]+?),?\s+got", problem):
            name = found[1]
            shape = tuple(int(number) for number in found[2].replace(" ", "").split(",") if number)[::-1]
            while len(shape) > 1 and shape[0] == 1:
                shape = shape[1:]
            self.tensors[name] = self.known[_plain(name)] = shape
        else:
            raise CannotBuild(problem)

    def _add_optional(self, path: Path) -> None:
        """Add what the loader takes without asking for it, in layers with experts."""
        layers = [name.split(".")[1] for name in self.tensors if name.endswith(".ffn_down_exps.weight")]
        for rest in self.optional:
            names = [f"blk.{layer}.{rest}" for layer in layers]
            if names[:1] == [] or names[0] in self.tensors:
                continue
            before = dict(self.tensors)
            for name in names:
                self.tensors[name] = (1,)
            for _ in range(3 * len(names) + 2):
                problem = self.try_load(path)
                if problem is None:
                    break
                try:
                    self._correct(problem)
                except CannotBuild:
                    problem = "refused"
                    break
            if problem is not None:
                self.tensors = before


def _plain(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name)


def values_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values that keep activations near 1; a function of name and shape."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    random = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * random
    if re.search(r"ssm_a($|\.)", name):
        return -np.abs(random) - 0.1
    if name.endswith("bias") or len(shape) < 2:
        return 0.1 * random
    scale = 3.0 if "ffn_gate_inp.weight" in name else 1.0
    return random * np.float32(scale / np.sqrt(shape[-1]))


def _add_vocabulary(writer: Any) -> None:
    """One token per byte, as a tokenizer of the SentencePiece kind."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def builder_of(architecture: str, tools: LlamaCpp) -> Builder:
    """A builder with the settings of an architecture.

    It begins with the tensors that a loader does not ask for although the graph needs them.
    """
    settings = settings_of(architecture)
    layers = settings.pop("experts_in", [])
    names = [f"blk.{layer}.{rest}.weight" for layer in layers for rest in _SEEDS] + settings.pop("also", [])
    without = settings.pop("without", [])
    optional = tuple(name for name in _OPTIONAL if name not in without)
    known = {name: tuple(shape) for name, shape in settings.pop("shapes", {}).items()}
    tensors = {name: known.get(_plain(name), (1,)) for name in names}
    return Builder(architecture, tools, settings, tensors, known, optional)


def build(architecture: str, tools: LlamaCpp, path: Path) -> Path:
    """Write a tiny model of the architecture. Raises `CannotBuild`."""
    builder_of(architecture, tools).build(path)
    return path
