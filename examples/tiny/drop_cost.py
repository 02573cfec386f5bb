"""Cost of dropping experts from the bundled model: held-out accuracy per domain and method. About 5 minutes.

    python examples/tiny/drop_cost.py src/trimoe/model/tiny/checkpoint --rows 100 --log examples/tiny/drop_cost.jsonl

Nothing is cut: the router logits of dropped experts are set to -inf, which is equivalent (`trimoe certify` proves it).
The model must separate good choices from bad ones: if random dropping costs nearly nothing, comparisons mean nothing.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from trimoe.bench.catalog import find
from trimoe.calibrate.engine import calibrate
from trimoe.model.generate import Generator
from trimoe.model.tiny.tasks import DOMAINS

HERE = Path(__file__).parent


@contextmanager
def dropped(model: torch.nn.Module, scores: np.ndarray, count: int) -> Iterator[None]:
    """Context in which the `count` lowest experts of each layer are never chosen. `scores` is [layers, experts]."""
    hooks = []
    for layer, score in zip(model.model.layers, scores, strict=True):
        away = torch.from_numpy(np.argsort(score, kind="stable")[:count].copy())
        hooks.append(
            layer.router.proj.register_forward_hook(
                lambda _m, _i, out, away=away: out.index_fill(-1, away, float("-inf"))
            )
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def accuracy(generator: Generator, rows: int) -> dict[str, float]:
    """Percent of held-out items that pass the benches' scorers, per domain."""
    result = {}
    for bench in find([f"tiny-{domain}" for domain in DOMAINS]):
        docs = bench.docs()[:rows]
        replies = generator.reply([generator.encode(doc.prompt) for doc in docs], bench.max_new_tokens)
        verdicts = bench.judge([(r.text, r.finish_reason, doc) for r, doc in zip(replies, docs, strict=True)])
        result[bench.name.removeprefix("tiny-")] = round(100 * sum(bool(v.correct) for v in verdicts) / len(docs), 1)
    return result


def main() -> None:
    """Measure, print and log every method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as work:
        stats = calibrate(args.model, HERE / "calibration.yaml", Path(work) / "stats.safetensors")
    count, total = stats.field("tc").sum(0), stats.field("reap_sum").sum(0)  # [layers, experts]
    ways = {f"random {seed}": np.random.default_rng(seed).random(count.shape) for seed in range(3)}
    ways |= {"frequency": count, "reap": total / np.maximum(count, 1), "wnorm-sum": total}
    generator = Generator(args.model)
    base = accuracy(generator, args.rows)
    with args.log.open("w") as log:

        def tell(way: str, drop: int, result: dict[str, float]) -> None:
            cost = round(sum(base.values()) / 6 - sum(result.values()) / 6, 1)
            row = {"way": way, "dropped": drop, "rows": args.rows, "cost": cost, "percent": result}
            print(json.dumps(row), flush=True)
            log.write(json.dumps(row) + "\n")
            log.flush()

        tell("none", 0, base)
        for share in (4, 2):
            for way, scores in ways.items():
                with dropped(generator._model, scores, count.shape[1] // share):
                    tell(way, count.shape[1] // share, accuracy(generator, args.rows))


if __name__ == "__main__":
    main()
