"""Extraction: each case distinguishes one clause from the others, and no reply raises an exception."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.bench.bench import Doc
from trimoe.bench.benches import (
    aime_2024,
    arc_challenge,
    gpqa_diamond,
    humaneval,
    lcb_medium_55,
    math_500_100,
    mbpp,
    multipl_e_100,
)
from trimoe.bench.catalog import benches, find
from trimoe.bench.code.languages import bare, language_of
from trimoe.bench.extract import boxed, has_body, last_integer, valid_prefix
from trimoe.bench.row_sources import read_file
from trimoe.errors import BenchError

GSM8K = find(["gsm8k-100"])[0]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The best answer is B", "B"),
        ("the BEST ANSWER IS **(c)**.", "C"),
        ("Answer: D", "D"),
        ("Final answer: **A**", "A"),
        ("final answer (B)", "B"),
        ("The answer is A. No: the answer is C.", "C"),  # the last statement
        ("The answer is C? No: \\boxed{A}", "A"),  # in words or boxed: the later one
        ("\\boxed{A} or \\boxed{ D }, so B", "D"),  # the last box before a lone letter
        ("\\boxed{a} is not it, C is", "C"),  # a box needs a capital letter
        ("Options A and B fail, hence D", "D"),
        ("a b c d", None),  # a lone letter must be a capital
        ("The answer is Ablation", None),  # not a single letter
        ("D" + " x" * 250, None),  # a lone letter counts near the end only
        ("The best answer is D" + " x" * 250, "D"),  # a stated one anywhere
        ("The answer is a mystery", None),  # an article is not a letter
        ("The answer is a.", "A"),
        ("The answer is E", None),
        ("", None),
    ],
)
def test_arc(reply: str, letter: str | None) -> None:
    assert arc_challenge.letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        (r"so \boxed{12} and then \boxed{034}.", "34"),
        (r"\boxed{7}, hence the final answer: 9", "7"),  # a box before a line
        (r"\boxed{\,b=211\,}", "211"),
        (r"\boxed{AB\cdot AC = bc = 468}.", "468"),
        (r"\boxed{1,024}", "1024"),
        (r"\boxed{\text{204}}", "204"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{25/8}, so m+n = 33", "33"),  # a box that is no whole number does not count
        (r"\boxed{\frac{25}{8}}" + "\nAnswer: 33", "33"),
        (r"first \boxed{5}, then \boxed{x+y}", "5"),  # the last box with a number
        ("Answer: 12\nmore\n**Final Answer:** 45\nand 99", "45"),  # the last such line before numbers elsewhere
        ("We see that the answer is 5 more than\nx = 8", "8"),  # never a number in mid-sentence
        (r"The answer is then \boxed{\text{about } 17 \text{ or so}}, x = 3", "17"),  # "answer" with a box after it
        ("y = 4\nTherefore the sum is 73.", "73"),  # the end of the last line before an equation above
        ("y = 4\nThe sum equals **73**", "73"),
        ("so x = 73.\n\nHence 12 residents own all four.", "73"),  # an equation before the last number
        ("x = 3.5 and nothing else, 12", "12"),  # decimals are not whole numbers
        ("x = 1,234.5 so 12", "12"),
        (r"\boxed{000}", "0"),
        ("x = 25/8 and 12", "12"),
        ("I count 3 and 14", "14"),
        ("17" + " x" * 250, None),  # the last number counts near the end only
        ("no idea", None),
        ("", None),
    ],
)
def test_aime(reply: str, number: str | None) -> None:
    assert aime_2024.answer(reply) == number


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("She earns 9 * 2 = $18", "$18"),
        ("#### 1,234.50", "1,234.50"),
        ("the total is -7", "-7"),
        ("18.", "18."),
        ("It is 5, then some ... yes", "..."),  # lm-eval's pattern takes any run of its characters
        ("a 5 b", "5"),
        ("none", None),
    ],
)
def test_gsm8k(reply: str, number: str | None) -> None:
    assert GSM8K.extract(reply) == number


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,$-# abc\n", max_size=40))
def test_gsm8k_is_lm_eval_s_filter_and_metric(reply: str) -> None:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    theirs = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1).apply([[reply]], [{}])
    ours = GSM8K.extract(reply)
    assert next(iter(theirs))[0] == (ours if ours is not None else "[invalid]")
    gold = "so\n#### 1,8"
    assert GSM8K.record is not None
    doc = GSM8K.record("0", {"question": "?", "answer": gold})
    score = exact_match_hf_evaluate(
        [ours or "[invalid]"], [gold], regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"], ignore_case=True
    )
    assert (ours is not None and GSM8K.score([(ours, doc)])[0].correct) == score["exact_match"]


OPTIONS = ["Guilty", "Guilty of Romance", "pi/2, or so", "None."]
GPQA = Doc("0", "", "", {"letter": "A", "options": OPTIONS})


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("(A) is wrong, so (C).", "C"),
        ("The answer is (B), not guilty", "B"),
        ("It must be guilty of romance", "B"),  # the longer option wins
        ("clearly GUILTY!", "A"),
        ("pi2 or so: A", "C"),  # a quoted option before a letter after a colon
        ("Answer: D", "D"),
        ("no more to say", None),
        ("", None),
    ],
)
def test_gpqa(reply: str, letter: str | None) -> None:
    assert gpqa_diamond.letter(reply, GPQA) == letter


GPQA_WORDS = st.sampled_from(["(A)", "(C)", "B", ":", " ", "guilty", "Guilty of Romance", "none", "x", "\n"])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(GPQA_WORDS, max_size=8).map("".join), min_size=30, max_size=60))
def test_gpqa_is_lm_eval_s_filter(replies: list[str]) -> None:
    """Many replies at once, because lm-eval rebuilds its table of punctuation for every call."""
    from lm_eval.filters.extraction import MultiChoiceRegexFilter

    theirs = MultiChoiceRegexFilter(r"(\([A-Z]\))", group_select=-1, ignore_case=True, ignore_punctuation=True)
    found = theirs.apply([replies], [{"choices": OPTIONS}])[0]
    ours = [gpqa_diamond.letter(reply, GPQA) for reply in replies]
    assert found == [f"({letter})" if letter else "[invalid]" for letter in ours]


# ---------------------------------------------------------------- fenced blocks


STUB = 'from typing import List\n\n\ndef f(x: List[int]) -> int:\n    """Doc."""\n'
HE = Doc("0", "", "", {"prompt": STUB, "entry_point": "f"})


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Here:\n```python\ndef f(x):\n    return 1\n```\nDone.", "def f(x):\n    return 1"),
        ("```\ndef f(x):\n    return 1\n```\n```\ndef f(x):\n    return 2\n```", "def f(x):\n    return 2"),  # the last
        (
            "```\ndef f(x):\n    return 1\n```\n```\nprint(f(1))\n```",
            "def f(x):\n    return 1",
        ),  # the last with a function
        ("```\ndef f(x):\n    return 1\n```\n```\ndef g():\n    return 3\n```", "def f(x):\n    return 1"),  # the asked
        ("```\ndef g():\n    return 3\n```", "def g():\n    return 3"),  # or whichever
        (
            "def f(x):\n    return 1\n```\nTry:\n```\ndef t():\n    f(1)\n```",
            "def f(x):\n    return 1",
        ),  # begins inside
        ("    return x\n```\nTry:\n```\ndef t():\n    f(1)\n```", "    return x\n"),  # begins inside, continues
        ("Here:\n~~~python\ndef f(x):\n    return 1\n~~~", "def f(x):\n    return 1"),
        ("Here:\n```python\ndef f(x):\n    return 1", "def f(x):\n    return 1"),  # never closed
        (
            '```\ndef f(x):\n    return 1\n```\n```\ndef f(x):\n    """Doc."""\n```',
            "def f(x):\n    return 1",
        ),  # no body
        ("```\ndef f(x):\n    return 1\nThat is all.\n```", "def f(x):\n    return 1"),  # cut to what parses
        ("  ```python\n  def f(x):\n      return 1\n  ```", "def f(x):\n    return 1"),
        ("def f(x):\n    return 1\n\nThis works because", "def f(x):\n    return 1\n"),  # no fence: cut to what parses
        ("```python\ndef f(x):\n    return 1", "def f(x):\n    return 1"),  # never closed
        ("    return sum(x)\n", "    return sum(x)\n"),  # continues the prompt
        ("```python\n    return sum(x)\n```", "    return sum(x)\n"),
        ("def f(x):\n    return 1```\nfoo", "def f(x):\n    return 1"),  # up to the next fence
        ("I cannot do that.", None),
        ("```python\nx = 1\n```", None),
        ("", None),
    ],
)
def test_humaneval(reply: str, code: str | None) -> None:
    assert humaneval.candidate(reply, HE) == (None if code is None else STUB + code)


def brute(source: str, before: str) -> str | None:
    """The definition: try every prefix, longest first."""
    lines = source.split("\n")
    for end in range(len(lines), 0, -1):
        prefix = "\n".join(lines[:end])
        try:
            ast.parse(before + prefix)
        except (SyntaxError, ValueError):
            continue
        return prefix
    return None


LINES = st.sampled_from(
    [
        *("def f(x):", "    return x", "  if x:", "\tpass", "class A:", "    '''", '"""', "x = (1,", ")", "]", "else:"),
        *("try:", "    y = [", "@d", "foo bar", "x = 1 \\", "", "# c", "    ", "print 'a'", "for i in x: pass"),
        *("lambda:", "f'{x'", "}"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(LINES, max_size=12), st.sampled_from(["", STUB]))
