"""JavaScript: one file for node. The assertion library is frozen before the candidate runs."""

import re
from pathlib import Path

from trimoe.bench.code.languages._language import Language, Toolchain, asked, real


def _find() -> Toolchain | None:
    node = real("node")
    version = asked(node, "--version") if node else None
    if node is None or version is None:
        return None
    run = (node, "--max-old-space-size=1024", "--require", "./frozen.js", "program.js")
    return Toolchain(f"node {version}", (run,), (str(Path(node).parents[1]),))


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
    extra={"frozen.js": "const assert = require('node:assert');\n[assert, assert.strict].forEach(Object.freeze);\n"},
)
