# Two commands for a fresh machine: `make demo` and `make test`. Each sets everything up itself and is idempotent.
# `make test` builds llama.cpp once (about ten minutes on two cores) into ~/.cache/trimoe, which later clones reuse.
PY := .venv/bin/python
CHECKED := src tests examples perf docs
# One thread per worker and no spinning: two test workers on two cores starve each other otherwise.
export OMP_WAIT_POLICY := passive

.PHONY: demo test check docs venv llamacpp toolchains clean

venv: .venv/.ready

# torch first and by its exact pin: an open range fetches gigabytes of GPU libraries on a machine without a GPU.
.venv/.ready: pyproject.toml
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $@

# The whole way on the bundled model; results and the page in ./demo
demo: venv
	.venv/bin/trimoe demo --out demo

# The tools for GGUF files, from the pinned source archive; at once where the cache has them
llamacpp: venv
	.venv/bin/trimoe llamacpp install

# Compilers for the tests of generated code in other languages; without them those tests are skipped, with the reason
toolchains:
	sh .ci/toolchains

# Everything, the slow tests too
test: venv llamacpp
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# Format, lint, strict types, documentation
check: venv
	.venv/bin/ruff format --check $(CHECKED)
	.venv/bin/ruff check $(CHECKED)
	.venv/bin/mypy
	$(PY) docs/generate.py --check

# Rewrite the generated reference pages
docs: venv
	$(PY) docs/generate.py

clean:
	rm -rf .venv demo .bench-tmp
