"""Rust: a debug build with rustc and without cargo, as in MultiPL-E."""

import re
import shutil

from trimoe.bench.code.languages._language import Language, Toolchain, asked, before_last


def _find() -> Toolchain | None:
    # By its system root: a rustup proxy would need a home folder.
    root = asked("rustc", "--print", "sysroot")
    if root is None or shutil.which("cc") is None:
        return None
    version = asked(f"{root}/bin/rustc", "--version")
    if version is None:
        return None
    build = (f"{root}/bin/rustc", "--edition=2021", "-Awarnings", "-Cdebuginfo=0", "-o", "program", "main.rs")
    return Toolchain(version, (build, ("./program",)), () if root == "/usr" else (root,))


def _with_end(tests: str, token: str) -> str:
    """Use the assertion macro by its full path, which a macro of the candidate cannot shadow."""
    return before_last(tests.replace(" assert_eq!(", " ::std::assert_eq!("), "}", 1, f'    println!("\\n{token}");')


LANGUAGE = Language(
    key="rs",
    name="Rust",
    file="main.rs",
    commands=2,
    needs="rustc, and cc to link with",
    install="apt install rustc gcc, or rustup",
    find=_find,
    with_end=_with_end,
    failed_test=re.compile(r"panicked at [^\n]*\n?[^\n]*assertion "),
    out_of_memory=re.compile(r"memory allocation of \d+ bytes failed"),
)
