"""The text for llama-imatrix is balanced over classes by tokens."""

from hypothesis import given
from hypothesis import strategies as st

from trimoe.quantize.ladder.text import balance

DOCUMENTS = st.lists(st.integers(1, 50), max_size=20).map(lambda sizes: [(f"d{n}", n) for n in sizes])


@given(st.dictionaries(st.sampled_from("abcdef"), DOCUMENTS, min_size=1), st.integers(0, 2000))
def test_classes_differ_by_at_most_one_document(documents: dict[str, list[tuple[str, int]]], enough: int) -> None:
    found = balance(documents, enough)
    largest = max((size for items in documents.values() for _, size in items), default=0)
    assert max(found.tokens.values()) - min(found.tokens.values()) <= largest
    assert found.total < enough + largest or found.total == enough == 0
    for name, items in documents.items():
        sizes = [size for _, size in items]
        assert found.tokens[name] in [sum(sizes[:i]) for i in range(len(sizes) + 1)]  # a beginning of its documents
    if found.total < enough:  # a class ran dry
        assert any(found.tokens[name] == sum(size for _, size in items) for name, items in documents.items())


def test_order_and_text() -> None:
    found = balance({"a": [("a1", 4), ("a2", 4)], "b": [("b1", 1), ("b2", 1), ("b3", 9), ("b4", 1)]}, 16)
    # a1 (tie: first class), b1, b2, b3 (b has had fewer), a2, and 19 tokens are more than 16
    assert found.text == "a1\n\nb1\n\nb2\n\nb3\n\na2\n"
    assert found.tokens == {"a": 8, "b": 11}
