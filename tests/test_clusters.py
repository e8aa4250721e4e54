"""One-dimensional k-means: what is fast finds what is certain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import clusters


def squared_error(values, weights, centres):
    nearest = np.square(values[:, None] - centres).min(1)
    return float((weights * nearest).sum())


def drawn(kind, rng, count):
    """Values whose density is smooth, has two far modes, has long tails, or that lie on a grid, with gaps or without."""
    if kind == "normal":
        values = rng.normal(size=count)
    elif kind == "modes":
        values = np.concatenate([rng.normal(-9, 0.1, count // 3), rng.normal(4, 2, count - count // 3)])
    elif kind == "tails":
        values = rng.standard_t(1.5, count)
    else:
        values = rng.choice((4 if kind == "grid" else 1) * count, size=count, replace=False).astype(float)
    return np.unique(values.astype(np.float32)).astype(np.float64)


@given(
    kind=st.sampled_from(["normal", "modes", "tails", "grid", "even"]),
    seed=st.integers(0, 10**6),
    count=st.integers(70, 700),
    entries=st.sampled_from([2, 3, 16, 64]),
    weighted=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_one_row_at_the_right_price_finds_what_all_rows_find(kind, seed, count, entries, weighted):
    rng = np.random.default_rng(seed)
    values = drawn(kind, rng, count)
    weights = rng.uniform(0.1, 10, len(values)) if weighted else np.ones(len(values))
    least = squared_error(values, weights, clusters.by_rows(values, weights, entries))
    found = squared_error(values, weights, clusters.by_price(values, weights, entries))

    assert found == pytest.approx(least, rel=1e-9)


def test_all_rows_find_what_trying_all_finds():
    rng = np.random.default_rng(5)
    values, weights = np.sort(rng.normal(size=11)), rng.uniform(0.1, 4, size=11)

    def error(cuts):
        spans = itertools.pairwise((0, *cuts, 11))
        return sum(
            (weights[a:b] * np.square(values[a:b] - np.average(values[a:b], weights=weights[a:b]))).sum()
            for a, b in spans
        )

    least = min(error(cuts) for cuts in itertools.combinations(range(1, 11), 3))

    assert squared_error(values, weights, clusters.by_rows(values, weights, 4)) == pytest.approx(least)
