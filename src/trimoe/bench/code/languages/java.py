"""Java: javac and java with assertions enabled. MultiPL-E's prompts use the library javatuples."""

import os
import re
from pathlib import Path

from trimoe.bench.code.languages._language import Language, Toolchain, asked, before_last, real

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
)
