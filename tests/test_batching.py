"""Every text runs exactly once, in the smallest bucket that holds it, and no batch is padded where it does not pay."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corembed import batching
from corembed.release import Function

lengths = st.lists(st.integers(1, 512), max_size=200)
shapes = st.sets(
    st.tuples(st.sampled_from([1, 2, 4, 8, 32]), st.sampled_from([16, 64, 128])), max_size=8
).map(lambda extra: [Function(f"f{b}x{n}", b, n) for b, n in sorted(extra | {(1, 512)})])


@given(lengths, shapes, st.none() | st.integers(1, 64))
def test_every_text_runs_once_in_the_smallest_bucket(counts, functions, batch_size):
    calls = batching.plan(counts, functions, batch_size)

    assert sorted(itertools.chain(*(c.rows for c in calls))) == list(range(len(counts)))
    for call in calls:
        assert 1 <= len(call.rows) <= call.function.batch
        smallest = min(f.batch for f in functions if f.length == call.function.length)
        assert batch_size is None or call.function.batch <= max(batch_size, smallest)
        for row in call.rows:
            assert call.function.length == min(f.length for f in functions if f.length >= counts[row])


@given(lengths, shapes)
def test_a_batch_is_padded_only_when_nearly_full_or_without_alternative(counts, functions):
    for call in batching.plan(counts, functions):
        smallest = min(f.batch for f in functions if f.length == call.function.length)
        full = len(call.rows) / call.function.batch
        assert full >= batching.FULL_ENOUGH or call.function.batch == smallest


@given(lengths, shapes, st.randoms())
def test_order_of_texts_changes_no_shape(counts, functions, random):
    shuffled = random.sample(counts, len(counts))

    assert [(c.function, len(c.rows)) for c in batching.plan(counts, functions)] == [
        (c.function, len(c.rows)) for c in batching.plan(shuffled, functions)
    ]


@pytest.mark.parametrize(
    ("texts", "expected"), [(32, [32]), (26, [32]), (25, [8, 8, 8, 1]), (7, [8]), (6, [1] * 6)]
)
def test_batches_of_one_bucket(texts, expected):
    functions = [Function(f"length_64_batch_{b}", b, 64) for b in (1, 8, 32)]

    assert [c.function.batch for c in batching.plan([5] * texts, functions)] == expected
