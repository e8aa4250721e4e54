"""One-dimensional k-means over groups of weights, all groups at once.

In one dimension clusters are intervals of the sorted values, so with prefix sums one Lloyd step costs a search for
each border instead of a distance for each value (Lloyd 1982; Grønlund et al. 2017, arXiv:1701.07204).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_STEPS = 200
_STARTS = (0.5, 1.0, 1.5)
"""Exponents by which the first centres crowd towards the middle: uniform quantiles put too many there, even steps
too few; the best of these starts is kept for each group."""


def cluster(
    groups: npt.NDArray[np.float16], entries: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """The tables (groups, entries) as FP16, ascending, and the index of each value, shape of `groups`."""
    tables = np.empty((len(groups), entries), np.float16)
    indices = np.empty(groups.shape, np.uint8)
    for number, values in enumerate(groups):
        tables[number] = _table(np.sort(values.astype(np.float64)), entries)
        borders = _borders(tables[number].astype(np.float64))
        indices[number] = np.searchsorted(borders, values.astype(np.float64))
    return tables, indices


def _borders(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (centres[1:] + centres[:-1]) / 2


def _table(ordered: npt.NDArray[np.float64], entries: int) -> npt.NDArray[np.float16]:
    distinct = np.unique(ordered)
    if len(distinct) <= entries:  # every value has an entry of its own
        return np.pad(distinct, (0, entries - len(distinct)), mode="edge").astype(np.float16)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    best, least = ordered[:entries], np.inf
    for exponent in _STARTS:
        centres = _start(ordered, entries, exponent)
        for _ in range(_STEPS):
            edges = np.concatenate([[0], np.searchsorted(ordered, _borders(centres)), [len(ordered)]])
            counts = np.diff(edges)
            means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
            if np.array_equal(means, centres):
                break
            centres = means
        error = float(
            np.sum(np.diff(squares[edges]) - 2 * centres * np.diff(sums[edges]) + counts * centres**2)
        )
        if error < least:
            best, least = centres, error
    return np.sort(best).astype(np.float16)


def _start(ordered: npt.NDArray[np.float64], entries: int, exponent: float) -> npt.NDArray[np.float64]:
    steps = np.linspace(-1, 1, entries)
    spread = (np.sign(steps) * np.abs(steps) ** exponent + 1) / 2
    quantiles = np.quantile(ordered, spread)
    even = ordered[0] + (ordered[-1] - ordered[0]) * np.linspace(0, 1, entries)
    return np.sort((quantiles + even) / 2)