def test_the_valid_prefix_is_the_longest(lines: list[str], before: str) -> None:
    source = "\n".join(lines)
    assert valid_prefix(source, lambda tree: True, before) == brute(source, before)


def test_a_long_broken_block_is_cut_in_time() -> None:
    source = "def f():\n    return 1\n" + "x = [1, 2]\n" * 4000 + "this is some prose\n" * 200
    assert valid_prefix(source, lambda tree: True) == "def f():\n    return 1\n" + "x = [1, 2]\n" * 3999 + "x = [1, 2]"


SLOW = {
    "boxes": "\\boxed{" * 20_000,
    "digits": "= " + "1" * 60_000 + ".5",
    "blank lines": "\n" * 60_000 + "```",
    "statements": "```\n" + "x = 1\n" * 6_000 + "```",
    "braces": "{" * 60_000,
    "fences": "```\n" * 15_000,
    "decorators": "```\n" + "@d\n" * 2_000 + "```",
    "commas": "1," * 30_000,
    "answers": "answer is \\boxed{" * 4_000,
    "dots": "=5" + "." * 60_000,
    "brackets": "```\n" + "(" * 30_000 + "\n```",
}


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.timeout(120)
def test_degenerate_replies_are_read_in_time(kind: str) -> None:
    """Repetitive replies as long as a cap allows: each would take quadratic time with a careless pattern."""
    for name, bench in benches().items():
        answer = bench.answer(SLOW[kind], Doc("0", "", "", CHECKS.get(name, {})))
        assert answer is None or isinstance(answer, str)


