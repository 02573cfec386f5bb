"""HumanEval+: the functions of HumanEval, more tests."""

from trimoe.evaluate.benches.humaneval import candidate, view
from trimoe.evaluate.code_tests import check_function
from trimoe.evaluate.rows import each, spec_bench
from trimoe.evaluate.sandbox import require_sandbox

BENCH = spec_bench("humaneval_plus", each(view), check_function, extract_for=candidate, needs=require_sandbox)
