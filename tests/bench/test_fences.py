"""The fence reader: what opens and closes a block, and the two readings of a reply."""

import pytest

from trimoe.bench.fences import Block, blocks, candidates, defines


def closed(text: str) -> list[str]:
    return [block.text for block in blocks(text) if block.closed]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\na = 1\n```", ["a = 1"]),
        ("x\n  ```\n    a\n      b\n  ```\ny", ["a\n  b"]),  # indented, dedented by its first line
        ("```\na\n```\n```js\nb\n```", ["a", "b"]),
        ("```python\na", []),  # not closed
        ("```python\nlost\n```python\nkept\n```", ["kept"]),  # a fence inside starts over
        ("```\n```", [""]),
        ("`a` ``` b", []),
        ("```x = 1``` in a line\n```\na\n```", ["a"]),  # code within a line opens nothing
        ("````\na\n```\nb\n````", ["a\n```\nb"]),  # a shorter fence is text
        ("````markdown\n```python\na\n```\n````", ["a"]),
        ("~~~\na\n~~~", ["a"]),
        ("~~~python\na\n```\nb\n~~~", ["a\n```\nb"]),  # the other characters are text
        ("1. ```python\n   a\n   ```", ["a"]),
        ("- ~~~\n  a\n  ~~~", ["a"]),
        ("```python\r\na\r\n```\r\n", ["a\r"]),
    ],
)
def test_closed_blocks(text: str, found: list[str]) -> None:
    assert closed(text) == found


def test_a_block_knows_its_tag_and_its_ends() -> None:
    assert blocks("```python\na") == [Block("a", "python", closed=False)]
    assert blocks("a\n```\nb\n```py\nc\n```", inside=True) == [Block("a", opened=False), Block("c", "py")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\n```\nb", [("a", False), ("b", True)]),
        ("a\n```\nb\n```\nc", [("a", False), ("b", True), ("c", True)]),
        ("a\n```python\nb\n```", [("b", True)]),  # a tag opens, so nothing was open before it
        ("a", [("a", False)]),
        ("```\na\n```", [("a", True)]),
        ("", []),
    ],
)
def test_a_reply_may_begin_inside(text: str, found: list[tuple[str, bool]]) -> None:
    assert [(block.text, block.opened) for block in candidates(text)] == found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(): pass", 1),
        ("  async def f(): pass\nclass Node: pass", 2),
        ("f = lambda x: x", 1),
        ("f: int = 3", 1),
        ("f == 3\nassert f(1) == 2\nprint(f)", 0),
        ("if (x:\ndef f(", 1),  # need not parse
    ],
)
def test_defines(source: str, count: int) -> None:
    assert defines(source, ["f", "Node"]) == count
