"""Damaged headers, indexes, configs and maps by the thousand, in a process whose memory and time are watched.

    python tests/cut/fuzz.py COUNT [SEED]

Each input is one change (or several) of a small valid checkpoint, map, or pruned model: bytes flipped, cut, inserted;
numbers, names and whole values of the JSON replaced by what breaks parsers. Opening, planning and (where that succeeds)
cutting, the byte part of certify and infer-map must end with a result or with one of our errors. Prints one JSON
document; anything else that is raised ends the run with a traceback and the number of the input.
"""

import copy
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import quantized
from helpers.hand_made import (
    TEST_FAMILIES,
    gemma_arrays,
    gemma_config,
    per_expert_arrays,
    per_expert_config,
    transposed_arrays,
    transposed_config,
    write_checkpoint,
)
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import TrimoeError
from trimoe.model.family.file import extra_families
from trimoe.model.files import METADATA

PATIENCE = 20  # seconds for one input, on a machine that does other things too
LIMIT = 500 << 20  # bytes of address space above what the process has before the first input

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    255,
    1 << 20,
    (1 << 20) + 1,
    1 << 31,
    1 << 53,
    1 << 62,
    1 << 63,
    1 << 64,
    10**30,
    -(1 << 63),
    0.5,
    1e308,
    -0.0,
    "",
    "0",
    "F32",
    "BF16",
    "U8",
    "F4",
    "x" * 3000,
    "\x00",
    "é",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [0],
    [1, 2],
    [1 << 40, 1 << 40],
    [0] * 40,
    {"dtype": "F32"},
    {"drop": {}},
    "config.json",
)
SETTINGS = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "ignore": ["lm_head", "model.layers.0.mlp.experts.3", "re:.*mlp.gate$", "*self_attn*"],
}
KEYS = (
    "dtype",
    "shape",
    "data_offsets",
    "__metadata__",
    "weight_map",
    "drop",
    "num_experts",
    "text_config",
    "0",
    "-1",
    "1048577",
    "01",
    "quantization_config",
)


def mutate_json(draw: random.Random, value: Any) -> Any:
    """One change somewhere in a JSON value."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            places.append((node, key))
            walk(child)

    walk(value)
    if not places or draw.random() < 0.02:
        return nasty(draw)
    node, key = draw.choice(places)
    act = draw.random()
    if act < 0.6:
        node[key] = nudged(draw, node[key])
    elif act < 0.75 and isinstance(node, dict):
        node[draw.choice([*KEYS, *map(str, node), str(key) + "x"])] = node.pop(key)
    elif act < 0.9:
        del node[key]
    elif isinstance(node, list):
        node.extend(copy.deepcopy(node[key]) for _ in range(draw.choice([1, 2, 50])))
    else:
        node[draw.choice(KEYS)] = nasty(draw)
    return value


def nudged(draw: random.Random, old: Any) -> Any:
    """Something else: near the old value or nasty."""
    if type(old) is int and draw.random() < 0.5:
        return old + draw.choice([-8, -4, -2, -1, 1, 2, 4, 8, 1 << 32, old])
    if isinstance(old, str) and draw.random() < 0.5:
        at = draw.randrange(len(old) + 1)
        return old[:at] + draw.choice(["", "1", "experts.9", ".", "\ud800"]) + old[at + draw.randrange(2) :]
    return nasty(draw)


def nasty(draw: random.Random) -> Any:
    """A value of its own each time: it may be put inside another."""
    return copy.deepcopy(draw.choice(NASTY))


def mutate_bytes(draw: random.Random, data: bytes) -> bytes:
    """A few changed, cut or inserted bytes."""
    content = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(max(len(content), 1))
        act = draw.random()
        if act < 0.5 and content:
            content[at] = draw.randrange(256)
        elif act < 0.65:
            del content[at : at + draw.choice([1, 4, 100])]
        elif act < 0.8:
            content[at:at] = draw.choice([b"[" * 5000, b'{"a":' * 3000, b"0", b"\xff", b'"', b",", b"}", b"1e999"])
        elif act < 0.9:
            del content[at:]
        else:
            content += bytes(draw.choice([1, 8, 4096]))
    return bytes(content)


def mutate_header(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header; mostly its length stays true, so that the inside is reached."""
    (length,) = struct.unpack("<Q", data[:8])
    if draw.random() < 0.3:
        head = mutate_bytes(draw, data[: 8 + length])
        return head + data[8 + length :]
    header = json.loads(data[8 : 8 + length])
    for _ in range(draw.choice([1, 1, 1, 3])):
        header = mutate_json(draw, header)
    text = json.dumps(header, ensure_ascii=True).encode()
    size = len(text) if draw.random() < 0.95 else draw.choice([0, 1, len(text) * 2, 1 << 40, 1 << 63])
    return struct.pack("<Q", size) + text + data[8 + length :]


