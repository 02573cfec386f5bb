"""The exception tree of trimoe. Every message names subject, expected, actual and remedy.

    TrimoeError
    ├── UsageError            exit 2   the command line or call contradicts itself
    ├── BadInput              exit 3   a file or value given by the user cannot be used
    │   ├── CheckpointError            not a checkpoint, a missing or truncated shard, wrong tensors
    │   ├── StatsError                 expert statistics that do not fit or are damaged
    │   ├── MapError                   a drop map that does not fit the model
    │   ├── RecipeError                unknown key or impossible value in a recipe
    │   ├── CalibrationError           a calibration set that cannot be used
    │   ├── BenchError                 a bench spec or benchmark rows that cannot be used
    │   └── RunLogError                a run log that is damaged or of another run
    ├── MissingPrerequisite   exit 4   an extra, a tool or disk space is missing
    ├── Refused               exit 5   a guard stopped the work
    └── Interrupted           exit 6   stopped by the user; the same command resumes

Exit 1 is a finding (for example "not certified"): a result, not an exception.
"""


class TrimoeError(Exception):
    """Base of all errors that trimoe raises on purpose."""

    exit_code = 3

    def __init__(self, subject: str, *, expected: str = "", actual: str = "", remedy: str = "") -> None:
        self.subject, self.expected, self.actual, self.remedy = subject, expected, actual, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.subject]
        for label, text in (("expected", self.expected), ("actual", self.actual), ("remedy", self.remedy)):
            if text:
                parts.append(f"  {label}: {text}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, str | int]:
        """The same content for `--json` output."""
        return {
            "error": type(self).__name__,
            "subject": self.subject,
            "expected": self.expected,
            "actual": self.actual,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class UsageError(TrimoeError):
    """Options that contradict each other or are impossible."""

    exit_code = 2


class BadInput(TrimoeError):
    """An input that cannot be used."""

    exit_code = 3


class CheckpointError(BadInput):
    """Not a checkpoint, or a damaged or unsupported one."""


class StatsError(BadInput):
    """Expert statistics that are damaged or belong to another model."""


class MapError(BadInput):
    """A drop map that is malformed or does not fit the model."""


class RecipeError(BadInput):
    """A recipe with an unknown key or an impossible value."""


class CalibrationError(BadInput):
    """A calibration set that cannot be used."""


class BenchError(BadInput):
    """A bench spec with an unknown key, or benchmark rows that are not the expected ones."""


class RunLogError(BadInput):
    """A run log that is damaged or belongs to another run."""


class MissingPrerequisite(TrimoeError):
    """An extra, a tool, or disk space is missing."""

    exit_code = 4


class Refused(TrimoeError):
    """A guard refused to go on because the result could not be trusted."""

    exit_code = 5


class Interrupted(TrimoeError):
    """Stopped by the user; the same command resumes."""

    exit_code = 6
