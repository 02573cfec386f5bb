"""The processes of a Python sample: the candidate, the checker that calls it, and the comparison of its results.

The candidate runs generated source and answers calls. It receives arguments, never expected values, and runs in another
process and namespace than the tests. It therefore cannot influence the verdict by overloading equality, patching the
checker, exiting early, printing, or reading the tests: whatever it sends only counts as the value of a call. The
checker runs a data set's own test code with proxies for the candidate's functions.

Messages are single lines of JSON (`wire`).
"""

import builtins
import hashlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from trimoe.sandbox.inside import compare, wire

_FLUSH_SECONDS, _FLUSH_BYTES = 0.02, 1 << 16
_LONGEST_LINE = 16 << 20
_LONGEST_TEXT = 300  # of an exception's message


def candidate_calls(job: dict[str, Any], out: int) -> NoReturn:
    """Run the source, then one call per argument list. Writes one line per result; stops at the first exception.

    A result longer than `digest_over` bytes is replaced by its SHA-256.
    """
    write, longest = _Writer(out), job["digest_over"]
    try:
        entry = _load(job["source"], job["entry"])
    except BaseException as exc:  # noqa: BLE001 generated code may raise anything, even SystemExit
        write({"load": _told(exc)})
        _leave(write)
    for encoded in job["args"]:
        try:
            line = wire.dumps({"value": wire.encode(entry(*wire.decode(encoded)))})
            write.line(line if len(line) <= longest else wire.dumps({"digest": hashlib.sha256(line).hexdigest()}))
        except BaseException as exc:  # noqa: BLE001
            write({"raised": _told(exc)})
            break
        write.flush_if_due()
    _leave(write)


def compares(job: dict[str, Any], out: int) -> NoReturn:
    """Compare results with expected values by a rule. Writes one line per pair; stops at the first difference.

    Results are hostile. Whatever they do to this process, its limits end it, and that is the candidate's verdict.
    """
    write, rule = _Writer(out), compare.RULES[job["rule"]]
    for result, expected, setting in zip(job["results"], job["expected"], job["settings"], strict=True):
        due = wire.decode(json.loads(expected.encode("latin-1"))["value"])
        try:
            found = wire.decode(json.loads(result.encode("latin-1"))["value"])
            alike = rule(found, due, setting)
            line = {"same": True} if alike else {"same": False, "shown": [compare.shown(found), compare.shown(due)]}
        except (ValueError, KeyError, TypeError, RecursionError, MemoryError) as exc:
            line = {"same": False, "unreadable": f"{type(exc).__name__}: {exc}"[:_LONGEST_TEXT]}
        write(line)
        write.flush_if_due()
        if not line["same"]:
            break
    _leave(write)


def candidate_serves(job: dict[str, Any], asked: int, answer: int) -> NoReturn:
    """Run the source, then answer the checker's requests until it closes its pipe."""
    write, lines = _Writer(answer), _Lines(asked)
    held: list[object] = []

    def hold(value: object) -> wire.Encoded:
        held.append(value)
        return {"$": ["ref", len(held) - 1]}

    try:
        space = _run(job["source"])
    except BaseException as exc:  # noqa: BLE001
        write({"load": _told(exc)})
        _leave(write)
    while (line := lines.read()) is not None:
        try:
            request = json.loads(line)
            target = eval(request["name"], space) if "name" in request else held[request["ref"]]
            arguments = wire.decode(request["args"], held.__getitem__)
            reply: dict[str, Any] = {"value": wire.encode(_OPERATIONS[request["do"]](target, *arguments), hold)}
        except BaseException as exc:  # noqa: BLE001
            reply = {"raised": _told(exc)}
        write(reply)
        write.flush()
    _leave(write)


def _call(target: Any, *arguments: Any) -> Any:
    return target(*arguments)


_OPERATIONS: dict[str, Callable[..., Any]] = {"call": _call, "get": getattr, "set": setattr}


def check(job: dict[str, Any], answered: int, ask: int, out: int) -> NoReturn:
    """Run `setup` and `tests` of a data set against the candidate; writes one line with verdict and detail.

    `names` are the candidate's names that the tests may use. Verdicts: ok; wrong (a failed assertion of the tests, or a
    value they cannot handle); raised (by the candidate, with the exception type first); lost (the candidate closed its
    pipe); fault (the data set's own code failed, which is the harness's fault).
    """
    remote = Candidate(answered, ask)
    try:
        space = types.ModuleType("tests").__dict__
        exec(compile(job["setup"], "setup.py", "exec"), space)
        for name in job["names"]:
            space[name] = Remote(remote, name=name)
        tests = compile(job["tests"], "tests.py", "exec")
    except BaseException as exc:  # noqa: BLE001 SystemExit of the data set's code is a harness fault, too
        _verdict(out, "fault", f"{type(exc).__name__}: {exc}")
    try:
        exec(tests, space)
    except Lost as exc:
        _verdict(out, "lost", str(exc))
    except BaseException as exc:  # noqa: BLE001
        if isinstance(exc, Raised):
            _verdict(out, "raised", f"{exc.told}: {exc}")
        _verdict(out, "wrong", _where(exc))
    _verdict(out, "ok", "")


class Raised(Exception):
    """Mixed into exceptions of the candidate, to distinguish them from the tests' own assertions."""

    told = "Exception"


class Lost(BaseException):
    """The candidate closed its pipe or sent malformed messages. Not an Exception, so that tests cannot catch it."""


