"""JavaScript: one file for node. The assertion library is frozen before the candidate runs."""

import re
from pathlib import Path

from trimoe.bench.code.languages._language import Language, Toolchain, asked, real
from trimoe.bench.code.languages._scan import Syntax, bare, items

# Comments, strings, templates, and regular expressions where a value may begin.
SYNTAX = Syntax(
    re.compile(
        r"""//[^\n]*|/\*(?:.*?\*/|.*\Z)|"(?:\\.|[^"\\\n])*+"?|'(?:\\.|[^'\\\n])*+'?|`(?:\\.|[^`\\])*+`?"""
        r"""|(?<=[=(,:\[!&|?{};])[ ]?/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*+\]|[^/\\\n\[])++/[a-z]{0,8}""",
        re.DOTALL,
    ),
    line_ends=True,
)
_DEFINITION = r"(?:\bfunction\b\s*\*?\s*{0}\s*\(|\b(?:(?:const|let|var)\s+)?{0}\s*=(?![=>]))"
_CALL = (
    r"\s*(?:await\s+)?(?:console\.|assert\b|process\.|module\.exports\b|exports\.|(?:main|test|describe|it|{})\s*\()"
)
_MAIN = r"\s*(?:if\s*\(\s*require\.main\b|(?:async\s+)?function\s+main\s*\()"
_AT_ONCE = r"\s*[(!]"  # a function that is called where it stands: usage
# Names that the tests declare themselves: a second declaration would be a syntax error.
_TAKEN = r"\s*(?:const|let|class)\s+(?:assert|test)\b"
_IMPORT = re.compile(
    r"^(?P<before>\s*)import\s+(?P<names>\{[^{}]{0,500}\}|\*\s+as\s+\w{1,80}|\w{1,80})\s+from\s+(?P<module>'[^'\n]+'|\"[^\"\n]+\")"
)
_EXPORT = re.compile(r"^(\s*)export\s+(?:default\s+)?(?=(?:async\s+)?(?:function|const|let|var|class)\b)")


def _find() -> Toolchain | None:
    node = real("node")
    version = asked(node, "--version") if node else None
    if node is None or version is None:
        return None
    run = (node, "--max-old-space-size=1024", "--require", "./frozen.js", "program.js")
    return Toolchain(f"node {version}", (run,), (str(Path(node).parents[1]),))


def _defines(source: str, name: str) -> bool:
    return re.search(_DEFINITION.format(re.escape(name)), source) is not None


def _required(found: re.Match[str]) -> str:
    """An import of a module as `require`, because the tests are a CommonJS script."""
    names = found["names"].strip().removeprefix("* as ")
    names = re.sub(r"\s+as\s+", ": ", names) if names.startswith("{") else names
    return f"{found['before']}const {names} = require({found['module']})"


def _complete(block: str, _prompt: str, name: str) -> str | None:
    """The items of the block, in order, without its main, calls that only show or test it, and exports."""
    kept, found, name = [], False, re.escape(name)
    for part in items(block, SYNTAX):
        code = bare(part, SYNTAX)
        if any(re.match(pattern, code) for pattern in (_CALL.format(name), _MAIN, _AT_ONCE, _TAKEN)):
            continue
        part = _EXPORT.sub(r"\1", _IMPORT.sub(_required, part))
        found = found or re.match(rf"\s*(?:export\s+)?(?:async\s+)?{_DEFINITION.format(name)}", code) is not None
        kept.append(part)
    return "".join(kept) if found else None


LANGUAGE = Language(
    key="js",
    name="JavaScript",
    file="program.js",
    commands=1,
    needs="node",
    install="apt install nodejs",
    find=_find,
    with_end=lambda tests, token: f'{tests}\nconsole.log("\\n{token}");\n',
    failed_test=re.compile(r"ERR_ASSERTION"),
    out_of_memory=re.compile(r"JavaScript heap out of memory"),
    syntax=SYNTAX,
    defines=_defines,
    complete=_complete,
    extra={"frozen.js": "const assert = require('node:assert');\n[assert, assert.strict].forEach(Object.freeze);\n"},
)
