"""Which runs may stand beside each other: the same bench identity, engine, sampler and stack."""

from collections.abc import Mapping, Sequence
from typing import Any

from trimoe.errors import Refused, UsageError
from trimoe.evaluate.log.records import Run

RECORDED = "imported"  # a spec's note of where recorded samples came from; no part of what was asked


def bench_identity(run: Run) -> dict[str, Any]:
    """What decides the questions and the length of replies."""
    return {key: value for key, value in run.spec.items() if key != RECORDED}


def conditions(run: Run) -> dict[str, Any]:
    """Engine, sampler and stack, as far as the log knows them."""
    return dict(run.sampler)


def flat(settings: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Nested settings as one table: {"server": {"kv": "f16"}} becomes {"server.kv": "f16"}."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flat(value, f"{under}{key}.") if isinstance(value, Mapping) else {f"{under}{key}": value}
    return out


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as text: "top_k 0 against 20"; those of nested settings with their path."""
    first, second = flat(one), flat(two)
    keys = [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]
    return [f"{key} {first.get(key)} against {second.get(key)}" for key in keys]


def differences(before: Run, now: Run) -> list[tuple[str, list[str]]]:
    """What keeps two runs of one bench out of one column: (bench | engine, sampler or stack, settings)."""
    pairs = (
        ("bench", bench_identity(before), bench_identity(now)),
        ("engine, sampler or stack", conditions(before), conditions(now)),
    )
    return [(what, found) for what, one, two in pairs if (found := differing(one, two))]


def require_same(before: Run, now: Run) -> None:
    """`Refused` with the settings that differ."""
    for what, found in differences(before, now):
        raise Refused(
            f"{now.name} and {before.name} differ in {what} on {now.bench}",
            expected="the same for both",
            actual=", ".join(found),
            remedy="evaluate both alike, or show them apart with `trimoe compare --side-by-side`",
        )


def unknown_name(name: str, known: Sequence[str], where: str) -> UsageError:
    """The error for a name that is not in a log."""
    return UsageError(
        f"no run named {name} in {where}",
        expected="one of " + ", ".join(dict.fromkeys(known)),
        remedy="correct the name",
    )
