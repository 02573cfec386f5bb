#!/usr/bin/env bash
# math-verify 0.9.0 (with its antlr4 4.13.2 extra) reads a LaTeX thin space between digit groups as an addition.
#
# Expected: "12\,345" is the usual LaTeX for 12 345 and equals 12345, as "12{,}345" does.
# Seen: it parses as 357 (12 + 345, the rule for mixed numbers), "1\,000\,000" as the product 1*0*0, and verify()
# therefore calls a right answer wrong. Why it matters: MATH-style scores count such replies as errors.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "math-verify[antlr4_13_2]==0.9.0"
"$work/venv/bin/python" - <<'PY'
import sys
from math_verify import parse, verify

spaced, braced = parse(r"$12\,345$"), parse(r"$12{,}345$")
million = parse(r"$1\,000\,000$")
right = verify(parse("$12345$"), spaced)
print(f"12\\,345 -> {spaced}; 12{{,}}345 -> {braced}; 1\\,000\\,000 -> {million}; verify(12345, 12\\,345) = {right}")
same = spaced[0] == 357 and braced[0] == 12345 and str(million[0]) == "1*0*0" and right is False
print("as recorded" if same else "CHANGED")
sys.exit(0 if same else 1)
PY