class Candidate:
    """The checker's connection to the candidate: its ends of the two pipes."""

    def __init__(self, answered: int, ask: int) -> None:
        self._write, self._lines = _Writer(ask), _Lines(answered)

    def ask(self, request: dict[str, Any], arguments: tuple[object, ...]) -> Any:
        """Returns the value of an operation, or raises what it raised. Raises `Lost` if no valid answer comes."""
        request["args"] = wire.encode(list(arguments), _reference)
        with suppress(OSError):  # it may have exited after an answer that is still in the pipe
            self._write(request)
            self._write.flush()
        try:
            line = self._lines.read()
            answer: Any = json.loads(line) if line is not None else None
            if isinstance(answer, dict) and answer.keys() == {"value"}:
                return wire.decode(answer["value"], lambda number: Remote(self, ref=int(number)))
            (told,) = answer.values()
            kind, text = map(str, told)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as exc:
            raise Lost(f"the candidate ended or answered nonsense ({type(exc).__name__})") from exc
        raise _exception(kind)(text)


def _exception(kind: str) -> type[Exception]:
    """The built-in exception of that name, or `Exception`, marked as raised by the candidate."""
    base = getattr(builtins, kind, Exception)
    if not (isinstance(base, type) and issubclass(base, Exception)) or base is StopIteration:
        base = Exception
    with suppress(TypeError):  # incompatible instance layouts
        own = {"told": kind, "__init__": Exception.__init__, "__str__": lambda self: str(self.args[0])}
        return type(kind, (Raised, base), own)
    return type(kind, (Raised,), {"told": kind})


class Remote:
    """A proxy for a function or object of the candidate. Equal only to itself, so overloaded equality has no effect."""

    def __init__(self, candidate: Candidate, **where: Any) -> None:
        self.__dict__["_at"] = (candidate, where)

    def __call__(self, *arguments: object) -> Any:
        """Call it in the candidate."""
        candidate, where = self._at
        return candidate.ask({"do": "call", **where}, arguments)

    def __getattr__(self, name: str) -> Any:
        """Read an attribute in the candidate. Special names are not looked up."""
        if name.startswith("__"):
            raise AttributeError(name)
        candidate, where = self._at
        return candidate.ask({"do": "get", **where}, (name,))

    def __setattr__(self, name: str, value: object) -> None:
        candidate, where = self._at
        candidate.ask({"do": "set", **where}, (name, value))


def _reference(value: object) -> wire.Encoded:
    if isinstance(value, Remote) and "ref" in value._at[1]:
        return {"$": ["ref", value._at[1]["ref"]]}
    raise wire.Unencodable(f"the tests pass a value of type {type(value).__name__}, which cannot travel")


def _run(source: str) -> dict[str, Any]:
    """Execute generated source as a module in sys.modules, where dataclasses look it up."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    exec(compile(source, "candidate.py", "exec"), module.__dict__)
    return module.__dict__


def _load(source: str, entry: str) -> Callable[..., Any]:
    function: Callable[..., Any] = eval(entry, _run(source))
    return function


def _told(exc: BaseException) -> list[str]:
    """Type and message of an exception. `str` runs the candidate's code and may raise itself."""
    name = type(exc).__name__
    try:
        return [name, str(exc)[:_LONGEST_TEXT]]
    except BaseException:  # noqa: BLE001
        return [name, "unprintable"]


def _where(exc: BaseException) -> str:
    """The number of the failing line of the tests, and the shortened exception."""
    place, at = exc.__traceback__, 0
    while place is not None:
        if place.tb_frame.f_code.co_filename == "tests.py":
            at = place.tb_lineno
        place = place.tb_next
    return f"tests, line {at}: {type(exc).__name__} {str(exc)[:_LONGEST_TEXT]}".rstrip()


def _verdict(out: int, verdict: str, detail: str) -> NoReturn:
    write = _Writer(out)
    write({"verdict": verdict, "detail": detail[: 2 * _LONGEST_TEXT]})
    _leave(write)


def _leave(write: "_Writer") -> NoReturn:
    """Exit at once, without atexit handlers, destructors, or flushing the candidate's buffers."""
    with suppress(OSError):
        write.flush()
    os._exit(0)


class _Writer:
    """Writes lines to a descriptor in few system calls."""

    def __init__(self, fd: int) -> None:
        self._fd, self._pending, self._flushed = fd, bytearray(), time.monotonic()

    def __call__(self, message: dict[str, Any]) -> None:
        self.line(wire.dumps(message))

    def line(self, text: bytes) -> None:
        """Append one encoded message."""
        self._pending += text + b"\n"

    def flush_if_due(self) -> None:
        """Flush at least every 20 ms of progress, so that the worker sees it."""
        if len(self._pending) > _FLUSH_BYTES or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write everything. Raises `OSError` if the other end is closed."""
        view = memoryview(self._pending)
        while view:
            view = view[os.write(self._fd, view) :]
        view.release()
        self._pending, self._flushed = bytearray(), time.monotonic()


class _Lines:
    """Reads lines from a descriptor; None at its end. Raises `ValueError` for a line of more than 16 MiB."""

    def __init__(self, fd: int) -> None:
        self._fd, self._data = fd, bytearray()

    def read(self) -> bytes | None:
        """The next line without its line break."""
        start = 0
        while (at := self._data.find(b"\n", start)) < 0:
            start = len(self._data)
            if start > _LONGEST_LINE:
                raise ValueError("a line of more than 16 MiB")
            block = os.read(self._fd, 1 << 20)
            if not block:
                return None
            self._data += block
        line = bytes(self._data[:at])
        del self._data[: at + 1]
        return line
