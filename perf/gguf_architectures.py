"""Coverage of llama.cpp's architectures with experts: a tiny random model of each is cut, certified and measured.

    python perf/gguf_architectures.py [ARCHITECTURE ...]

writes docs/reference/gguf-architectures.json, from which `make docs` makes the page. With names, only their rows are
replaced. Needs `trimoe llamacpp install`; about five minutes on one core.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.gguf_coverage import architectures, examine  # noqa: E402
from trimoe.llamacpp.tools import locate  # noqa: E402

TABLE = ROOT / "docs" / "reference" / "gguf-architectures.json"


def main(names: list[str]) -> int:
    """Examine and write; returns the number of architectures that were built but neither proven nor refused."""
    tools = locate()
    known = {row["architecture"]: row for row in json.loads(TABLE.read_text())["rows"]} if names else {}
    rows = []
    for architecture in architectures(tools):
        if names and architecture not in names and architecture in known:
            rows.append(known[architecture])
            continue
        rows.append(examine(architecture, tools))
        print(json.dumps(rows[-1])[:160], flush=True)
    release = (tools.info or {}).get("release", {})
    table = {"llama.cpp": release.get("commit"), "package": f"{release.get('package')} {release.get('version')}"}
    TABLE.write_text(json.dumps({**table, "rows": rows}, indent=1) + "\n")
    return sum(row["status"] not in ("proven", "refused", "not built") for row in rows)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
