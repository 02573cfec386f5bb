"""Heal a pruned checkpoint: change more than its experts, measure whether it helped, write it only if so."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.errors import UsageError
from trimoe.heal.edit import METHODS, Edit, factor_edits
from trimoe.heal.write import Healing, require_related, write_healed
from trimoe.io.atomic import require_absent
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.device import require_device

PathLike = str | os.PathLike[str]
MOST_FACTORS = 100
LARGEST_FACTOR = 1e3


@dataclass(frozen=True)
class HealReport:
    """What healing did or, for a dry run, would do. `record` is the section `heal` of the manifest; empty for a dry
    run."""

    out: str
    method: str
    tensors: tuple[str, ...]
    """Names of the tensors that a dry run would change, or that were changed."""
    dry_run: bool
    fit_windows: int = 0
    held_out_windows: int = 0
    record: dict[str, Any] = field(default_factory=dict)

    def __fspath__(self) -> str:
        """The output's path, so that the report stands for the healed model wherever a path is expected."""
        return self.out

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the record, or what a dry run would do."""
        if not self.dry_run:
            return {"out": self.out, **self.record}
        return {
            "method": self.method,
            "dry_run": True,
            "tensors": list(self.tensors),
            "fit_windows": self.fit_windows,
            "held_out_windows": self.held_out_windows,
        }


def heal(
    original: PathLike,
    pruned: PathLike,
    out: PathLike,
    *,
    method: str,
    alpha: float | Sequence[float] = 1.2,
    on: str = "down",
    calibration_set: PathLike | None = None,
    held_out: PathLike | None = None,
    passes: int = 12,
    rate: float = 0.01,
    unmeasured: bool = False,
    keep_worse: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> HealReport:
    """Change tensors of `pruned`, a prune of `original`, and write the result to the new directory `out`.

    `method` is "shared-alpha" (scale the FFN that always runs: its last matrix, or with `on="gain"` the norm behind
    it), "expert-scale" (scale the experts) or "router" (refit the routers: `passes` steps per layer of size `rate`).
    `alpha` is the factor; of several the one with the lowest divergence on the calibration part is taken.

    The KL divergence from `original` is measured before and after on held-out text: a third of the documents of
    `calibration_set`, or the set `held_out`. `unmeasured` skips that, for quantized models. A result that is worse or
    not measured is written only with `keep_worse` or `unmeasured`, and marked as not publishable. Needs torch unless
    `unmeasured`.

    Raises `UsageError` for arguments that contradict each other, `CheckpointError` for models that do not fit,
    `CalibrationError` for the sets, `BadInput` if `out` exists, and `Refused` if the divergence rose.
    """
    factors = (alpha,) if isinstance(alpha, int | float) else tuple(alpha)
    _require_options(method, factors, calibration_set, held_out, unmeasured)
    require_absent(Path(out))
    before, after = open_checkpoint(Path(original)), open_checkpoint(Path(pruned))
    require_related(before, after)
    fit = held = 0
    if unmeasured:
        healing = _unmeasured(before, after, method, factors[0], on)
    else:
        from trimoe.calibrate.text.calibration import CalibrationSet
        from trimoe.heal.measure import Plan, edits_of, fit_and_measure, parts
        from trimoe.heal.router import Steps

        require_device(device)
        plan = Plan(method, factors, on, Steps(passes, rate), device)
        chosen = CalibrationSet.load(Path(calibration_set or ""))
        other = CalibrationSet.load(Path(held_out)) if held_out is not None else None
        planned = edits_of(after, plan)
        texts = parts(before, chosen, other)
        fit, held = (len(text.windows) for text in texts)
        if dry_run:
            return _dry_run(out, after, method, planned, fit, held)
        healing = fit_and_measure(before, after, plan, *texts, progress)
    if dry_run:
        return _dry_run(out, after, method, healing.edits, fit, held)
    record = write_healed(healing, Path(out), keep_worse=keep_worse or unmeasured, progress=progress)
    names = tuple(row["tensor"] for row in record["tensors"])
    return HealReport(str(out), method, names, dry_run, fit, held, record)


def _require_options(
    method: str,
    factors: tuple[float, ...],
    calibration_set: PathLike | None,
    held_out: PathLike | None,
    unmeasured: bool,
) -> None:
    if method not in METHODS:
        raise UsageError(f"{method!r} is not a healing method", expected=", ".join(METHODS))
    if unmeasured == (calibration_set is not None):
        raise UsageError("give --set to measure, or --unmeasured", expected="one of them", remedy="see --help")
    if unmeasured and method == "router":
        raise UsageError("routers are fitted on text", expected="--set", actual="--unmeasured")
    if held_out is not None and calibration_set is None:
        raise UsageError("--held-out needs --set", expected="both")
    if unmeasured and len(factors) != 1:
        raise UsageError(
            "a range of factors has to be measured", expected="one factor", actual=", ".join(map(str, factors))
        )
    _require_factors(factors, ", ".join(map(str, factors)))


def _require_factors(factors: tuple[float, ...], given: str) -> None:
    if not factors or not all(0 < factor < LARGEST_FACTOR for factor in factors):
        raise UsageError(
            f"{given!r} is not a factor",
            expected=f"a number above 0, below {LARGEST_FACTOR:g}, or FIRST:LAST:STEP",
            remedy="for example --alpha 1.2 or --alpha 1.0:1.3:0.05",
        )


def parse_factors(text: str) -> tuple[float, ...]:
    """`1.2`, or `1.0:1.3:0.05` for a range that includes both ends. Raises `UsageError`."""
    try:
        numbers = [float(part) for part in text.split(":")]
        if len(numbers) == 1:
            found = tuple(numbers)
        else:
            first, last, step = numbers
            count = round((last - first) / step)
            found = tuple(round(first + i * step, 9) for i in range(count + 1)) if 0 < count < MOST_FACTORS else ()
    except (ValueError, ZeroDivisionError, OverflowError):
        found = ()
    _require_factors(found, text)
    return found


def _unmeasured(before: Checkpoint, after: Checkpoint, method: str, factor: float, on: str) -> Healing:
    settings = {"alpha": factor} | ({"on": on} if method == "shared-alpha" else {})
    return Healing(before, after, method, settings, factor_edits(after, method, factor, on))


def _dry_run(out: PathLike, pruned: Checkpoint, method: str, edits: list[Edit], fit: int, held: int) -> HealReport:
    names = [edit.info.name for edit in edits] or [pruned.role_name("router", layer) for layer in pruned.moe_layers]
    return HealReport(str(out), method, tuple(names), True, fit, held)