def test_bodies() -> None:
    def body(source: str) -> bool:
        node = ast.parse(source).body[0]
        assert isinstance(node, ast.FunctionDef)
        return has_body(node)

    assert body("def f(): return 1")
    assert body("def f():\n  'doc'\n  pass")
    assert not body("def f():\n  'doc'")
    assert body("def f(): ...")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("a\n```python\nx\ny\n```\nb", "x\ny"),
        ("```\nold\n```\ntext\n```python\nnew\n```", "new"),  # the last two fences
        ("```\nnew\n```\ntext\n```python\nopen", "text"),  # ... also when that is prose
        ("talk\n```python\nclass Solution:\n    pass", "class Solution:\n    pass"),  # one fence: what follows
        (
            "class Solution:\n    pass\n```\nThat is it.",
            "class Solution:\n    pass",
        ),  # ... or what precedes, if only that is code
        ("class Solution:\n    pass", "class Solution:\n    pass"),
        ("```\n```", None),
        ("", None),
    ],
)
def test_livecodebench(reply: str, code: str | None) -> None:
    assert lcb_medium_55.between_fences(reply) == code


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2]", [1, 2]),
        ("true", True),
        ("True", True),
        ('"a\\"b"', 'a"b'),
        ("'ab'", "ab"),
        ("(1, (2, 3))", [1, [2, 3]]),
        ("ab cd", "ab cd"),
        ("1e3", 1000.0),
        ("[1, 2", "[1, 2"),
        ("[" * 5000, "[" * 5000),
        ("{1, 2}", "{1, 2}"),  # JSON has no sets, so it stays text
    ],
)
def test_livecodebench_values(text: str, value: Any) -> None:
    assert lcb_medium_55.literal(text) == value


