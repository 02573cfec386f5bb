"""Every grader's environment has what its original has (`originals.toml`): names, limits, and the tests' imports."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code import evalplus, humaneval, livecodebench, mbpp, multipl_e
from trimoe.bench.code.environment import environments, imports_of
from trimoe.bench.code.languages import language_of
from trimoe.sandbox import Calls, Sandbox, run_jobs

FACTS: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "originals.toml").read_text())
MODULES = {"humaneval": humaneval, "mbpp": mbpp, "evalplus": evalplus, "livecodebench": livecodebench}


def test_every_grader_states_its_original() -> None:
    assert environments().keys() == FACTS.keys()
    for name, module in MODULES.items():
        assert environments()[name] == module.ENVIRONMENT


@pytest.mark.parametrize("name", FACTS)
def test_no_limit_is_tighter_than_the_original_s(name: str) -> None:
    ours, original = environments()[name], FACTS[name]
    for key in ("recursion_limit", "int_text_digits"):
        assert getattr(ours, key) == original.get(key, getattr(ours, key))
    assert ours.call_seconds >= original["seconds_per_test"]
    assert ours.seconds >= ours.call_seconds
    assert ours.memory_mib >= original.get("memory_mib", 0)
    assert ours.test_imports == original.get("tests_follow_in_the_same_namespace", False)


PROBE = """
import sys as _sys
def observed(names, modules):
    here = globals()
    return [
        [name for name in names if name not in here],
        [name for name in modules if type(here.get(name)) is not type(_sys)],
        _sys.getrecursionlimit(),
        _sys.get_int_max_str_digits(),
    ]
