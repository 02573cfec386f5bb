"""Batches: every window once, padding that depends on the window alone, classes side by side."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.calibrate.forward.batching import batches_of, padded_length, token_ids
from trimoe.calibrate.text.calibration import Document, windows_of

documents = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 90), st.sampled_from([1.0, 3.0]), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(st.integers(1, 1 << 20))
def test_padding_is_little_and_depends_on_the_length_alone(tokens: int) -> None:
    length = padded_length(tokens)
    assert length >= tokens
    assert length % 8 == 0
    assert length - tokens < max(8, tokens / 8)
    assert padded_length(length) == length


@given(documents, st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_every_window_is_in_one_batch(rows: list[tuple[str, int, float, bool]], batch_tokens: int) -> None:
    made = [
        Document(c, tuple(range(i, i + n)), w, tuple(t % 3 == 0 for t in range(n)) if part else None)
        for i, (c, n, w, part) in enumerate(rows)
    ]
    windows = windows_of(made, 40, 4)
    batches = batches_of(windows, batch_tokens)
    assert sorted(i for batch in batches for i in batch.windows) == list(range(len(windows.windows)))
    assert [b.length for b in batches] == sorted((b.length for b in batches), reverse=True)
    for batch in batches:
        assert batch.real.size <= max(batch_tokens, batch.length)
        ids = token_ids(windows, batch)
        for row, i in enumerate(batch.windows):
            window = windows.windows[i]
            assert batch.length == padded_length(len(window.tokens))
            assert (ids[row][batch.real[row]] == window.tokens).all()
            assert (batch.counted[row][batch.real[row]] == window.counted).all()
            assert not batch.counted[row][~batch.real[row]].any()
            assert (batch.category[row], batch.weight[row], batch.shards[row]) == (
                window.category,
                window.weight,
                window.shard,
            )
        assert batch.full == batch.real.all()
        assert (np.diff(batch.window) >= 0).all()
        assert (np.diff(batch.run) >= 0).all()
        for token in range(len(batch.places)):
            row = batch.window[token]
            assert batch.runs[batch.run[token]] == (batch.category[row], batch.weight[row])
        assert len(set(batch.runs)) == len(batch.runs)