def test_livecodebench_arguments_are_lines() -> None:
    assert lcb_medium_55.arguments('[1, 2]\n"a b"\n3\n') == [[1, 2], "a b", 3]
    assert lcb_medium_55.arguments('["two\\nlines"]') == [["two\nlines"]]


def test_private_tests_are_unpacked_and_nothing_is_run() -> None:
    import base64
    import pickle
    import zlib

    cases = [{"input": "1", "output": "2", "testtype": "functional"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()
    assert lcb_medium_55.private_tests(packed) == cases
    assert lcb_medium_55.private_tests(json.dumps(cases)) == cases
    hostile = base64.b64encode(zlib.compress(b"cos\nsystem\n(S'touch /tmp/trimoe-was-here'\ntR.")).decode()
    for bad in (hostile, "!!", base64.b64encode(b"no zlib").decode(), ""):
        with pytest.raises(BenchError):
            lcb_medium_55.private_tests(bad)
    assert not Path("/tmp/trimoe-was-here").exists()


MBPP = Doc("0", "", "", {"setup": "", "tests": ["assert f(1) == 2"]})
SHORT, LONG = "def f(): pass", "assert f(1) == 2\nassert f(2) == 3\nprint('both')"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (f"```python\n{SHORT}\n```", SHORT),
        ("```\na\n```\n```\nlonger\n```", "longer"),
        ("```python\ndef f():\n    return 1", "def f():\n    return 1"),  # never closed
        ("```\nab\n```\n```python\ndef f():", "def f():"),
        ("Sure:\ndef f():\n    return 1", "def f():\n    return 1"),
        ("Sure:\nimport re\nfrom the top\ndef f():\n    return 1", "import re\ndef f():\n    return 1"),
        (f"```\n{SHORT}\n```\n```\n{LONG}\n```", SHORT),  # the asked name before the length
        (f"```\n{LONG}\n```\n```\n{SHORT}\n```", SHORT),
        (f"```\nf = lambda x: 2\n```\n```\n{LONG}\n```", "f = lambda x: 2"),
        (f"```\n{SHORT}\n```\n```\ndef f():\n    return 2\n```", "def f():\n    return 2"),  # then the length
        (f"{SHORT}\n```\nIt walks once.", SHORT),  # begins inside
        (f"{SHORT}\n```\nUse:\n```python\n{LONG}\n```", SHORT),
        (f"import re\n{SHORT}\n```", f"import re\n{SHORT}"),
        (f"import re\n{SHORT}\n\nIt walks once.", f"import re\n{SHORT}\n"),  # and the stop took the fence
        (f"{SHORT}\n~~~\nIt walks once.", SHORT),
        (f"Use ``` or not:\n~~~python\n{SHORT}\n~~~", SHORT),
        (f"Sure, def f():\n```\n{SHORT}\n```", SHORT),  # prose before a bare fence
        ("nothing", None),
    ],
)
def test_mbpp(reply: str, code: str | None) -> None:
    assert mbpp.code(reply, MBPP) == code


