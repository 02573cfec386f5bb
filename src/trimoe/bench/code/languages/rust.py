"""Rust: a debug build with rustc and without cargo, as in MultiPL-E, whose edition is rustc's default, 2015.

Many models write for the edition of 2021: a program that 2015 refuses is compiled again as 2021.
"""

import re
import shlex
import shutil

from trimoe.bench.code.languages._language import Language, Toolchain, asked, before_last
from trimoe.bench.code.languages._scan import Syntax, bare, inner, items, parameters

# Comments, raw strings, strings and character literals; lifetimes ('a) are none of these.
SYNTAX = Syntax(
    re.compile(
        r"""//[^\n]*|/\*(?:.*?\*/|.*\Z)|\bb?r(?P<hashes>\#*)"(?:.*?"(?P=hashes)|.*\Z)|"(?:\\.|[^"\\])*+"?"""
        r"""|'(?:\\[^'\n]{1,12}|[^'\\\n])'""",
        re.DOTALL,
    )
)
_FUNCTION = r"\s*(?:\#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?(?:(?:const|async|unsafe)\s+)*fn\s+{}\b"
_INNER_ATTRIBUTE = re.compile(r"^[ \t]*\#!\[[^\]\n]*\][ \t]*$", re.MULTILINE)


def _find() -> Toolchain | None:
    # By its system root: a rustup proxy would need a home folder.
    root = asked("rustc", "--print", "sysroot")
    if root is None or shutil.which("cc") is None:
        return None
    version = asked(f"{root}/bin/rustc", "--version")
    if version is None:
        return None
    rustc = f"{shlex.quote(root)}/bin/rustc -Awarnings -Cdebuginfo=0 -o program main.rs"
    build = "/bin/sh", "-c", f"{rustc} --edition=2015 2>/dev/null || exec {rustc} --edition=2021"
    return Toolchain(version, (build, ("./program",)), () if root == "/usr" else (root,))


def _with_end(tests: str, token: str) -> str:
    """Use the assertion macro by its full path, which a macro of the candidate cannot shadow."""
    return before_last(tests.replace(" assert_eq!(", " ::std::assert_eq!("), "}", 1, f'    println!("\\n{token}");')


def _defines(source: str, name: str) -> bool:
    return re.search(rf"\bfn\s+{re.escape(name)}\s*[<(]", source) is not None


def _complete(block: str, prompt: str, name: str) -> str | None:
    """The items of the block without `main`, then the function without its last brace, which the tests contain."""
    parts = items(_INNER_ATTRIBUTE.sub("", block), SYNTAX)
    headers = [bare(part, SYNTAX) for part in parts]
    found = [place for place, header in enumerate(headers) if re.match(_FUNCTION.format(re.escape(name)), header)]
    function = inner(parts[found[-1]], SYNTAX) if found else None
    if function is None:
        return None
    kept = [
        part
        for place, (part, header) in enumerate(zip(parts, headers, strict=True))
        if place not in found and not re.match(_FUNCTION.format("main"), header)
    ]
    given = items(prompt.rstrip().rpartition("\n")[0], SYNTAX)
    uses = [one for one in given if re.match(r"\s*use\s", bare(one, SYNTAX)) and not _imported(one, kept)]
    return "".join([*uses, *kept, f"\n{_header(function[0], prompt, name)}{{{function[1]}"])


def _imported(use: str, kept: list[str]) -> bool:
    """Whether the block itself imports the last name of a `use` item of the prompt."""
    last = re.search(r"(\w+)\s*;\s*$", use)
    return last is not None and any(re.search(rf"\buse\b[^;]*\b{last[1]}\b", bare(part, SYNTAX)) for part in kept)


def _header(own: str, prompt: str, name: str) -> str:
    """The function's own header, or the prompt's if only that has the types of the tests."""
    asked_for = prompt.rstrip().rpartition("\n")[2].rstrip().removesuffix("{")
    code = bare(own, SYNTAX)

    def names(header: str) -> list[str]:
        return [one.partition(":")[0].removeprefix("mut ").strip() for one in parameters(header, name)]

    def plain(header: str) -> str:
        return re.sub(r"\bmut\s|\bpub\s|\s", "", header[header.find("fn") :])

    return own if plain(code) == plain(asked_for) or names(code) != names(asked_for) else asked_for


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
    syntax=SYNTAX,
    defines=_defines,
    complete=_complete,
)
