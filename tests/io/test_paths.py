"""Paths in hand-written files stay below the folder of their file, or below one that the command line names."""

from pathlib import Path

import pytest

from trimoe.bench.answer_table import open_bench
from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.errors import BadInput, BenchError, CalibrationError
from trimoe.io.paths import places, require_inner
from trimoe.judge.frontier.score_table import read_score_table

OUTSIDE = ["/etc/hostname", "../secret.jsonl", "a/../../secret.jsonl", "..", "./../secret.jsonl", "//etc/hostname"]
BENCH = """
name = "tickets"
version = 1
about = "x"
licence = "x"
metric = "exact_match"
[[dataset]]
{part}
rows = 1
{shots}
[prompt]
user = "{{q}}"
[answer]
gold = "{{a}}"
find = ["."]
[generation]
max_new_tokens = 5
thinking = "off"
[serving.llamacpp]
reasoning = "off"
"""
SHOTS = """
[few_shot]
k = 1
rule = "random"
[few_shot.dataset]
local = "shots"
files = ["{path}"]
rows = 1
"""


@pytest.mark.parametrize("path", [*OUTSIDE, "", " ", "C:\\Users\\x", "\\\\host\\share", "a\\..\\..\\b", "a\0b"])
def test_a_path_that_is_not_inside_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="relative path below"):
        require_inner(path, "files")


@pytest.mark.parametrize("path", ["a.jsonl", "a/b.jsonl", "a..b.jsonl", "...", "~x/b", "./a"])
def test_a_path_inside_is_taken(path: str) -> None:
    require_inner(path, "files")


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_bench_reads_no_file_outside_its_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"q": "1", "a": "1"}\n')
    folder = tmp_path / "bench"
    folder.mkdir()
    for number, part in enumerate((f'local = "x"\nfiles = ["{path}"]', f'local = "{path}"', 'local = "x"')):
        file = folder / f"b{number}.toml"
        file.write_text(BENCH.format(part=part, shots=SHOTS.format(path=path) if number == 2 else ""))
        with pytest.raises(BenchError, match="relative path below the data folder"):
            open_bench(file)


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(
    "source",
    [
        "{{kind: jsonl, path: {path}}}",
        "{{kind: text, path: {path}}}",
        "{{kind: dataset, path: {path}}}",
        "{{kind: prompts, path: {path}}}",
        "{{kind: prompts, builtin: math, replies: {path}}}",
        "{{kind: lm-eval, path: s.jsonl, bench: b, against: {path}}}",
    ],
)
def test_a_calibration_set_reads_no_file_outside_its_folder(source: str, path: str, tmp_path: Path) -> None:
    file = tmp_path / "sets" / "set.yaml"
    file.parent.mkdir()
    file.write_text(f"name: s\nclasses:\n  generic_a: [{source.format(path=path)}]\n")
    with pytest.raises(CalibrationError, match="outside its folder"):
        CalibrationSet.load(file)


def test_a_named_folder_is_a_place_too(tmp_path: Path) -> None:
    sets, data = tmp_path / "sets", tmp_path / "data"
    for folder, text in ((sets, "beside"), (data, "named")):
        folder.mkdir()
        (folder / f"{text}.txt").write_text(text)
    (sets / "link.txt").symlink_to(data / "named.txt")
    listed = ("beside.txt", "named.txt", str(data / "named.txt"), "link.txt", "sub/../beside.txt")
    lines = "\n".join(f"    - {{kind: text, path: {path}}}" for path in listed)
    (sets / "set.yaml").write_text(f"name: s\nclasses:\n  generic_a:\n{lines}\n")
    found = CalibrationSet.load(sets / "set.yaml", data=data).texts()["generic_a"]
    assert [text.text for text in found] == ["beside", "named", "named", "named", "beside"]
    with pytest.raises(CalibrationError, match="--data may name another folder"):
        CalibrationSet.load(sets / "set.yaml")


def test_a_link_to_a_folder_is_no_way_out(tmp_path: Path) -> None:
    outer, sets = tmp_path / "outer" / "inner", tmp_path / "sets"
    outer.mkdir(parents=True)
    sets.mkdir()
    (sets / "link").symlink_to(outer)
    assert places(sets, "set x")(Path("link/../secret.txt")) == sets / "secret.txt"  # not outer/../secret.txt


def test_a_set_is_read_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), Path("."), Path("a/..")):
        assert places(folder, "set x")(Path("t.txt")).absolute() == tmp_path / "t.txt"
        with pytest.raises(BadInput, match="outside its folder"):
            places(folder, "set x")(Path("../t.txt"))


def test_a_score_table_measures_no_file_outside_its_folder(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("model,tier,file,score\na,b,/etc/hostname,5\n")
    with pytest.raises(BadInput, match="outside its folder"):
        read_score_table(table, [], "b")
