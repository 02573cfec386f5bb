"""KL divergence through llama-perplexity: the report is read rightly, and numbers agree with what they must be."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.blueprints import real_width, write_hollow
from trimoe.errors import BadInput, CheckpointError
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.quantize import perplexity
from trimoe.quantize.kld import measure, summary
from trimoe.quantize.perplexity import Measured, parse

REPORT = """
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS         Same top p
   1     891.5705 ±  633.2310       0.77268 ±    0.22956       0.00100 ±    0.00039     0.475 ±  0.074 % 99.0 ±  0.0 %
   2    1776.4542 ±  898.2963      -0.83722 ±    0.16642       0.00300 ±    0.00240     1.465 ±  0.664 % 98.4 ±  0.7 %
   3    1776.4542 ±  898.2963       0.83722 ±    0.16642       0.00200 ±    0.00240     1.465 ±  0.664 % 98.4 ±  0.7 %

====== Perplexity statistics ======
Mean PPL(Q)                   : 1313.577671 ± 227.242096
Mean PPL(base)                : 608.949761 ±  77.839377

====== KL divergence statistics ======
Mean    KLD:   0.002000 ±   0.001332
Maximum KLD:   1.481316
99.0%   KLD:   0.130027
Median  KLD:  -0.000216
 1.0%   KLD:  -0.000000

Same top p: 97.785 ± 0.327 %
"""


def test_reading_a_report() -> None:
    found = parse(REPORT, Path("x.gguf"))
    assert found.values == {
        "kld": 0.002,
        "kld_median": -0.000216,
        "kld_99": 0.130027,
        "perplexity": 1313.577671,
        "same_top": 97.785,
    }
    np.testing.assert_allclose(found.chunks, [0.001, 0.005, 0.0], atol=1e-12)
    # What is all rounding has no error; its chunk must not be lost, or every later one would be wrong.
    again = parse(REPORT.replace("0.00300 ±    0.00240", "0.00300 ±       -nan"), Path("x.gguf"))
    np.testing.assert_array_equal(again.chunks, found.chunks)
    with pytest.raises(BadInput, match="has gaps"):
        parse(REPORT.replace("   2    1776", "   x    1776"), Path("x.gguf"))
    for line in ("Mean    KLD", "Same top p", "Mean PPL"):
        with pytest.raises(BadInput, match=r"gave no statistics for x\.gguf"):
            parse(REPORT.replace(line, "?"), Path("x.gguf"))


def test_intervals_are_paired(tmp_path: Path) -> None:
    """Two files that differ by a constant on chunks that vary a lot: the difference is certain, the levels are not."""
    files = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for file in files:
        file.write_text("x")
    (tmp_path / "text").write_text("x")
    chunks = np.linspace(0.01, 0.2, 40)
    found = [
        Measured(file, {"kld": float((chunks + plus).mean())}, chunks + plus)
        for file, plus in zip(files, (0.0, 0.01), strict=True)
    ]
    first, second = summary(tmp_path / "base.gguf", found, tmp_path / "text", 512).files
    assert first.more_than_best_interval == (0.0, 0.0)
    np.testing.assert_allclose(second.more_than_best_interval, [0.01, 0.01], atol=1e-9)
    low, high = first.interval
    error = chunks.std(ddof=1) / len(chunks) ** 0.5
    assert low == pytest.approx(chunks.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(chunks.mean() + 1.96 * error, abs=0.15 * error)


def test_an_incomplete_report_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-perplexity may lose the end of what it prints: of the base's report as well as of a comparison's."""
    for end, whole in (
        (perplexity._FINAL["same_top"], REPORT),
        (perplexity._BASE, "[1]12.5,\nFinal estimate: PPL = 12.5 +/- 0.4\n"),
    ):
        answers = [whole[: len(whole) // 2], "", whole]
        monkeypatch.setattr(perplexity, "_run", lambda *_, answers=answers: answers.pop(0))
        assert perplexity._complete([], Path("x"), end) == whole
        assert not answers
    monkeypatch.setattr(perplexity, "_run", lambda *_: REPORT[:300])
    with pytest.raises(BadInput, match="no statistics"):
        parse(perplexity._complete([], Path("x"), perplexity._FINAL["same_top"]), Path("x"))


def test_files_of_the_bundled_model(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    files = []
    for kind in ("Q8_0", "Q4_0"):
        files.append(tmp_path / f"{kind}.gguf")
        subprocess.run(
            [llamacpp.program("llama-quantize"), base, files[-1], kind, "1"], capture_output=True, check=True
        )
    text = tmp_path / "text.txt"
    text.write_text("The sky is blue and the fox ran home. 12 plus 30 is 42. def add(a, b): return a + b. " * 40)
    data = measure(llamacpp, base, [*files, base], text, chunks=4, context=128, threads=1)
    fine, coarse, same = data.files
    assert data.tokens == 4 * 63
    assert 0 < fine.kld < coarse.kld
    assert fine.interval[0] <= fine.kld <= fine.interval[1]
    # The base against its own logits: nothing but their storage in 16 bits.
    assert abs(same.kld) < 1e-3
    assert data.best == base.name


def test_another_vocabulary_is_refused(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    other = write_hollow(tmp_path / "other.gguf", real_width(2, 9))
    (tmp_path / "text").write_text("x")
    with pytest.raises(CheckpointError, match=r"(?s)another vocabulary.*262144"):
        measure(llamacpp, base, [other], tmp_path / "text", chunks=2, context=64, threads=1)


def test_too_short_a_text(llamacpp: LlamaCpp, base: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("short")
    with pytest.raises(BadInput, match="llama-perplexity"):
        measure(llamacpp, base, [base], tmp_path / "text", chunks=2, context=64, threads=1)
