"""HumanEval+: the functions of HumanEval with more tests."""

from trimoe.bench.benches.humaneval import candidate, view
from trimoe.bench.code_tests import check_function
from trimoe.bench.rows import each, spec_bench
from trimoe.sandbox import require_sandbox

BENCH = spec_bench("humaneval_plus", each(view), check_function, extract_for=candidate, scorer=2, needs=require_sandbox)
