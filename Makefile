# Two commands for a fresh machine: `make demo` and `make test`. Each sets everything up itself and is idempotent.
PY := .venv/bin/python
export OMP_WAIT_POLICY := passive

.PHONY: demo test check setup clean
setup: .venv/.ready
.venv/.ready: pyproject.toml
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet "torch==2.13.0"
	$(PY) -m pip install --quiet -e ".[torch,report,dev]"
	touch $@

demo: setup
	.venv/bin/trimoe demo --out demo

test: setup
	$(PY) -m pytest

check: setup
	.venv/bin/ruff format --check src tests examples bench
	.venv/bin/ruff check src tests examples bench
	.venv/bin/mypy

clean:
	rm -rf .venv demo .bench-tmp
