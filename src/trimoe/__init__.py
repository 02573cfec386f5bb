"""trimoe makes Mixture-of-Experts LLMs smaller and proves what that cost.

    import trimoe

    model = trimoe.open("gemma-4-26B-A4B-it")
    stats = trimoe.calibrate(model, "my-work.yaml", out="stats.safetensors")
    drop = trimoe.choose(stats, keep=98)
    small = trimoe.prune(model, drop, out="gemma-98e")
    proof = trimoe.certify(model, small)
    files = trimoe.quantize(small, tiers=["Q4_K_M"], out="ladder")
    run = trimoe.evaluate(small, bench="gsm8k-100", log="runs.db")
    trimoe.compare("runs.db", base="base")

Invariants: the names in `__all__` are the public API. `import trimoe` imports nothing else, in particular neither numpy
nor torch: each name is imported when it is first used. Every path may be a `str` or a `Path`, and every model may be
given as a path or as what `open` and `prune` return. Not guaranteed: anything that is not in `__all__`.
"""

TYPE_CHECKING = False  # importing `typing` would cost as much as everything else here
if TYPE_CHECKING:
    from trimoe.calibrate.engine import calibrate as calibrate
    from trimoe.calibrate.stats.expert_stats import ExpertStats as ExpertStats
    from trimoe.certify.certificate import Certificate as Certificate
    from trimoe.certify.certify import certify as certify
    from trimoe.certify.infer import infer_map as infer_map
    from trimoe.choose.choose import choose as choose
    from trimoe.choose.dropmap import DropMap as DropMap
    from trimoe.cut.prune import prune as prune
    from trimoe.errors import BadInput as BadInput
    from trimoe.errors import BenchError as BenchError
    from trimoe.errors import CalibrationError as CalibrationError
    from trimoe.errors import CheckpointError as CheckpointError
    from trimoe.errors import Interrupted as Interrupted
    from trimoe.errors import MapError as MapError
    from trimoe.errors import MissingPrerequisite as MissingPrerequisite
    from trimoe.errors import RecipeError as RecipeError
    from trimoe.errors import Refused as Refused
    from trimoe.errors import RunLogError as RunLogError
    from trimoe.errors import StatsError as StatsError
    from trimoe.errors import TrimoeError as TrimoeError
    from trimoe.errors import UsageError as UsageError
    from trimoe.evaluate.evaluate import evaluate as evaluate
    from trimoe.evaluate.log.run_log import RunLog as RunLog
    from trimoe.judge.compare import compare as compare
    from trimoe.judge.comparison import Comparison as Comparison
    from trimoe.model.checkpoint import Checkpoint as Checkpoint
    from trimoe.model.gguf.model import GgufModel as GgufModel
    from trimoe.model.open import open_model as open
    from trimoe.quantize.plan.predict import plan as plan
    from trimoe.quantize.quantize import quantize as quantize

__version__ = "0.1.0"

_CLASSES = {
    "Checkpoint": "trimoe.model.checkpoint",
    "GgufModel": "trimoe.model.gguf.model",
    "ExpertStats": "trimoe.calibrate.stats.expert_stats",
    "DropMap": "trimoe.choose.dropmap",
    "Certificate": "trimoe.certify.certificate",
    "RunLog": "trimoe.evaluate.log.run_log",
    "Comparison": "trimoe.judge.comparison",
}
_ERRORS = (
    "TrimoeError",
    "UsageError",
    "BadInput",
    "CheckpointError",
    "StatsError",
    "MapError",
    "RecipeError",
    "CalibrationError",
    "BenchError",
    "RunLogError",
    "MissingPrerequisite",
    "Refused",
    "Interrupted",
)

__all__ = [
    "BadInput",
    "BenchError",
    "CalibrationError",
    "Certificate",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "DropMap",
    "ExpertStats",
    "GgufModel",
    "Interrupted",
    "MapError",
    "MissingPrerequisite",
    "RecipeError",
    "Refused",
    "RunLog",
    "RunLogError",
    "StatsError",
    "TrimoeError",
    "UsageError",
    "__version__",
    "calibrate",
    "certify",
    "choose",
    "compare",
    "evaluate",
    "infer_map",
    "open",
    "plan",
    "prune",
    "quantize",
]


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    from importlib import import_module

    from trimoe.public import FUNCTIONS, lookup

    if name in FUNCTIONS:
        found = lookup(name)
    elif name in _CLASSES or name in _ERRORS:
        found = getattr(import_module(_CLASSES.get(name, "trimoe.errors")), name)
    else:
        raise AttributeError(f"module 'trimoe' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__})
