"""Bench specs: shipped ones are complete, unknown keys are refused, variants change only the keys they list."""

import re

import pytest

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import SUITES, benches, find
from trimoe.bench.spec import Rows, Sampler
from trimoe.bench.spec_file import load_spec, parse_spec, with_variants
from trimoe.errors import BenchError, UsageError

CONTRACT = (
    *("arc-challenge", "gpqa-diamond", "gsm8k-100", "math-500-100", "aime-2024", "ifeval-100", "humaneval"),
    *("humaneval-plus", "lcb-medium-55", "lcb-medium-100", "multipl-e-100", "mbpp"),
)
MINIMAL = """
name = "b"
version = 1
about = "A bench."
licence = "none"
metric = "exact_match"
[[dataset]]
hub = "owner/name"
revision = "0123456789abcdef0123456789abcdef01234567"
split = "test"
local = "b/test.jsonl"
[prompt]
user = "{question}"
[generation]
max_new_tokens = 100
thinking = "off"
[serving.llamacpp]
reasoning = "off"
"""


def test_the_names_of_the_contract_are_there() -> None:
    assert set(CONTRACT) == {name for name, bench in benches().items() if bench.protocol}
    assert set(SUITES["nine"]) < set(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_every_shipped_spec_is_pinned_and_explained(name: str) -> None:
    bench = find([name])[0]
    spec = bench.protocol
    assert spec is not None
    assert load_spec(name.replace("-", "_")) == spec
    assert all(re.fullmatch("[0-9a-f]{40}", part.revision) for part in spec.dataset)
    assert spec.about
    assert spec.notes
    assert bench.max_new_tokens == spec.generation.max_new_tokens
    assert (spec.serving.llamacpp.reasoning == "budget") == (spec.generation.thinking == "on")
    assert "smoke" in spec.variant
    for variant, about in spec.variant_about.items():
        other = bench.variant([variant])
        assert about
        assert other.name == f"{name}:{variant}"
        assert other.protocol != spec


@pytest.mark.parametrize(
    ("name", "rows", "cap", "think"),
    [
        ("arc-challenge", 1172, 16384, 12288),
        ("gpqa-diamond", 198, 16384, 12288),
        ("gsm8k-100", 100, 16384, 12288),
        ("math-500-100", 100, 16384, 12288),
        ("aime-2024", 30, 16384, 12288),
        ("ifeval-100", 100, 16384, 12288),
        ("humaneval", 164, 16384, 12288),
        ("humaneval-plus", 164, 16384, 12288),
        ("lcb-medium-55", 55, 16384, 12288),
        ("lcb-medium-100", 100, 16384, 12288),
        ("multipl-e-100", 300, 1024, 0),
        ("mbpp", 500, 16384, 0),
        ("gpqa-diamond:32k", 198, 32768, 24576),
        ("aime-2024:64k", 30, 65536, 49152),
    ],
)
def test_rows_and_caps_are_the_protocol_s(name: str, rows: int, cap: int, think: int) -> None:
    bench = find([name])[0]
    assert bench.protocol is not None
    assert (bench.rows, bench.max_new_tokens, bench.protocol.generation.think_budget) == (rows, cap, think)


@pytest.mark.parametrize("name", ["gsm8k-100", "math-500-100", "aime-2024", "arc-challenge"])
def test_the_qwen_variants_have_no_plain_text_stop(name: str) -> None:
    plain = {"Question:", "Problem:"}
    assert plain & set(find([name])[0].stops)
    qwen = find([f"{name}:qwen"])[0]
    assert not plain & set(qwen.stops)
    assert qwen.protocol is not None
    assert qwen.protocol.generation.sampler == Sampler(temperature=0.6, top_p=0.95, top_k=20)


def test_all_others_are_greedy() -> None:
    for bench in benches().values():
        if bench.protocol:
            assert bench.protocol.generation.sampler == Sampler(temperature=0.0, top_p=1.0, top_k=0)


def test_pinned_livecodebench_ids() -> None:
    fifty_five, hundred = (load_spec(f"lcb_medium_{n}").rows.ids for n in (55, 100))
    assert (len(set(fifty_five)), len(set(hundred))) == (55, 100)
    assert hundred[:55] == fifty_five
    assert (fifty_five[0], fifty_five[-1], hundred[-1]) == (
        "lcb/leetcode/3579",
        "lcb/leetcode/3805",
        "lcb/leetcode/3141",
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("version = 1", "version = 1\nverison = 2"), "verison"),
        (("version = 1", "version = 0"), "version"),
        (('revision = "0123', 'revision = "main'), "dataset[0].revision"),
        (('split = "test"', ""), "dataset[0]"),
        (("max_new_tokens = 100", "max_new_tokens = 100\nthink_budget = 100"), "generation"),
        (('thinking = "off"', 'thinking = "perhaps"'), "generation.thinking"),
        (("[prompt]", '[rows]\nids = ["a"]\nfirst = 3\n[prompt]'), "rows"),
        (("[prompt]", '[few_shot]\nk = 2\nrule = "listed"\n[prompt]'), "few_shot"),
        (("[prompt]", '[variant.x]\nmetric = "y"\n[prompt]'), ""),
        (("[prompt]", '[variant_about]\nx = "X."\n[variant.x.generation]\ncap = 3\n[prompt]'), "generation.cap"),
    ],
)
def test_bad_specs_are_refused_with_their_key(change: tuple[str, str], key: str) -> None:
    assert parse_spec(MINIMAL, "b.toml").name == "b"
    with pytest.raises(BenchError) as error:
        parse_spec(MINIMAL.replace(*change), "b.toml")
    assert error.value.subject.split(": ")[-1].strip() == key or not key


def test_broken_toml_and_unknown_variants() -> None:
    with pytest.raises(BenchError, match="not valid TOML"):
        parse_spec("name = ", "b.toml")
    with pytest.raises(UsageError) as error:
        with_variants(load_spec("gsm8k_100"), ["smok"])
    assert "smoke" in error.value.expected
    with pytest.raises(UsageError):
        find(["gsm8k-100:smok"])
    with pytest.raises(UsageError):
        find(["tiny-code:stride"])


def test_a_variant_can_drop_a_table_and_replaces_the_row_rule() -> None:
    spec = load_spec("math_500_100")
    assert spec.few_shot is not None
    assert with_variants(spec, ["zero-shot"]).few_shot is None
    assert with_variants(spec, ["stride"]).rows == Rows(first=100, stride=5)
    assert with_variants(spec, ["stride", "smoke"]).rows.stride is None
    lcb = with_variants(load_spec("lcb_medium_100"), ["smoke"])
    assert lcb.rows.ids == load_spec("lcb_medium_55").rows.ids[:5]


def test_every_bench_has_a_smoke_variant() -> None:
    tiny = find(["tiny-code:smoke"])[0]
    docs = tiny.docs()
    assert (tiny.rows, len(docs)) == (10, 10)
    whole = find(["tiny-code"])[0]
    assert docs == whole.docs()[:10]
    assert tiny.spec(docs) != whole.spec(whole.docs())


def test_identity_covers_how_replies_are_made() -> None:
    docs = [Doc("0", "p", "", {})]
    plain, qwen, zero = (find([f"math-500-100{v}"])[0].spec(docs) for v in ("", ":qwen", ":zero-shot"))
    assert plain["generation"] != qwen["generation"]
    assert len({str(sorted(spec.items())) for spec in (plain, qwen, zero)}) == 3
    with_history = [Doc("0", "p", "", {}, (("user", "a"), ("assistant", "b")))]
    assert find(["math-500-100"])[0].spec(with_history)["dataset"] != plain["dataset"]
