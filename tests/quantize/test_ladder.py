"""Ladders of the bundled model through llama.cpp: resumed, refused early, checked."""

import json
import math
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import signals
from helpers.blueprints import real_width, write_hollow, write_imatrix
from helpers.gguf_models import write_model
from trimoe.errors import BadInput, CheckpointError, MissingPrerequisite, Refused, UsageError
from trimoe.io.canonical import sha256_file
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.model.tiny import path as bundled
from trimoe.quantize.ladder.checks import model_name
from trimoe.quantize.ladder.ladder import make_ladder
from trimoe.quantize.ladder.result import TierFile, findings
from trimoe.quantize.ladder.server import distribution, served, tokens_of
from trimoe.quantize.ladder.smoke import (
    Departure,
    Smoke,
    Standard,
    base_fault,
    departure,
    divergence,
    judge,
    passages_of,
    require_good_base,
    standard,
)
from trimoe.quantize.ladder.sources import Effort, Sources, llamacpp_version
from trimoe.quantize.ladder.spec import ImatrixOptions, LadderSpec, load_ladder_spec

QUICK = Effort(1, 1)


def tiers(*names: str) -> LadderSpec:
    return LadderSpec(tiers=names)


@pytest.fixture(scope="module")
def imatrix(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imatrix of the bundled model's shape; layer 2 contributes most."""
    shapes, counts = {}, {}
    for name, info in open_gguf(base).index.items():
        if name.startswith("blk.") and len(info.shape) > 1 and "gate_inp" not in name:
            shapes[name] = (info.shape[0] if len(info.shape) == 3 else 1, info.shape[-1])
            counts[name] = [16.0 if name.startswith("blk.2.") else 64.0] * shapes[name][0]
    return write_imatrix(tmp_path_factory.mktemp("imatrix") / "mine.gguf", shapes, counts)


def test_a_ladder_and_its_rerun(llamacpp: LlamaCpp, base: Path, imatrix: Path, tmp_path: Path) -> None:
    ladder, sources = tiers("Q8_0", "Q4_K_L", "CD-Q4_K_M", "IQ2_XS"), Sources(imatrix=imatrix)
    first = make_ladder(base, tmp_path, ladder, llamacpp, sources=sources, effort=Effort(2, 1))
    assert [file.tier for file in first.files] == ["Q8_0", "Q4_K_L", "CD-Q4_K_M", "IQ2_XS"]
    assert [file.imatrix is not None for file in first.files] == [False, False, True, True]
    for file in first.files:
        assert file.path == tmp_path / f"tiny-{file.tier}.gguf"
        assert (file.path.stat().st_size, sha256_file(file.path)) == (file.file_bytes, file.sha256)
    assert json.loads((tmp_path / "ladder.json").read_text()) == json.loads(json.dumps(first.as_dict(reused=False)))
    keys = ("sha256", "no such tensor", "kept by llama.cpp", "fell back")
    assert tuple(first.as_dict()["files"][2]["map"]) == keys, "the keys of ladder.json"
    types = {name: info.dtype for name, info in open_gguf(tmp_path / "tiny-CD-Q4_K_M.gguf").index.items()}
    assert (types["blk.2.ffn_gate_up_exps.weight"], types["blk.3.ffn_gate_up_exps.weight"]) == ("Q5_K", "Q3_K")
    assert types["token_embd.weight"] == "Q8_0"
    sidecar = json.loads((tmp_path / "tiny-CD-Q4_K_M.tensor-types.txt.json").read_text())
    assert sidecar["importance"] == {"source": "imatrix", "sha256": sha256_file(imatrix)}
    assert not list(tmp_path.glob(".*"))

    again = make_ladder(base, tmp_path, ladder, llamacpp, sources=sources, effort=QUICK)
    assert all(file.reused for file in again.files)
    assert not any(file.reused for file in first.files)
    assert again.as_dict(reused=False) == first.as_dict(reused=False)
    more = make_ladder(base, tmp_path, tiers("Q8_0", "Q6_K"), llamacpp, sources=sources, effort=QUICK)
    assert [file.reused for file in more.files] == [True, False]


def test_killed_and_run_again(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    names = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_K_S,Q3_K_S"
    out, calm = tmp_path / "killed", tmp_path / "calm"
    arguments = ["quantize", base, "--tiers", names, "-o", out, "-t", "1", "--ladder", tmp_path / "ladder.yaml"]
    # the manifest of the third file is written, and the file does not have its name yet
    command = signals.command(signal.SIGKILL, 3, "trimoe.quantize.ladder.manifest:rewrite", arguments, group=True)
    (tmp_path / "ladder.yaml").write_text("smoke: null\n")
    killed = subprocess.run(command, start_new_session=True, stdout=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    finished = {file.name: file.stat().st_mtime_ns for file in out.glob("*.gguf")}
    assert len(finished) == 2
    assert not (out / "ladder.json").exists()

    again = [sys.executable, "-m", "trimoe", *arguments, "--json"]
    answer = subprocess.run(again, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    data = json.loads(answer.stdout)
    assert {row["file"] for row in data["files"] if row["kept"]} == set(finished)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    make_ladder(base, calm, tiers(*names.split(",")), llamacpp, effort=QUICK)
    for file in calm.glob("*.gguf"):
        assert sha256_file(file) == sha256_file(out / file.name)
    assert (calm / "ladder.json").read_bytes() == (out / "ladder.json").read_bytes()


def test_what_lies_in_the_way_is_not_trusted(llamacpp: LlamaCpp, base: Path, imatrix: Path, tmp_path: Path) -> None:
    make_ladder(base, tmp_path, tiers("Q8_0"), llamacpp, effort=QUICK)
    file = tmp_path / "tiny-Q8_0.gguf"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"x")
    with pytest.raises(BadInput, match="was changed after it was made"):
        make_ladder(base, tmp_path, tiers("Q8_0"), llamacpp, effort=QUICK)
    file.write_bytes(data)
    other = tmp_path / "tiny-IQ4_XS.gguf"
    other.write_bytes(data)
    with pytest.raises(BadInput, match="has no manifest"):
        make_ladder(base, tmp_path, tiers("IQ4_XS"), llamacpp, effort=QUICK)
    other.unlink()
    make_ladder(base, tmp_path, tiers("IQ4_XS"), llamacpp, effort=QUICK)
    with pytest.raises(BadInput, match=r"(?s)made from other inputs.*the same imatrix"):
        make_ladder(base, tmp_path, tiers("IQ4_XS"), llamacpp, sources=Sources(imatrix=imatrix), effort=QUICK)


def test_a_stale_map_is_refused(llamacpp: LlamaCpp, base: Path, imatrix: Path, tmp_path: Path) -> None:
    ranking = tmp_path / "ranking.json"
    ranking.write_text('{"ranking": [3, 2, 1, 0]}')
    sources = Sources(imatrix=imatrix, layer_ranking=ranking)
    make_ladder(base, tmp_path / "o", tiers("CD-Q6_K"), llamacpp, sources=sources, effort=QUICK)
    with pytest.raises(Refused, match=r"(?s)stale.*made from file"):
        make_ladder(base, tmp_path / "o", tiers("CD-Q6_K"), llamacpp, sources=Sources(imatrix=imatrix), effort=QUICK)


def refused(base: Path, out: Path, llamacpp: LlamaCpp, ladder: LadderSpec, sources: Sources | None = None) -> None:
    """Runs a ladder that must be refused before anything is written."""
    try:
        make_ladder(base, out, ladder, llamacpp, sources=sources, effort=QUICK)
    finally:
        assert not out.exists()


def test_refused_before_work_starts(llamacpp: LlamaCpp, base: Path, imatrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadInput, match="tier IQ2_XS needs an imatrix"):
        refused(base, out, llamacpp, tiers("Q8_0", "IQ2_XS"))
    with pytest.raises(UsageError, match="there is no tier Q4_K_XXL"):
        refused(base, out, llamacpp, tiers("Q4_K_XXL"))
    with pytest.raises(Refused, match="names file mixes"):
        refused(base, out, llamacpp, tiers("CD-IQ2_K"))
    with pytest.raises(BadInput, match="needs a ranking of layers"):
        refused(base, out, llamacpp, tiers("CD-Q6_K"))
    with pytest.raises(UsageError, match="contradict each other"):
        refused(base, out, llamacpp, tiers("Q8_0"), Sources(imatrix=imatrix, calibration=imatrix))
    foreign = write_imatrix(tmp_path / "foreign.gguf", {"blk.0.attn_q.weight": (1, 2816)})
    with pytest.raises(CheckpointError, match=r"(?s)imatrix of another model.*1 x 256 values.*2816 values"):
        refused(base, out, llamacpp, tiers("Q8_0"), Sources(imatrix=foreign))
    partial = write_imatrix(tmp_path / "partial.gguf", {"blk.0.attn_q.weight": (1, 256)})
    with pytest.raises(BadInput, match=r"(?s)tier IQ2_XS needs an imatrix.*partial.gguf has none"):
        refused(base, out, llamacpp, tiers("IQ2_XS"), Sources(imatrix=partial))
    with pytest.raises(CheckpointError, match=r"already quantized \(Q4_K"):
        refused(write_model(tmp_path / "q4.gguf"), out, llamacpp, tiers("Q8_0"))


def test_a_thin_imatrix_is_refused_unless_allowed(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    name = "blk.1.ffn_down_exps.weight"
    experts, _, width = open_gguf(base).index[name].shape
    thin = write_imatrix(
        tmp_path / "thin.gguf",
        {name: (experts, width)},
        {name: [1.0] * (experts // 2) + [99.0] * (experts - experts // 2)},
    )
    with pytest.raises(Refused, match=rf"layer 1: {experts // 2} of {experts} experts"):
        make_ladder(base, tmp_path / "o", tiers("Q8_0"), llamacpp, sources=Sources(imatrix=thin), effort=QUICK)
    assert not list((tmp_path / "o").glob("tiny*"))
    allowed = LadderSpec(tiers=("Q8_0",), imatrix=ImatrixOptions(allow_thin=True))
    for ladder, sources in ((allowed, Sources(imatrix=thin)), (tiers("Q8_0"), Sources(imatrix=thin, allow_thin=True))):
        table = make_ladder(base, tmp_path / "o", ladder, llamacpp, sources=sources, effort=QUICK)
        assert table.as_dict()["imatrix"]["thin_layers"] == {"1": 0.5}


def test_no_space(llamacpp: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real widths need gigabytes; a disk that has one is refused with the exact need."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("trimoe.io.atomic.shutil.disk_usage", lambda _: usage(10**9, 0, 10**9))
    hollow = write_hollow(tmp_path / "x-BF16.gguf", real_width(30, 98))
    with pytest.raises(MissingPrerequisite, match=r"(?s)not enough disk space.*13,2\d\d,\d\d\d,\d\d\d bytes"):
        refused(hollow, tmp_path / "out", llamacpp, tiers("Q4_K_M"))


def test_rows_that_no_block_fits(llamacpp: LlamaCpp, tmp_path: Path) -> None:
    """Rows of 40 values: llama.cpp would leave them at F16 without a word at the end."""
    whole = real_width(2, 9)
    tensors = tuple(
        replace(t, shape=(*t.shape[:-1], 40)) if "ffn_down_exps.weight" in t.name else t for t in whole.tensors
    )
    odd = write_hollow(tmp_path / "odd.gguf", replace(whole, tensors=tensors))
    with pytest.raises(Refused, match=r"(?s)blk.0.ffn_down_exps.weight cannot be quantized to Q4_K.*rows of 40"):
        refused(odd, tmp_path / "out", llamacpp, tiers("Q4_K_M"))


def test_a_llamacpp_that_chooses_otherwise_is_refused(
    llamacpp: LlamaCpp, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release may have other rules: its dry run differs from the prediction."""
    monkeypatch.setattr("trimoe.quantize.types.type_rules._Rules.output", lambda *_: "Q5_K")
    with pytest.raises(
        Refused, match=r"(?s)chooses other types than predicted.*output.weight|token_embd.weight as Q5_K"
    ):
        make_ladder(base, tmp_path, tiers("Q6_K"), llamacpp, effort=QUICK)
    assert not list(tmp_path.glob("*.gguf"))


ASK = (
    "Count from 32 to 34 with dashes.",
    "Remove honey: honey kettle tent",
    "Cleo has 2 pens. How many pens are left?",
)


@pytest.mark.slow
def test_each_file_is_compared_with_its_base(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    first = LadderSpec(tiers=("Q8_0", "Q4_0"), smoke=Smoke(prompts=ASK))
    table = make_ladder(base, tmp_path, first, llamacpp, effort=QUICK)
    smoked = [file.smoke for file in table.files]
    assert all(smoke is not None and smoke.failed is None for smoke in smoked), smoked
    departures = [smoke.departure for smoke in smoked if smoke]
    assert departures[0].kl < departures[1].kl < 0.1 * departures[1].unrelated
    assert departures[0].positions == departures[1].positions > 20
    assert not table.findings
    silent = make_ladder(base, tmp_path, tiers("Q8_0"), llamacpp, effort=QUICK)
    assert silent.files[0].smoke is None, "figures that nobody judged are not shown as a result"
    # Other prompts are asked again, without making the file again.
    before = (tmp_path / "tiny-Q8_0.gguf").stat().st_mtime_ns
    other = LadderSpec(tiers=("Q8_0",), smoke=Smoke(prompts=ASK[:1]))
    again = make_ladder(base, tmp_path, other, llamacpp, effort=QUICK)
    assert again.files[0].smoke is not None
    assert again.files[0].smoke.departure.positions < departures[0].positions
    assert (tmp_path / "tiny-Q8_0.gguf").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_damaged_file_fails_and_a_base_equals_itself(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    wanted = Smoke(prompts=ASK)
    known = standard(llamacpp, base, wanted, ("The lighthouse",), threads=2)
    assert Standard.from_json(json.loads(json.dumps(known.as_json()))).identity == known.identity
    same = departure(llamacpp, base, known, threads=2)
    assert same.kl < 1e-6
    assert same.agreement == 1
    assert judge(same, wanted, [("smaller", 0.0)]) is None
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(base.read_bytes())
    info = open_gguf(base).index["token_embd.weight"]
    row = info.nbytes // info.shape[0]
    content = base.read_bytes()[info.start : info.end]
    with damaged.open("r+b") as file:  # every token gets its neighbour's row
        file.seek(info.start)
        file.write(content[-row:] + content[:-row])
    found = departure(llamacpp, damaged, known, threads=2)
    assert "of what unrelated text does" in str(judge(found, wanted)), found


@pytest.mark.slow
def test_probabilities_are_given_where_a_token_is_a_part_of_a_character(llamacpp: LlamaCpp, base: Path) -> None:
    """llama-server keeps them back: without a forced token, positions inside characters would be lost."""
    with served(llamacpp, base, threads=2) as url:
        accent = tokens_of(url, "\u4f60")  # a first token, and three bytes
        assert len(accent) == 4
        whole = tokens_of(url, "a")[-1]
        for count in range(1, 5):
            assert len(distribution(url, accent[:count], 20, whole)) == 20


def test_a_file_is_judged_by_its_base() -> None:
    wanted = Smoke(prompts=("x",), most=0.25, over_smaller=2)
    assert judge(Departure("", 10, 0.9, 0.5, 4.0), wanted) is None
    assert "over 1.00: 25% of what unrelated" in str(judge(Departure("", 10, 1.1, 0.5, 4.0), wanted))
    assert judge(Departure("", 10, 0.19, 0.9, 4.0), wanted, [("Q4_0", 0.1)]) is None
    assert "over 2 times as far as Q4_0" in str(judge(Departure("", 10, 0.21, 0.9, 4.0), wanted, [("Q4_0", 0.1)]))
    assert judge(Departure("", 10, 0.04, 0.9, 4.0), wanted, [("Q4_0", 0.001)]) is None, "noise"


def test_a_base_that_cannot_be_a_standard_is_refused() -> None:
    sound = Standard("", ((1, 2),), (False,), ((5,),), (({1: -0.1}, {2: -0.2}),))
    assert base_fault(sound) is None
    silent = Standard("", ((1, 2),), (False,), ((5,),), (({1: -0.1}, {}),))
    assert base_fault(silent) == "it gives no finite probabilities"
    stuck = Standard("", ((1, 1), (1,)), (False, False), ((5,), (6,)), (({1: -0.1}, {1: -0.1}), ({1: -0.1},)))
    assert base_fault(stuck) == "all its replies are one and the same token"
    with pytest.raises(Refused, match=r"(?s)base fails the smoke test.*no finite probabilities"):
        require_good_base(silent, Smoke(prompts=("x",)))
    assert require_good_base(silent, Smoke(prompts=("x",), allow_unchecked=True)) == "it gives no finite probabilities"


def test_divergence_is_that_of_the_listed_tokens_and_the_rest() -> None:
    p, q = {1: math.log(0.5), 2: math.log(0.3)}, {1: math.log(0.25), 2: math.log(0.6), 3: math.log(0.1)}
    want = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.6) + 0.2 * math.log(0.2 / 0.15)
    assert divergence(p, q) == pytest.approx(want)
    assert divergence(p, p) == 0
    assert divergence(p, {}) > 20, "no finite probabilities"
    assert divergence(p, {1: math.log(0.9), 3: math.log(0.05)}) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.3 * math.log(0.3 / 0.05) + 0.2 * math.log(0.2 / 0.05)
    ), "a token that is not listed has at most the smallest listed probability"


def test_passages_are_spread_over_the_text() -> None:
    text = "\n\n".join(f"paragraph {i} " + "word " * 30 for i in range(40))
    found = passages_of(text, count=4, length=100)
    assert [one.split()[1] for one in found] == ["0", "10", "20", "30"]
    assert all(len(one) == 100 for one in found)
    assert passages_of("short") == ()


@pytest.mark.slow
def test_from_a_checkpoint_with_a_calibration_set(llamacpp: LlamaCpp, tmp_path: Path) -> None:
    (tmp_path / "set.yaml").write_text(
        "name: both\nclasses:\n  a: [{kind: tiny, domain: math, count: 30}]\n"
        "  b: [{kind: tiny, domain: code, count: 30}]\n"
    )
    ladder = LadderSpec(tiers=("IQ3_XXS",), imatrix=ImatrixOptions(chunks=4, context=128))
    sources = Sources(calibration=tmp_path / "set.yaml", allow_thin=True)
    out = tmp_path / "out"
    table = make_ladder(bundled(), out, ladder, llamacpp, sources=sources, effort=QUICK, name="tiny")
    assert table.imatrix is not None
    assert table.imatrix.tokens is not None
    assert set(table.imatrix.tokens) == {"a", "b"}
    assert min(table.imatrix.tokens.values()) >= 200
    assert table.imatrix.sha256 == sha256_file(out / "imatrix.gguf")
    assert {file.name for file in out.glob("*.gguf")} == {"tiny-BF16.gguf", "imatrix.gguf", "tiny-IQ3_XXS.gguf"}
    before = (out / "imatrix.gguf").stat().st_mtime_ns
    again = make_ladder(bundled(), out, ladder, llamacpp, sources=sources, effort=QUICK, name="tiny")
    assert again.files[0].reused
    assert (out / "imatrix.gguf").stat().st_mtime_ns == before


def test_equal_files_are_a_finding() -> None:
    files = [
        TierFile(tier, Path("f.gguf"), 1, sha256, 4.0, {}, None, 0, reused=False)
        for tier, sha256 in (("Q4_K_M", "a"), ("CD-Q4_K_M", "a"), ("Q6_K", "b"))
    ]
    assert findings(files) == ["CD-Q4_K_M has the same bytes as Q4_K_M"]


def test_names(tmp_path: Path) -> None:
    for name, want in (("m-BF16.gguf", "m"), ("m.f16.gguf", "m"), ("m-BF16-00001-of-00002.gguf", "m"), ("m.gguf", "m")):
        (tmp_path / name).write_bytes(b"GGUF")
        assert model_name(tmp_path / name) == want
    assert model_name(bundled()) == "checkpoint"


def test_ladder_files(tmp_path: Path) -> None:
    shipped = load_ladder_spec()
    assert len(shipped.resolved()) == 27
    assert shipped.smoke is not None
    assert shipped.imatrix.chunks * shipped.imatrix.context == 65536
    file = tmp_path / "ladder.yaml"
    for text in (
        "tires: [Q8_0]",
        "base: Q8_0",
        "tiers: all",
        "smoke: {prompts: []}",
        "imatrix: {chunks: 0}",
        "[",
        "- 1",
        "smoke: {prompts: [{ask: a, expect: b}]}",
    ):
        file.write_text(text)
        with pytest.raises(BadInput):
            load_ladder_spec(file)
    with pytest.raises(BadInput, match="cannot be read"):
        load_ladder_spec(tmp_path / "none.yaml")


def test_version_without_our_build_record() -> None:
    assert llamacpp_version(LlamaCpp("PATH", {}, None)) == "unknown"