def test_mbpp_of_several_names_the_block_with_most() -> None:
    doc = Doc("0", "", "", {"setup": "root = Node(1)", "tests": ["assert depth(root) == 1"]})
    whole = "class Node: pass\ndef depth(n): return 1"
    longer = "def depth(n):\n    # a longer one, without the class that the tests build\n    return 1"
    assert mbpp.code(f"```\n{whole}\n```\n```\n{longer}\n```", doc) == whole


def test_every_mbpp_reference_is_readable_from_inside_the_fence(shared: Path) -> None:
    bench = find(["mbpp"])[0]
    for doc in bench.docs(shared / "benchmarks"):
        source = doc.reference.removeprefix("```python\n").removesuffix("\n```")
        for reply in (f"{source}\n```", f"{source}\n```\n\nThis walks through the input once.", f"~~~\n{source}\n~~~"):
            assert (bench.answer(reply, doc) or "").strip() == source.strip(), doc.doc_id


# ---------------------------------------------------------------- MultiPL-E


RUST = "/// Doc\nfn strlen(string: String) -> isize {\n"
JAVA = "import java.util.*;\nclass Problem {\n    // Doc\n    public static long strlen(String string) {\n"
JS = "//Doc\nfunction strlen(string){\n"
BRANCHES = "    if true {\n        1\n    } else {\n        2\n    }"


@pytest.mark.parametrize(
    ("block", "prompt", "body"),
    [
        ("fn strlen(string: String) -> isize {\n    1\n}", RUST, "    1\n}"),
        ("use std::x;\nfn strlen( string : String )->isize{\n    1\n}", RUST, "    1\n}"),  # white space apart
        ("fn strlen(s: String) -> usize {\n    1\n}", RUST, "    1\n}"),  # the name with other parameters
        ("    string.len() as isize", RUST, "    string.len() as isize"),  # a body already: its brace lines stay
        (BRANCHES, RUST, BRANCHES),
        (
            "class Problem {\n    public static long strlen(String string) {\n        return 1;\n    }\n}",
            JAVA,
            "        return 1;\n    }\n}",
        ),
        ("function strlen(string){\n  return 1;\n}", JS, "  return 1;\n}"),
        ("function strlen(string){ return 1; }", JS, " return 1; }"),
    ],
)
def test_multipl_e_bodies(block: str, prompt: str, body: str) -> None:
    assert multipl_e_100.body(block, prompt) == body


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    1\n}", "    1"),
        ("        return 1;\n    }\n}", "        return 1;"),
        ("    if a {\n        1\n    }\n}", "    if a {\n        1\n    }"),  # the inner brace stays
        ("    1", "    1"),
        ('    println!("}}}");\n}', '    println!("}}}");'),  # braces in strings do not count
        ("    let c = '}'; // }\n}", "    let c = '}'; // }"),
        ("    fn g<'a>(x: &'a str) { x; }\n}", "    fn g<'a>(x: &'a str) { x; }"),  # lifetimes are not literals
        ('    r#"}"#;\n}\n\n', '    r#"}"#;'),
        ("    /* } */ 1\n}", "    /* } */ 1"),
        ("}", ""),
        ("", ""),
    ],
)
def test_multipl_e_closing_braces(text: str, kept: str) -> None:
    assert multipl_e_100.without_closing_braces(text, language_of("rs").syntax) == kept


def balance(program: str) -> int:
    return program.count("{") - program.count("}")