@dataclass(frozen=True)
class Case:
    """A valid checkpoint, a map, and what the map makes of it."""

    source: Path
    drop_map: DropMap
    pruned: Path


def inputs(folder: Path) -> list[Case]:
    """The valid checkpoints that are damaged."""
    made = [
        write_checkpoint(folder / "stacked", gemma_arrays(), gemma_config()),
        write_checkpoint(folder / "sharded", gemma_arrays(), gemma_config(), [i % 3 for i in range(16)]),
        write_checkpoint(folder / "per_expert", per_expert_arrays(), per_expert_config(), [0] * 20 + [1] * 23),
        write_checkpoint(folder / "transposed", transposed_arrays(), transposed_config()),
        quantized.write(folder / "quantized", quantized.qwen(quantized.ct_nvfp4), quantized.qwen_config(SETTINGS)),
        quantized.write(folder / "quantized stacks", *quantized.llama4_nvfp4()),
    ]
    eight = {0: (1, 4), 1: (0, 7)}
    maps = [eight, eight, {1: (0,), 2: (5,)}, {0: (1,), 1: (6,)}, eight, eight]
    cases = [
        Case(path, DropMap(drop), path.with_name(path.name + "-cut")) for path, drop in zip(made, maps, strict=True)
    ]
    for case in cases:
        prune(case.source, case.drop_map, case.pruned, max_shard=300)
    return cases


def one(draw: random.Random, cases: list[Case], work: Path) -> str:
    """Damage, use; returns what came of it."""
    case = draw.choice(cases)
    kind = draw.choices(["header", "index", "config", "map", "record", "pruned"], [6, 1, 1, 4, 1, 3])[0]
    target, map_file = work / "model", work / "map.json"
    shutil.copytree(case.source if kind in ("header", "index", "config", "map") else case.pruned, target)
    case.drop_map.save(map_file, overwrite=True)
    shards = sorted(target.glob("*.safetensors"))
    file = {
        "header": draw.choice(shards),
        "index": target / "model.safetensors.index.json",
        "config": target / "config.json",
        "map": map_file,
        "record": target / METADATA,
        "pruned": draw.choice([*shards, target / "config.json", target / "model.safetensors.index.json"]),
    }[kind]
    file = file if file.exists() else shards[0]
    data: Any = file.read_bytes()
    if file.suffix == ".safetensors":
        data = mutate_header(draw, data)
    elif draw.random() < 0.7:
        data = json.dumps(mutate_json(draw, json.loads(data)), ensure_ascii=True).encode()
    else:
        data = mutate_bytes(draw, data)
    file.write_bytes(data)
    try:
        if kind in ("record", "pruned"):
            certificate = certify(case.source, target, logits=False)
            infer_map(case.source, target)
            return f"{kind}: {'used' if certificate.status == 'incomplete' else certificate.status}"
        read = DropMap.load(map_file)
        prune(target, read, work / "out", dry_run=draw.random() < 0.8, jobs=1)
        if (work / "out").exists():
            certify(target, work / "out", logits=False)
        return f"{kind}: used"
    except TrimoeError as exc:
        return f"{kind}: {type(exc).__name__}"


def main(count: int, seed: int) -> None:
    """Run and report."""
    draw, results, slowest = random.Random(seed), Counter[str](), 0.0
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # many small files: in memory where there is such a place
    with tempfile.TemporaryDirectory(dir=place) as folder:
        cases, work = inputs(Path(folder) / "valid"), Path(folder) / "work"
        work.mkdir()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + LIMIT, held + LIMIT))
        for number in range(count):
            begin = time.monotonic()
            signal.alarm(PATIENCE)  # no handler: a hang ends the process
            try:
                results[one(draw, cases, work)] += 1
            except BaseException:
                sys.stderr.write(f"input {number} of seed {seed}\n")
                raise
            signal.alarm(0)
            slowest = max(slowest, time.monotonic() - begin)
            for name in ("model", "out"):
                shutil.rmtree(work / name, ignore_errors=True)
    # Not getrusage: its peak is that of the process that started this one, if that was larger.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    report = {
        "inputs": count,
        "seed": seed,
        "results": dict(sorted(results.items())),
        "slowest_seconds": round(slowest, 3),
        "peak_rss_mib": round(peak, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    with extra_families(*TEST_FAMILIES):
        main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
