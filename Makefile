# Two commands for a fresh machine: `make demo` and `make test`. Each sets up what it needs and can be repeated.
# `make test` builds llama.cpp once (about ten minutes on two cores) into ~/.cache/trimoe; other clones reuse it.
PY := .venv/bin/python
CHECKED := src tests examples perf docs
# One thread per worker and no busy waiting; otherwise two test workers on two cores starve each other.
export OMP_WAIT_POLICY := passive

.PHONY: demo test check docs venv llamacpp toolchains clean

venv: .venv/.ready

# torch first, with its exact pin: an open range downloads gigabytes of GPU libraries even without a GPU.
.venv/.ready: pyproject.toml
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $@

# The full workflow on the bundled model; writes results and the report to ./demo
demo: venv
	.venv/bin/trimoe demo --out demo

# llama.cpp, built from the pinned source archive; reuses the cache
llamacpp: venv
	.venv/bin/trimoe llamacpp install

# Compilers and a browser for tests; without them those tests are skipped, with the reason
toolchains:
	sh .ci/toolchains

# All tests, including slow ones
test: venv llamacpp
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# Formatting, lint, strict types, generated documentation
check: venv
	.venv/bin/ruff format --check $(CHECKED)
	.venv/bin/ruff check $(CHECKED)
	.venv/bin/mypy
	$(PY) docs/generate.py --check

# Regenerate the reference pages
docs: venv
	$(PY) docs/generate.py

clean:
	rm -rf .venv demo .bench-tmp