def same(names):
    import builtins
    return [name for name in names if globals().get(name, getattr(builtins, name)) is not getattr(builtins, name)]
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
"""


@pytest.mark.parametrize("name", MODULES)
def test_a_program_finds_the_original_s_environment(name: str) -> None:
    original, environment = FACTS[name], environments()[name]
    names, modules, builtin = (original.get(k, "").split() for k in ("names", "modules", "builtin_names"))
    program = environment.program(PROBE)
    # A few frames belong to the grader, in the original as well as here.
    depth = original["recursion_limit"] - 30
    calls = [("observed", (names, modules)), ("same", (builtin,)), ("deep", (depth,))]
    with Sandbox(workers=1) as sandbox:
        outcomes = sandbox.run([Calls(program, entry, (args,), environment.limits) for entry, args in calls])
    observed, same, deep = (outcome.values()[0] for outcome in outcomes)
    assert observed == [[], [], original["recursion_limit"], original["int_text_digits"]]
    assert (same, deep) == ([], depth)


SOLUTIONS = {
    "bisect is the module": "class Solution:\n    def f(self, x): return bisect.bisect_left([1, 2, 3], x)",
    "every letter": "class Solution:\n    def f(self, x): return ascii_lowercase.index(chr(ord('a') + x)) - 1",
    "re": "class Solution:\n    def f(self, x): return len(re.findall('a', 'a' * (x - 1)))",
    "deep recursion": "class Solution:\n    def f(self, x):\n        def g(n): return 0 if n == 0 else 1 + g(n - 1)\n"
    "        return g(20_000) - 20_000 + x - 1",
    "long integers": "class Solution:\n    def f(self, x): return len(str(10 ** 20_000)) - 20_000 + x - 2",
    "json and sys": "class Solution:\n    def f(self, x): return json.loads('[1]')[0] if sys.maxsize else loads('0')",
    "a function": "def f(x):\n    return x - 1",
    "random and operator": "class Solution:\n    def f(self, x): return reduce(mul, [x - 1]) + 0 * random.random()",
}


def test_livecodebench_solutions_that_rely_on_it_pass() -> None:
    doc = Doc("d", "", "", {"method": "f", "tests": [[[2], 1]]})
    verdicts = livecodebench.score([(source, doc) for source in SOLUTIONS.values()])
    assert {name: v.detail for name, v in zip(SOLUTIONS, verdicts, strict=True) if not v.correct} == {}


def test_every_test_of_livecodebench_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Calls] = []

    def kept(given: list[Calls]) -> list[Any]:
        jobs.extend(given)
        return run_jobs(given)

    monkeypatch.setattr(livecodebench, "run_jobs", kept)
    doc = Doc("d", "", "", {"method": "f", "tests": [[[n], n] for n in range(40)]})
    (verdict,) = livecodebench.score([("class Solution:\n    def f(self, x): return x", doc)])
    assert verdict.correct
    assert (jobs[0].limits.cpu, jobs[0].limits.call_cpu) == (400, 10)


def test_an_answer_of_many_digits_is_read_as_a_number() -> None:
    from trimoe.bench.benches.lcb_medium_55 import literal

    digits = "7" * 6000
    assert literal(f"[{digits}]") == [(10**6000 - 1) // 9 * 7]
    assert literal("1" * 50_001) == "1" * 50_001  # beyond LiveCodeBench's own limit it stays text


def judged_by_humaneval(source: str, tests: str) -> Verdict:
    doc = Doc("d", "", "", {"prompt": "def f(x):\n    'Doc.'\n", "test": tests, "entry_point": "f"})
    return humaneval.score([(source, doc)])[0]


@pytest.mark.parametrize(
    ("source", "correct"),
    [
        ("def f(x): return np.int64(x) + 1", True),  # as in HumanEval+, whose tests begin with this import
        ("def f(x): return math.floor(x) + 1", True),
        ("def f(x): return scipy.floor(x) + 1", False),
    ],
)
def test_a_program_sees_the_imports_of_the_tests(source: str, correct: bool) -> None:
    tests = "import numpy as np\nfrom math import inf\nimport math\n\ndef check(f):\n    assert f(1) == 2\n"
    assert judged_by_humaneval(source, tests).correct is correct


def test_imports_of_tests() -> None:
    tests = "import numpy as np\nfrom math import *\ndef check(f):\n    import os\n"
    assert imports_of(tests) == "import numpy as np\nfrom math import *\n"
    assert imports_of("def (") == ""


# Valid in one edition only: a trait object without `dyn`, and a name that became a keyword; a trait of 2021's prelude.
EDITIONS = {
    "2015": "fn strlen(string: String) -> isize { let async: Box<Fn(isize) -> isize> = Box::new(|n| n); async(1) }",
    "2021": "fn strlen(string: String) -> isize { isize::try_from(string.len()).unwrap() }",
}


def test_rust_programs_of_the_original_s_edition_and_of_today_s_compile() -> None:
    if language_of("rs").toolchain() is None:
        pytest.skip("not run: needs rustc")
    tests = '}\n\nfn main() {\n    let candidate = strlen;\n    assert_eq!(candidate(String::from("x")), 1);\n}\n'
    doc = Doc("d", "", "", {"language": "rs", "tests": tests})
    assert FACTS["multipl-e"]["rust_edition"] in EDITIONS
    verdicts = multipl_e.score([(source.rstrip("} ") + "\n" + tests, doc) for source in EDITIONS.values()])
    assert {edition: v.detail for edition, v in zip(EDITIONS, verdicts, strict=True) if not v.correct} == {}


def test_java_and_javascript_commands_are_the_original_s() -> None:
    java, node = language_of("java").toolchain(), language_of("js").toolchain()
    if java is None or node is None:
        pytest.skip("not run: needs a JDK, javatuples and node")
    build, run = java.steps
    for steps, wanted in ((build, FACTS["multipl-e"]["java_compiler"]), (run, FACTS["multipl-e"]["java_runtime"])):
        places = [steps.index(word) for word in wanted]
        assert places == sorted(places)
    assert node.steps[0][-1] == "program.js"
