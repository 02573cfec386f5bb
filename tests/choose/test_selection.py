"""What a choice says about itself: the reason for each expert, tables, pictures; and the arguments of `choose`."""

import base64
import re
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.heatmap import heatmap_html
from trimoe.choose.choose import choose
from trimoe.choose.dropmap import DropMap
from trimoe.choose.score import descending
from trimoe.choose.selection import Selection
from trimoe.errors import MapError, MissingPrerequisite, RecipeError, UsageError

GOLDEN = Path(__file__).parent / "golden"
TARGETED, BASE = str(GOLDEN / "targeted.json.gz"), GOLDEN / "base.json.gz"


def chosen(**fields: Any) -> Selection:
    return choose(TARGETED, base_stats=BASE, **fields)


def test_every_expert_has_the_reason_that_decided() -> None:
    plain, seen = chosen(), Counter[tuple[str, bool]]()
    pins = {0: [1, 2, 3, 4, 5, 6, 7, 8], 3: [0, 31]}
    for made in (plain, chosen(force_keep=pins), chosen(class_min={"choice": 9, "math": 9})):
        assert made.pooled is not None
        swaps = Counter[tuple[str, bool]]()
        for row, (layer, gone) in enumerate(made.drop.items()):
            best = descending(made.scores.aggregate[row])[:4]
            floor = descending(made.pooled[row])[: made.metadata["floors"][row]]
            for expert, reason in enumerate(made.reasons[layer]):
                dropped = expert in gone
                seen[reason, dropped] += 1
                if reason in ("forced", "class minimum"):
                    swaps[reason, dropped] += 1
                    assert dropped != (expert in plain.drop[layer]), "a swap changes what would have been"
                else:
                    assert dropped == (expert in plain.drop[layer])
                    assert (reason == "ranked") == (expert not in {*best, *floor})
                    assert (reason == "protected") == (expert in best)
                    assert not (dropped and reason != "ranked")
                assert reason != "forced" or dropped or expert in pins[layer]
        for reason, _ in swaps:
            assert swaps[reason, True] == swaps[reason, False], "each swap keeps one expert and drops another"
    assert {reason for reason, _ in seen} == {"protected", "floor", "class minimum", "forced", "ranked"}


def test_explain_reads_what_the_choice_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chosen()
    monkeypatch.setattr("trimoe.choose.score.raw_scores", None)  # nothing may be scored again
    told = [made.explain(0, expert) for expert in range(32)]
    assert sorted(t["rank"] for t in told) == list(range(1, 33))
    assert [t["dropped"] for t in told] == [expert in made.drop[0] for expert in range(32)]
    assert [t["reason"] for t in told] == list(made.reasons[0])
    assert sum(t["protected_by_rank"] for t in told) == 4
    assert sum(t["protected_by_floor"] for t in told) == told[0]["floor"] == made.metadata["floors"][0]
    assert set(told[0]["classes"]) == set(made.scores.weights)
    with pytest.raises(MapError, match="no expert 5:0"):
        made.explain(5, 0)


def test_a_selection_is_a_map_like_its_file(tmp_path: Path) -> None:
    made = chosen(keep=20)
    made.save(str(tmp_path / "map.json"))
    assert DropMap.load(str(tmp_path / "map.json")) == made
    assert repr(made) == "Selection(4 layers, drops 12 of 32 experts)"
    assert repr(DropMap({0: (1,), 1: ()})) == "DropMap(2 layers, drops 0-1 experts)"
    assert made.difference(chosen(keep=20)) == {"swaps": 0, "layers": {}}


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"keep": 3, "drop_fraction": 0.5}, UsageError, "contradict"),
        ({"floor": (1, 3), "floor_clamp": (1, 3)}, UsageError, "floor contradicts floor_clamp"),
        ({"floor": None, "floors": [3] * 4}, UsageError, "floor contradicts floors"),
        ({"class_weight": {"code": 3}}, UsageError, "did you mean class_weights"),
        ({"class_weights": {"kode": 3}}, RecipeError, "no class matches kode"),
        ({"outliers": ("mean", 1)}, RecipeError, "outliers"),
        ({"outliers": 3}, UsageError, "cannot read 3"),
        ({"floor": 3}, UsageError, "cannot read 3"),
        ({"floors": [3] * 3}, RecipeError, "does not give every layer a count"),
        ({"floors": [3] * 4, "floor_clamp": (9, 3)}, RecipeError, "LO <= HI"),
        ({"aggregate": "median"}, RecipeError, "aggregate"),
        ({"alpha": float("inf")}, RecipeError, "alpha"),
        ({"recipe": "v5-codr"}, RecipeError, "unknown recipe"),
    ],
)
def test_arguments_that_cannot_be(fields: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        chosen(**fields)


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chosen()
    frame = made.to_pandas()
    assert list(frame.columns) == ["layer", "expert", "dropped", "score", "reason"]
    assert len(frame) == 4 * 32
    assert frame[frame.dropped].groupby("layer").expert.apply(tuple).to_dict() == made.drop
    row = frame[(frame.layer == 2) & (frame.expert == 7)].iloc[0]
    assert (row.score, row.reason) == (made.explain(2, 7)["score"], made.explain(2, 7)["reason"])
    assert list(DropMap(made.drop, 32).to_pandas().columns) == ["layer", "expert", "dropped"]
    with pytest.raises(MapError, match="number of experts"):
        DropMap({0: (1,)}).to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPrerequisite, match="needs the package pandas"):
        made.to_pandas()


def pixels(page: str) -> np.ndarray:
    """The picture of an HTML element, decoded by the rules of PNG: [rows, columns, 3]."""
    found = re.search(r"base64,([^\"]+)", page)
    assert found
    data = base64.b64decode(found[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_pictures_show_the_map() -> None:
    made = chosen()
    orange = (pixels(made._repr_html_()) == (217, 72, 1)).all(-1)
    assert [tuple(np.flatnonzero(row)) for row in orange] == list(made.drop.values())
    assert (orange == (pixels(DropMap(made.drop, 32)._repr_html_()) == (217, 72, 1)).all(-1)).all()
    stats = ExpertStats(("a",), {"tc": np.array([[[0.0, 5.0, 10.0], [1.0, 1.0, 1.0]]])})
    shown = pixels(stats._repr_html_()).astype(int)
    assert (np.diff(shown[0].sum(-1)) < 0).all(), "darker is more"
    assert len({tuple(p) for p in shown[1]}) == 1
    page = heatmap_html("<b>", np.array([[np.nan, 1.0]]))
    assert "<b>" not in page
    assert tuple(pixels(page)[0, 0]) == (189, 189, 189)
