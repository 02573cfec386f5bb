"""Data files: what is refused, with which path, and what the message suggests."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimoe.errors import BadInput, RecipeError
from trimoe.io.datafile import Data, convert, load, parse, read


class Inner(Data, kw_only=True):
    width: int = 1
    share: float = 0.0


class Outer(Data, kw_only=True):
    name: str
    parts: dict[str, Inner] = msgspec.field(default_factory=dict)
    order: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'name = "x"\n[parts.a]\nwidth = 3\n'),
        ("a.yaml", "name: x\nparts: {a: {width: 3}}\n"),
        ("a.json", '{"name": "x", "parts": {"a": {"width": 3}}}'),
    ],
)
def test_the_same_data_in_each_format(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert load(Outer, tmp_path / name, f"file {name}") == Outer(name="x", parts={"a": Inner(width=3)})


def test_a_misspelt_key_names_its_path_and_the_nearest_known_key() -> None:
    with pytest.raises(RecipeError) as caught:
        convert({"name": "x", "order": [{"widht": 3}]}, Outer, "recipe r", error=RecipeError, remedy="look")
    assert caught.value.subject == "recipe r: order[0].widht"
    assert "did you mean `width`?" in caught.value.actual
    assert caught.value.remedy == "look"


def test_an_error_inside_a_mapping_names_its_key() -> None:
    parts = {"sound": {"width": 3}, "v1.0 [x]": {"width": "wide"}, "also": {"width": 3}}
    with pytest.raises(BadInput) as caught:
        convert({"name": "x", "parts": parts}, Outer, "file f")
    assert caught.value.subject == "file f: parts.v1.0 [x].width"


def test_a_path_is_written_as_text() -> None:
    assert convert({"a": "x/y", "b": None}, dict[str, Path | None], "file f") == {"a": Path("x/y"), "b": None}
    with pytest.raises(BadInput, match="Expected `path`"):
        convert({"a": 3}, dict[str, Path | None], "file f")


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("yaml", "a: 1\na: 2\n", "twice"),
        ("yaml", "a: {b: 1, b: 2}\n", "twice"),
        ("json", '{"a": 1, "a": 2}', "twice"),
        ("toml", "a = 1\na = 2\n", ""),
        ("yaml", "a: 2020-13-45\n", ""),
        ("yaml", "a: [", ""),
        ("yaml", "a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("json", "[" * 100_000, ""),
    ],
)
def test_text_that_is_not_valid(kind: str, text: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, "the file", kind)  # type: ignore[arg-type]
    assert f"not valid {kind.upper()}" in caught.value.subject
    assert says in caught.value.actual


@pytest.mark.parametrize(("kind", "text"), [("toml", "a.b = [1.0, nan]"), ("yaml", "a: {b: [1.0, .inf]}")])
def test_numbers_that_are_not_finite_are_named(kind: str, text: str) -> None:
    with pytest.raises(BadInput, match=r"a\.b\[1\] is not a finite number"):
        parse(text, "the file", kind)  # type: ignore[arg-type]


def test_a_merge_key_may_be_overridden() -> None:
    text = "base: &b {width: 1, share: 2}\nover: {<<: *b, width: 3}\n"
    assert parse(text, "the file", "yaml")["over"] == {"width": 3, "share": 2}


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "odd.txt").write_text("")
    for name, says in (("none.toml", "cannot be read"), ("bytes.toml", "not text"), ("odd.txt", "unknown suffix")):
        with pytest.raises(BadInput, match=says):
            read(tmp_path / name, "the file")
    monkeypatch.setattr("trimoe.io.datafile.LARGEST", 10)
    (tmp_path / "long.toml").write_text("a = 1\n" * 10)
    with pytest.raises(BadInput, match="too large"):
        read(tmp_path / "long.toml", "the file")


def test_any_json_object_is_taken_or_refused() -> None:
    values = st.text() | st.integers() | st.booleans()
    named = st.fixed_dictionaries({"name": st.text()}) | st.fixed_dictionaries({"name": values, "other": values})
    seen = {"taken": 0, "refused": 0}

    @given(st.dictionaries(st.text(), values, max_size=3) | named)
    def check(data: dict[str, object]) -> None:
        try:
            found = convert(data, Outer, "x")
        except BadInput:
            assert data.keys() != {"name"} or not isinstance(data["name"], str)
            seen["refused"] += 1
        else:
            assert found.name == data["name"]
            seen["taken"] += 1

    check()
    assert min(seen.values()) >= 10, seen


def test_a_name_alone_is_enough() -> None:
    assert convert({"name": "x"}, Outer, "x").parts == {}