@pytest.mark.parametrize("language", ["rs", "java", "js"])
def test_multipl_e_programs_are_balanced(language: str, shared: Path) -> None:
    """A reply with the whole function and one with the body alone give the same, balanced program."""
    inner = {
        "rs": "    if true { todo!() }\n    todo!()",
        "java": "        if (true) { throw new Error(); }\n        throw new Error();",
        "js": "  if (true) { return 1; }\n  return 2;",
    }[language]
    ends = {"rs": "\n}", "java": "\n    }\n}", "js": "\n}"}[language]
    protocol = find(["multipl-e-100"])[0].protocol
    assert protocol is not None
    spec = next(part for part in protocol.dataset if part.part == language)
    for row in read_file(shared / "benchmarks" / spec.local):
        doc = Doc("0", "", "", {key: row[key] for key in ("name", "language", "prompt", "tests", "stop_tokens")})
        restated = multipl_e_100.program(f"```\n{row['prompt']}{inner}{ends}\n```", doc)
        alone = multipl_e_100.program(f"```\n{inner}{ends if language == 'js' else ''}\n```", doc)
        assert restated is not None
        assert alone is not None
        assert restated.split() == alone.split()
        strings = bare(restated, language_of(language).syntax)
        assert balance(strings) == 0, row["name"]


def test_multipl_e_without_a_block() -> None:
    doc = Doc("0", "", "", {"name": "n", "language": "rs", "prompt": RUST, "tests": "}", "stop_tokens": ["\n}"]})
    assert multipl_e_100.program("fn strlen", doc) is None
    assert multipl_e_100.program("```\n```", doc) is None


# ---------------------------------------------------------------- pieces


def test_boxes_and_integers() -> None:
    assert boxed(r"\boxed{a{b}} \boxed {c} \boxed{open") == ["a{b}", "c"]
    assert boxed(r"} \boxed{a\boxed{b}c}") == [r"a\boxed{b}c", "b"]
    assert [last_integer(text) for text in ("1,234 x", "12,34", "a", "007")] == ["1234", "34", None, "007"]


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (r"so $\boxed{\left( 3, \frac{\pi}{2} \right)}$", "correct"),
        (r"so $\boxed{(3, \pi/2)}$", "correct"),
        (r"so $\boxed{(3, \pi)}$", "wrong"),
        ("no mathematics at all", "extraction failed"),
    ],
)
def test_math(reply: str, cause: str) -> None:
    doc = Doc("0", "", "", {"solution": r"Therefore $\boxed{\left( 3, \frac{\pi}{2} \right)}.$"})
    assert math_500_100.score([(reply, doc)])[0].cause == cause


def test_an_unreadable_gold_is_no_wrong_answer() -> None:
    assert math_500_100.score([(r"$\boxed{3}$", Doc("0", "", "", {"solution": "nothing"}))])[0].correct is None


def test_a_reply_that_cannot_be_compared_in_time_is_wrong_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from math_verify.errors import TimeoutException

    limits: list[int | None] = []

    def slow(expected: Any, found: Any, seconds: int | None) -> bool:
        limits.append(seconds)
        raise TimeoutException

    monkeypatch.setattr(math_500_100, "_equal", slow)
    verdict = math_500_100.score([(r"$\boxed{3}$", Doc("0", "", "", {"solution": r"$\boxed{4}$"}))])[0]
    assert (verdict.correct, verdict.cause) == (False, "wrong")
    assert "within 30 s" in verdict.detail
    assert limits[:2] == [5, 30]


CHECKS: dict[str, dict[str, Any]] = {
    "gpqa-diamond": GPQA.check,
    "humaneval": HE.check,
    "humaneval-plus": HE.check,
    "mbpp": MBPP.check,
    "multipl-e-100": {
        "name": "n",
        "language": "java",
        "prompt": JAVA,
        "tests": "    }\n}\n",
        "stop_tokens": ["\n    }\n"],
    },
}
PIECES = st.sampled_from(
    [
        *("```", "```python\n", "\n", "def f(x):\n", "    return 1\n", "\\boxed{", "}", "{", "answer", " is ", ":"),
        *("(A)", "A", "12", "$", "=", ".", ",", "#### ", "\x00", "\u2028", "é", "'''", '"', "\\"),
        *("class Solution:\n", " ", "\t"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join)))
