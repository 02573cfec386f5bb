"""What the processes of a Python sample do: the candidate, and the checker that questions it.

The candidate runs generated source and answers calls; it is given arguments, never expected values, and lives in
another process (and namespace) than the tests. So a verdict cannot be reached by overloading equality, patching the
checker, leaving early, printing something, or reading the tests: whatever the candidate sends is only taken as the
value of a call. The checker runs a dataset's own test code with stand-ins for the candidate's functions.

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

from trimoe.sandbox.inside import wire

_FLUSH_SECONDS, _FLUSH_BYTES = 0.02, 1 << 16
_LONGEST_LINE = 16 << 20
_LONGEST_TEXT = 300  # of an exception's message


def candidate_calls(job: dict[str, Any], out: int) -> NoReturn:
    """Run the source, then one call per argument list; writes a line per result and stops at the first exception.

    A result longer than `digest_over` bytes is replaced by its hash.
    """
    write, longest = _Writer(out), job["digest_over"]
    try:
        entry = _load(job["source"], job["entry"])
    except BaseException as exc:  # noqa: BLE001 generated code may raise anything, SystemExit too
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


def candidate_serves(job: dict[str, Any], asked: int, answer: int) -> NoReturn:
    """Run the source, then answer the checker's requests until it hangs up."""
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
    """Run `setup` and `tests` of a dataset against the candidate; writes one line: verdict and detail.

    `names` are the names of the candidate that the tests may use. Verdicts: ok; wrong (an assertion of the tests, or a
    value they cannot work with); raised (by the candidate, with its type first); lost (it hung up); fault (the
    dataset's own code failed: ours).
    """
    remote = Candidate(answered, ask)
    try:
        space = types.ModuleType("tests").__dict__
        exec(compile(job["setup"], "setup.py", "exec"), space)
        for name in job["names"]:
            space[name] = Remote(remote, name=name)
        tests = compile(job["tests"], "tests.py", "exec")
    except BaseException as exc:  # noqa: BLE001 SystemExit of a dataset's code would be our fault too
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
    """Mixed into what the candidate raised, so that a test's own assertion is told from the candidate's."""

    told = "Exception"


class Lost(BaseException):
    """The candidate hung up or talks nonsense. Not an Exception: a test must not catch it."""


class Candidate:
    """The checker's ends of the two pipes."""

    def __init__(self, answered: int, ask: int) -> None:
        self._write, self._lines = _Writer(ask), _Lines(answered)

    def ask(self, request: dict[str, Any], arguments: tuple[object, ...]) -> Any:
        """The value of an operation, or the exception it raised."""
        request["args"] = wire.encode(list(arguments), _reference)
        with suppress(OSError):  # it may have ended after an answer that still lies in the pipe
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
    """The built-in exception of that name, or a plain one, marked as the candidate's."""
    base = getattr(builtins, kind, Exception)
    if not (isinstance(base, type) and issubclass(base, Exception)) or base is StopIteration:
        base = Exception
    with suppress(TypeError):  # a layout that does not mix
        own = {"told": kind, "__init__": Exception.__init__, "__str__": lambda self: str(self.args[0])}
        return type(kind, (Raised, base), own)
    return type(kind, (Raised,), {"told": kind})


class Remote:
    """A function or object of the candidate. Equal only to itself, so an overloaded equality stays where it is."""

    def __init__(self, candidate: Candidate, **where: Any) -> None:
        self.__dict__["_at"] = (candidate, where)

    def __call__(self, *arguments: object) -> Any:
        """Call it over there."""
        candidate, where = self._at
        return candidate.ask({"do": "call", **where}, arguments)

    def __getattr__(self, name: str) -> Any:
        """Read an attribute over there; special names are not looked up."""
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
    """Execute generated source as a module that can be found (dataclasses look it up)."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    exec(compile(source, "candidate.py", "exec"), module.__dict__)
    return module.__dict__


def _load(source: str, entry: str) -> Callable[..., Any]:
    function: Callable[..., Any] = eval(entry, _run(source))
    return function


def _told(exc: BaseException) -> list[str]:
    """Type and message; the message is the candidate's own code and may raise."""
    name = type(exc).__name__
    try:
        return [name, str(exc)[:_LONGEST_TEXT]]
    except BaseException:  # noqa: BLE001
        return [name, "unprintable"]


def _where(exc: BaseException) -> str:
    """The failing line of the tests, shortened, and what went wrong there."""
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
    """End at once: no atexit handler, no destructor, no flushing of what the candidate left in buffers."""
    with suppress(OSError):
        write.flush()
    os._exit(0)


class _Writer:
    """Lines to a descriptor, in few system calls."""

    def __init__(self, fd: int) -> None:
        self._fd, self._pending, self._flushed = fd, bytearray(), time.monotonic()

    def __call__(self, message: dict[str, Any]) -> None:
        self.line(wire.dumps(message))

    def line(self, text: bytes) -> None:
        """One message that is text already."""
        self._pending += text + b"\n"

    def flush_if_due(self) -> None:
        """So that whoever watches sees progress at least every 20 ms of it."""
        if len(self._pending) > _FLUSH_BYTES or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write everything. Raises `OSError` when nobody listens."""
        view = memoryview(self._pending)
        while view:
            view = view[os.write(self._fd, view) :]
        view.release()
        self._pending, self._flushed = bytearray(), time.monotonic()


class _Lines:
    """Lines from a descriptor; None at its end. `ValueError` when a line is too long to be honest."""

    def __init__(self, fd: int) -> None:
        self._fd, self._data = fd, bytearray()

    def read(self) -> bytes | None:
        """The next line without its end."""
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
