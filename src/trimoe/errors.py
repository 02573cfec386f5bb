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

Exit 1 is a finding (for example "not certified"): a result, not an exception. `machine_failure` says what an error of
the operating system means: a full disk is no defect of trimoe.
"""

import errno
import re
from collections.abc import Iterator


class TrimoeError(Exception):
    """Base of all errors that trimoe raises on purpose.

    >>> try:
    ...     trimoe.choose(stats, keep=99)
    ... except trimoe.TrimoeError as error:
    ...     print(type(error).__name__, error.exit_code, error.expected)
    MapError 3 1..32
    """

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
    """Options that contradict each other or are impossible.

    >>> trimoe.choose(stats, keep=24, drop_fraction=0.25)
    Traceback (most recent call last):
        ...
    trimoe.errors.UsageError: keep and drop_fraction contradict each other
    """

    exit_code = 2


class BadInput(TrimoeError):
    """An input that cannot be used.

    >>> trimoe.prune(model, drop, out="small")
    Traceback (most recent call last):
        ...
    trimoe.errors.BadInput: small already exists
    """

    exit_code = 3


class CheckpointError(BadInput):
    """Not a checkpoint, or a damaged or unsupported one.

    >>> trimoe.open("nowhere")
    Traceback (most recent call last):
        ...
    trimoe.errors.CheckpointError: nowhere is not a checkpoint directory
    """


class StatsError(BadInput):
    """Expert statistics that are damaged or belong to another model.

    >>> trimoe.choose("tasks.yaml", keep=24)
    Traceback (most recent call last):
        ...
    trimoe.errors.StatsError: tasks.yaml is not a statistics file
    """


class MapError(BadInput):
    """A drop map that is malformed or does not fit the model.

    >>> trimoe.prune(model, trimoe.DropMap({0: (1, 2)}), out="other")
    Traceback (most recent call last):
        ...
    trimoe.errors.MapError: the map does not cover exactly the layers of the model
    """


class RecipeError(BadInput):
    """A recipe with an unknown key or an impossible value.

    >>> trimoe.choose(stats, recipe="nonsense")
    Traceback (most recent call last):
        ...
    trimoe.errors.RecipeError: unknown recipe nonsense
    """


class CalibrationError(BadInput):
    """A calibration set that cannot be used.

    >>> trimoe.calibrate(model, "nothing.yaml", out="other.safetensors")
    Traceback (most recent call last):
        ...
    trimoe.errors.CalibrationError: calibration set nothing.yaml not found
    """


class BenchError(BadInput):
    """A bench spec with an unknown key, or benchmark rows that are not the expected ones.

    >>> trimoe.evaluate(model, bench="nonsense.toml", log="runs.db")
    Traceback (most recent call last):
        ...
    trimoe.errors.BenchError: bench nonsense.toml
    """


class RunLogError(BadInput):
    """A run log that is damaged or belongs to another run.

    >>> trimoe.compare("nothing.db")
    Traceback (most recent call last):
        ...
    trimoe.errors.RunLogError: run log nothing.db not found
    """


class MissingPrerequisite(TrimoeError):
    """An extra, a tool, memory or disk space is missing.

    >>> trimoe.calibrate(model, "tasks.yaml", out="other.safetensors", ram=1000)
    Traceback (most recent call last):
        ...
    trimoe.errors.MissingPrerequisite: memory
    """

    exit_code = 4


class Refused(TrimoeError):
    """A check stopped the work because the result could not be trusted.

    >>> from trimoe.sandbox import Policy
    >>> Policy("none")
    Traceback (most recent call last):
        ...
    trimoe.errors.Refused: generated code is not run without a sandbox
    """

    exit_code = 5


class Interrupted(TrimoeError):
    """Stopped by the user. The same call resumes.

    >>> def stop(done, total, text):
    ...     raise KeyboardInterrupt
    >>> trimoe.calibrate(model, "tasks.yaml", out="other.safetensors", progress=stop)
    Traceback (most recent call last):
        ...
    trimoe.errors.Interrupted: calibration stopped: 0 of 4 layers are finished and kept
    """

    exit_code = 6


# What errors of the operating system mean, by their numbers: the subject and the remedy.
_MISSING: dict[tuple[int, ...], tuple[str, str]] = {
    (errno.ENOSPC, errno.EDQUOT): (
        "no space left on the disk",
        "free some space (for temporary files, set TMPDIR to a folder with space) and run the command again",
    ),
    (errno.EFBIG,): (
        "a file is larger than the file system or a limit allows",
        "choose a place on another file system, or raise the limit (ulimit -f)",
    ),
    (errno.EMFILE, errno.ENFILE): ("too many open files", "raise the limit (ulimit -n) and run the command again"),
    (errno.ENOMEM,): ("not enough memory", "close other programs or choose a smaller job, and run the command again"),
    (errno.EAGAIN,): ("the system can start no more processes", "close other programs, or raise the limit (ulimit -u)"),
    (errno.EIO,): ("the disk failed to read or write", "check the disk (dmesg), and run the command on another one"),
    (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH): (
        "a network connection failed",
        "check the address and the network, and run the command again",
    ),
}
_BAD: dict[tuple[int, ...], tuple[str, str]] = {
    (errno.EROFS,): ("the file system is read-only", "choose an output on another file system"),
    (errno.EACCES, errno.EPERM): ("a file may not be used", "check the path and its permissions"),
    (errno.ENOENT, errno.ENOTDIR): ("a file or folder is missing", "check the path"),
    (errno.EISDIR,): ("a folder stands where a file is needed", "check the path"),
    (errno.EEXIST, errno.ENOTEMPTY): ("a file is already there", "choose another path, or remove it first"),
    (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL): (
        "the file system cannot hold this name or access",
        "choose a shorter name of plain letters, on another file system if that does not help",
    ),
    (errno.ELOOP,): ("symbolic links form a circle", "correct the links"),
    (errno.EBUSY, errno.ETXTBSY): ("a file is in use", "end the program that uses it, and run the command again"),
    (errno.EXDEV,): ("a file cannot be moved between file systems", "choose an output beside its temporary files"),
}
# How libraries in other languages report errors of the operating system: Rust's io::Error.
_RUST = re.compile(r"\(os error (\d{1,4})\)|Os \{ code: (\d{1,4})")


def machine_failure(exc: BaseException) -> TrimoeError | None:
    """What a failure of the machine means, as an error with a remedy; None for any other exception.

    Covers errors of the operating system, memory, and libraries that pass such an error on as their own.
    """
    for one in _causes(exc):
        if isinstance(one, MemoryError):
            return _described((errno.ENOMEM, str(one) or "out of memory", ""))
        if isinstance(one, OSError):
            return _described((one.errno or 0, one.strerror or str(one), _names(one)))
        if (found := _RUST.search(str(one))) is not None:
            return _described((int(found[1] or found[2]), str(one)[:200], ""))
    return None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = exc
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__


def _names(exc: OSError) -> str:
    return " and ".join(str(name) for name in (exc.filename, exc.filename2) if name is not None)


def _described(what: tuple[int, str, str]) -> TrimoeError:
    number, said, names = what
    tables: tuple[tuple[type[TrimoeError], dict[tuple[int, ...], tuple[str, str]]], ...] = (
        (MissingPrerequisite, _MISSING),
        (BadInput, _BAD),
    )
    for kind, table in tables:
        for numbers, (subject, remedy) in table.items():
            if number in numbers:
                return kind(f"{subject}: {names}" if names else subject, actual=said, remedy=remedy)
    return MissingPrerequisite(
        f"the operating system refused: {names}" if names else "the operating system refused",
        actual=said,
        remedy="check the free space, the permissions and the disk, and run the command again",
    )