def test_no_reply_makes_extraction_raise(reply: str) -> None:
    for name, bench in benches().items():
        answer = bench.answer(reply, Doc("0", "", "", CHECKS.get(name, {})))
        assert answer is None or isinstance(answer, str)


CASES = [
    ("One might say the answer is A, but mass is kept.\nThe best answer is [C]", "C"),
    ("If heat were lost the answer is B, yet it is not. The best answer is {C}.", "C"),
    ('At first the answer is B. Really, the best answer is "C".', "C"),
    ("At first the answer is B. Really, the best answer is $\\text{C}$.", "C"),
    ("First guess: the answer is B. But the best answer is option C.", "C"),
    ("At first I thought the answer is B. No. Final answer: \\boxed{C}", "C"),
    ("The answer is B. Checking again: $\\boxed{\\textbf{(C)}}$", "C"),
    ("Final answer: $\\mathbf{D}$", "D"),
    ("Answer: `C`. Note that A is a common distractor.", "C"),
    ("The answer is not B but C.", "C"),
    ("So the final answer is C. Note that A is a common distractor.", "C"),
    ("Final answer is: (C), not B", "C"),
]


@pytest.mark.parametrize(("reply", "letter"), CASES)
def test_arc_the_last_statement_wins_in_any_form(reply: str, letter: str) -> None:
    assert arc_challenge.letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        (r"Thus $t = 24$ minutes. The walk takes $\boxed{204 \text{ minutes}}$.", "204"),
        (r"Thus $t = 24$ minutes. The walk takes $\boxed{\textbf{204}}$.", "204"),
        (r"Thus $t = 24$ minutes. The walk takes $\boxed{204\ \text{min}}$.", "204"),
        (r"y = 24, so $\boxed{\mathrm{Area} = 480.0}$", "480"),
        (r"$n = 3$, total $\boxed{12\,345}$", "12345"),
        (r"$n = 3$, total $\boxed{1{,}024 \text{ ways}}$", "1024"),
        (r"So the value is \boxed{-25}", "-25"),
        (r"So the value is \boxed{\frac{25}{2}}", None),
        (r"So the value is \boxed{2\sqrt{3}}", None),
        (r"either \boxed{5 \text{ or } 7}", None),
        ("The area is 480.0", "480"),
        ("That leaves 12.5", "12.5"),
        ("That leaves 25/2", "25/2"),
        ("answer: -25", "-25"),
        ("2+2=4 ways, thus the answer is 902.\nThis uses 3 cases.", "902"),
        (r"A first try gives \boxed{110}. But I dropped a case. So the total is \boxed{", None),
        (r"First \boxed{110}, but the total is \boxed{25/2}", None),
    ],
)
def test_aime_a_box_is_read_whole(reply: str, number: str | None) -> None:
    assert aime_2024.answer(reply) == number


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("x=24. \\boxed{\\text{The answer is } 204}", "204"),
        ("a = 24 so \\boxed{m+n=33}", "33"),
        ("y=24 \\boxed{204^{\\circ}}", "204"),
        ("y=24 \\boxed{\\$204}", "204"),
        ("y=24 \\boxed{204\\%}", "204"),
        ("y=24 \\boxed{{204}}", "204"),
        ("y=24 so \\boxed 204.", "204"),
        ("y=24 so \\fbox{204}", "204"),
        ("y=24\n**204**", "204"),
        ("y=24 Answer: \\(204\\)", "204"),
        ("y = 24. The final answer is 204. It used = 7 cases", "204"),
        ("y=24 \\boxed{204,}", "204"),
        ("y=24 \\boxed{\\mathbf{204}}", "204"),
        ("y=24 \\boxed{\\displaystyle 204}", "204"),
        ("y=24 \\boxed{\\large 204}", "204"),
        ("y=24 \\boxed{\\color{red}204}", "204"),
        ("y=24 \\boxed{204\\;\\mathrm{cm}^2}", "204"),
        ("y=24 \\boxed{204\\text{ m}^2}", "204"),
        ("y=24 \\boxed{\\approx 204}", "204"),
        ("y=24 \\boxed{(204)}", "204"),
        ("y=24 \\boxed{\\text{204 ways}}", "204"),
        ("y=24 \\boxed{204_{10}}", "204"),
        ("y=24 \\boxed{N = 204}", "204"),
        ("y=24 \\boxed{\\textbf{(B) }204}", "204"),
        ("y=24 \\boxed{204 \\pmod{1000}}", "204"),
        ("y=24 \\boxed{+204}", "204"),
        ("y=24 \\boxed{\n204\n}", "204"),
        ("y=24 $\\boxed{204}$ $= 3$", "204"),
        ("Final Answer: $\\boxed{073}$", "73"),
        ("The answer is $204$ minutes.\nNote 3 = 3", "204"),
        ("y=24 \\boxed{204\\ \\text{(mod }1000)}", "204"),
        ("y = 24, \\boxed{3\\pi}", None),
        ("y = 24, \\boxed{\\sqrt{3}}", None),
        ("y=24, \\boxed{5!}", None),
        ("y=24 \\boxed{2^5}", "24"),
        ("y=24, \\boxed{204x^2}", "24"),
        ("y=24, \\boxed{101_2}", "24"),
        ("We see that the answer is 5 more than\nx = 8", "8"),
        ("\\boxed{-25}", "-25"),
        ("\\boxed{\\frac{25}{2}}", None),
    ],
)
def test_aime_style_units_and_labels_are_not_part_of_the_number(reply: str, number: str | None) -> None:
    assert aime_2024.answer(reply) == number


