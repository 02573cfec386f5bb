"""LiveCodeBench, medium: the 55 pinned problems of `lcb-medium-55` and 45 older ones."""

from trimoe.bench.benches.lcb_medium_55 import between_fences, medium, opinion, row_id, views
from trimoe.bench.code_tests import check_method
from trimoe.bench.rows import spec_bench
from trimoe.sandbox import require_sandbox

BENCH = spec_bench(
    "lcb_medium_100",
    views,
    check_method,
    extract=between_fences,
    prepare=medium,
    row_id=row_id,
    scorer=2,
    opinion=opinion,
    needs=require_sandbox,
)
