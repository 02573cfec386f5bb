"""The filter as a program: run by an interpreter of classic BPF, for both processors, against the system's numbers."""

import errno
import re
from pathlib import Path

import pytest

from trimoe.sandbox.inside import seccomp

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000


def decide(machine: str, number: int, *args: int, architecture: int | None = None) -> int:
    """What the filter returns for a call."""
    words = {0: number, 4: ARCHITECTURE[machine] if architecture is None else architecture}
    for i, arg in enumerate((*args, *[0] * (6 - len(args)))):
        words |= {16 + 8 * i: arg & 0xFFFFFFFF, 20 + 8 * i: arg >> 32}
    lines, at, accumulator = seccomp.program(machine), 0, 0
    while True:
        code, yes, no, operand = lines[at]
        at += 1
        if code == 0x20:
            accumulator = words[operand]
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x45: bool(accumulator & operand)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_decisions(machine: str) -> None:
    x86 = machine == "x86_64"
    clone, socket, ioctl, read = (56, 41, 16, 0) if x86 else (220, 198, 29, 63)
    refused, absent = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    assert decide(machine, read) == ALLOW
    assert decide(machine, read, architecture=0x40000003) == KILL  # 32 bit calls have other numbers
    assert decide(machine, 0x40000000) == decide(machine, 451) == decide(machine, 435) == absent
    assert decide(machine, clone, 17) == decide(machine, clone, 0x3D0F00) == ALLOW  # fork, a thread
    for space in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(machine, clone, space | 17) == refused
    assert decide(machine, socket, 1, 1) == ALLOW
    for family in (0, 2, 10, 16, 17, 40, (1 << 32) | 2):
        assert decide(machine, socket, family, 1) == 0x50000 | errno.EACCES
    assert decide(machine, ioctl, 0, 0x5401) == ALLOW
    assert decide(machine, ioctl, 0, 0x5412) == decide(machine, ioctl, 0, 0x541C) == refused


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_every_refused_call_is_refused_and_jumps_stay_inside(machine: str) -> None:
    column = list(ARCHITECTURE).index(machine)
    for name, numbers in seccomp._REFUSED.items():
        if (number := numbers[column]) is not None:
            assert decide(machine, number) == 0x50000 | errno.EPERM, name
    lines = seccomp.program(machine)
    assert all(at + max(yes, no) + 1 < len(lines) for at, (code, yes, no, _) in enumerate(lines) if code & 7 == 5)
    assert len(lines) < 4096


@pytest.mark.parametrize(
    ("machine", "header", "prefix"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "__NR_"),
        ("aarch64", "/usr/include/asm-generic/unistd.h", "__NR(?:3264)?_"),
    ],
)
def test_numbers_are_those_of_the_kernel_s_headers(machine: str, header: str, prefix: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed (package linux-libc-dev)")
    known = {name: int(n) for name, n in re.findall(rf"#define {prefix}(\w+) (\d+)", Path(header).read_text())}
    column = list(ARCHITECTURE).index(machine)
    checked = [name for name, numbers in seccomp._REFUSED.items() if numbers[column] is not None and name in known]
    assert len(checked) > 60
    assert {name: known[name] for name in checked} == {name: seccomp._REFUSED[name][column] for name in checked}


def test_an_unknown_processor_has_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp.program("riscv64")