@pytest.mark.parametrize(
    "reply",
    [
        "The correct option is C. A magnet attracts",
        "The best answer is ___C___",
        r"\boxed{\text{C) gravity}}. A",
        "Best answer - C. A",
        "the answer is clearly C. A",
        "The best answer is therefore C. A",
        "The best answer is: **C. gravity**. A force",
    ],
)
def test_arc_statements_in_further_words(reply: str) -> None:
    assert arc_challenge.letter(reply) == "C"


@pytest.mark.parametrize(
    "reply",
    [
        "Therefore C. A is not.",
        "Thus, C. B is wrong.",
        "So it is C, not A.",
        "C fits the data best. A cannot be right.",
        "I pick C rather than D",
        "Only C remains once we eliminate B.",
        "Hence (C). D isn't supported by the text.",
        "C, because the others fail: A is too small, B does not melt, and D is impossible.",
        "It must be C instead of A.",
        "Consequently **C**. Option D contradicts the experiment.",
        "C seems right. A magnet attracts iron.",
        "C explains it, unlike A or not B.",
    ],
)
def test_arc_a_rejected_letter_overrules_no_statement(reply: str) -> None:
    assert arc_challenge.letter(reply) == "C"


def test_arc_a_reply_that_only_rejects_still_names_its_last_letter() -> None:
    assert arc_challenge.letter("not B") == "B"


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("The answer is 12.5. Done", "12.5"),
        ("The answer is 12.5. We have x = 12.", "12.5"),
        ("The answer is 25/2. Check: 2", "25/2"),
        ("Answer: 12.5. Done.\nx = 7", "12.5"),
        ("The answer is -25. Done, = 25", "-25"),
        ("The answer is 1,234.5; so 12", "1234.5"),
        ("The answer is 12.5. No: the answer is 13.", "13"),  # the last statement
        ("The answer is 12.0. Done, x = 7", "12"),
    ],
)
def test_aime_a_stated_number_that_is_not_whole_is_the_answer(reply: str, number: str) -> None:
    assert aime_2024.answer(reply) == number
