"""Java: javac and java with assertions enabled. MultiPL-E's prompts use the library javatuples."""

import os
import re
from pathlib import Path

from trimoe.bench.code.languages._language import Language, Toolchain, asked, before_last, real
from trimoe.bench.code.languages._scan import Syntax, bare, inner, items, parameters, renamed

# Comments, text blocks, strings and character literals.
SYNTAX = Syntax(
    re.compile(
        r"""//[^\n]*|/\*(?:.*?\*/|.*\Z)|\"{3}(?:(?:\\.|(?!"{3}).)*+(?:"{3})?)|"(?:\\.|[^"\\\n])*+"?"""
        r"""|'(?:\\[^'\n]{1,12}|[^'\\\n])'""",
        re.DOTALL,
    )
)
CLASS = "Problem"  # the class that the tests close
_METHOD = r"[\w>\]]\s+{}\s*\([^(){{}}]{{0,500}}\)\s*(?:throws\s[\w.,\s]{{1,200}})?\{{"
_TYPE = re.compile(
    r"(?:\s|@\w+\s|(?:public|final|abstract|static|sealed|strictfp)\s)*(class|interface|enum|record)\s+(\w+)"
)

# The locations in Debian's package and in MultiPL-E's container.
_JARS = ("/usr/share/java/javatuples.jar", "/usr/multiple/javatuples-1.2.jar")


def javatuples() -> str | None:
    """The path of javatuples.jar: TRIMOE_JAVATUPLES, or one of the usual places."""
    places = (os.environ.get("TRIMOE_JAVATUPLES"), *_JARS)
    return next((os.path.realpath(place) for place in places if place and Path(place).is_file()), None)


def _find() -> Toolchain | None:
    compiler, jar = real("javac"), javatuples()
    version = asked(compiler, "-version") if compiler else None
    if compiler is None or jar is None or version is None:
        return None
    home = Path(compiler).parents[1]
    # Debian keeps parts of a JDK in /etc, behind links.
    parts = [os.path.realpath(part) for part in (home / "lib" / "jvm.cfg", *(home / "conf").glob("*"))]
    elsewhere = {os.path.dirname(part) for part in parts if not part.startswith(f"{home}/")}
    quiet = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto")
    build = (
        compiler,
        *(f"-J{flag}" for flag in (*quiet, "-XX:TieredStopAtLevel=1")),
        "-encoding",
        "UTF8",
        "-nowarn",
        "-cp",
        jar,
        "-d",
        ".",
        "Problem.java",
    )
    run = (str(home / "bin" / "java"), *quiet, "-Xmx1g", "-ea", "-cp", f".:{jar}", "Problem")
    return Toolchain(version, (build, run), (str(home), jar, *sorted(elsewhere)))


def _has(code: str, name: str) -> bool:
    return re.search(_METHOD.format(re.escape(name)), code) is not None


def _complete(block: str, prompt: str, name: str) -> str | None:
    """Imports, other types, then the class with its members but `main`, then the method without its last brace.

    The class may have another name, or be missing: then the items of the block are its members.
    """
    parts = [(part, bare(part, SYNTAX)) for part in items(block, SYNTAX)]
    imports = [part for part, code in parts if re.match(r"\s*import\s", code)]
    rest = [(part, code) for part, code in parts if not re.match(r"\s*(?:import|package)\s", code)]
    types = [(part, kind) for part, code in rest if (kind := _TYPE.match(code))]
    holders = [
        (part, kind[2], body)
        for part, kind in types
        if kind[1] == "class" and (body := inner(part, SYNTAX)) and _method(items(body[1], SYNTAX), name) is not None
    ]
    if holders:
        whole, old, (header, text) = holders[-1]
        others = [part for part, _ in types if part is not whole]
        members = items(text, SYNTAX)
    else:
        old, header, others = CLASS, f"class {CLASS} ", [part for part, _ in types]
        members = [part for part, code in rest if not _TYPE.match(code)]
    place = _method(members, name)
    method = inner(members[place], SYNTAX) if place is not None else None
    if place is None or method is None:
        return None
    kept = [one for i, one in enumerate(members) if i != place and not _has(bare(one, SYNTAX), "main")]
    own = renamed("".join([*map(_beside, others), f"{_class(header)}{{", *kept]), SYNTAX, old, CLASS)
    after = renamed(method[1], SYNTAX, old, CLASS)
    return f"{_imports(prompt, imports)}{own}\n{_header(method[0], prompt, name)}{{{after}"


def _method(members: list[str], name: str) -> int | None:
    """The place of the last member that is the method itself, not a type that contains it."""
    codes = [bare(member, SYNTAX) for member in members]
    own = [i for i, code in enumerate(codes) if not _TYPE.match(code) and _has(code[: code.find("{") + 1], name)]
    return own[-1] if own else None


def _beside(other: str) -> str:
    """Another type of the block, without a main and without `public`, which only the type of the file may have."""
    body = inner(other, SYNTAX)
    if body is None:
        return other
    members = items(body[1], SYNTAX)
    kept = [member for member in members if not _has(bare(member, SYNTAX), "main")]
    if len(kept) < len(members) and not "".join(kept).strip():
        return ""  # a class only for its main
    return f"{_class(body[0])}{{{''.join(kept)}}}"


def _class(header: str) -> str:
    return renamed(header, SYNTAX, "public", "")


def _imports(prompt: str, own: list[str]) -> str:
    """The prompt's imports, then those of the block that it does not repeat."""
    given = [part.strip() for part in items(prompt, SYNTAX) if part.lstrip().startswith("import ")]
    return "\n".join([*given, *(one.strip() for one in own if " ".join(one.split()) not in given)]) + "\n"


def _header(own: str, prompt: str, name: str) -> str:
    """The method's own header, or the prompt's if only that has the types of the tests; always static."""
    asked_for = prompt.rstrip().rpartition("\n")[2].rstrip().removesuffix("{")
    code = bare(own, SYNTAX)

    def names(header: str) -> list[str]:
        return [one.split()[-1] for one in parameters(header, name)]

    def plain(header: str) -> str:
        return re.sub(r"\b(?:final|public|private|protected|static)\s|\s", "", header)

    if plain(code) != plain(asked_for) and names(code) == names(asked_for):
        return asked_for
    at = len(code) - len(code.lstrip())
    return own if re.search(r"\bstatic\b", code) else f"{own[:at]}static {own[at:]}"


LANGUAGE = Language(
    key="java",
    name="Java",
    file="Problem.java",
    commands=2,
    needs="a JDK and the library javatuples",
    install="apt install default-jdk-headless libjavatuples-java",
    find=_find,
    with_end=lambda tests, token: before_last(tests, "}", 2, f'    System.out.println("\\n{token}");'),
    failed_test=re.compile(r"java\.lang\.AssertionError"),
    out_of_memory=re.compile(r"java\.lang\.OutOfMemoryError"),
    syntax=SYNTAX,
    defines=_has,
    complete=_complete,
)
