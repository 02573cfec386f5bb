"""Decides which runs are comparable: those with the same bench identity, engine, sampler and stack."""

from collections.abc import Mapping, Sequence
from typing import Any

from trimoe.errors import Refused, UsageError
from trimoe.evaluate.log.records import Run

RECORDED = "imported"  # key of a spec for the origin of imported samples; not part of the bench's identity


def bench_identity(run: Run) -> dict[str, Any]:
    """The settings that determine prompts and reply limits."""
    return {key: value for key, value in run.spec.items() if key != RECORDED}


def conditions(run: Run) -> dict[str, Any]:
    """Engine, sampler and stack, as far as the log has them."""
    return dict(run.sampler)


def flat(settings: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Nested settings as a flat table: {"server": {"kv": "f16"}} becomes {"server.kv": "f16"}."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flat(value, f"{under}{key}.") if isinstance(value, Mapping) else {f"{under}{key}": value}
    return out


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as text: "top_k 0 against 20"; nested settings have their path."""
    first, second = flat(one), flat(two)
    keys = [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]
    return [f"{key} {first.get(key)} against {second.get(key)}" for key in keys]


def differences(before: Run, now: Run) -> list[tuple[str, list[str]]]:
    """Why two runs of one bench are not comparable: (bench, or engine, sampler or stack; settings that differ)."""
    pairs = (
        ("bench", bench_identity(before), bench_identity(now)),
        ("engine, sampler or stack", conditions(before), conditions(now)),
    )
    return [(what, found) for what, one, two in pairs if (found := differing(one, two))]


def require_same(before: Run, now: Run) -> None:
    """Raise `Refused` with the settings that differ."""
    for what, found in differences(before, now):
        raise Refused(
            f"{now.name} and {before.name} differ in {what} on {now.bench}",
            expected="the same for both",
            actual=", ".join(found),
            remedy="evaluate both under the same conditions, or use `trimoe compare --side-by-side`",
        )


def unknown_name(name: str, known: Sequence[str], where: str) -> UsageError:
    """The error for a name that is not in a log."""
    return UsageError(
        f"no run named {name} in {where}",
        expected="one of " + ", ".join(dict.fromkeys(known)),
        actual=name,
        remedy="correct the name",
    )
