"""One-dimensional k-means over groups of weights.

In one dimension a cluster is an interval of the sorted values, and prefix sums give the squared error of any
interval at once. So a dynamic programme over some 200 borders finds the best intervals up to that grid (Wang and
Song 2011, doi:10.32614/RJ-2011-015), and Lloyd's steps, each a search for the borders, then place them exactly
(Lloyd 1982). Deterministic: nothing is drawn at random.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

_GRID = 96  # borders at quantiles, and as many at even distances: the middle and the tails of the values
_STEPS = 100


def cluster(
    groups: npt.NDArray[np.float16], entries: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """The tables (groups, entries) as FP16, ascending, and the index of each value, shape of `groups`."""
    tables = np.empty((len(groups), entries), np.float16)
    indices = np.empty(groups.shape, np.uint8)
    for number, values in enumerate(groups.astype(np.float64)):
        tables[number] = _table(np.sort(values), entries)
        indices[number] = np.searchsorted(_borders(tables[number].astype(np.float64)), values)
    return tables, indices


def _borders(centres: Doubles) -> Doubles:
    return (centres[1:] + centres[:-1]) / 2


def _table(ordered: Doubles, entries: int) -> npt.NDArray[np.float16]:
    distinct = ordered[np.concatenate([[True], np.diff(ordered) > 0])]
    if len(distinct) <= entries:  # every value has an entry of its own
        return np.pad(distinct, (0, entries - len(distinct)), mode="edge").astype(np.float16)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = _grid_optimum(ordered, sums, entries)
    for _ in range(_STEPS):
        edges = np.concatenate([[0], np.searchsorted(ordered, _borders(centres)), [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        if np.array_equal(means, centres):
            break
        centres = means
    return np.sort(centres).astype(np.float16)


def _grid_optimum(ordered: Doubles, sums: Doubles, entries: int) -> Doubles:
    count = len(ordered)
    even = np.linspace(ordered[0], ordered[-1], _GRID + 1)[1:-1]
    quantiles = np.linspace(0, count, _GRID + 1).astype(np.intp)
    edges = np.unique(np.concatenate([quantiles, np.searchsorted(ordered, even)]))
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])[edges]
    totals, counts = sums[edges], edges.astype(np.float64)
    width = counts[None, :] - counts[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = squares[None, :] - squares[:, None] - (totals[None, :] - totals[:, None]) ** 2 / width
    cost[width <= 0] = np.inf
    best, steps = cost[0], []
    for _ in range(min(entries, len(edges) - 1) - 1):
        through = best[:, None] + cost
        steps.append(through.argmin(0))
        best = np.minimum(
            through.min(0), best
        )  # fewer clusters never cost less; this keeps the first ones finite
    chosen = [len(edges) - 1]
    for step in reversed(steps):
        chosen.append(int(step[chosen[-1]]))
    chosen = sorted({0, *chosen})
    means = np.diff(totals[chosen]) / np.diff(counts[chosen])
    return np.pad(means, (0, entries - len(means)), mode="edge")
