"""Exact one-dimensional k-means, optionally weighted, over weights as FP16 holds them.

FP16 has at most 65,536 values, so a group of weights is a histogram, whatever its size. In one dimension a cluster
is an interval of the sorted values, and prefix sums give the squared error of any interval at once; the best
intervals follow from a dynamic programme whose choices are monotone, so each of its rows is filled by divide and
conquer in O(n log n) (Wang and Song 2011, doi:10.32614/RJ-2011-015; Grønlund et al. 2017, arXiv:1701.07204). The
result is the global optimum: nothing is drawn at random, no start can be unlucky. Groups are shared out between
threads; the compiled code does not hold Python's lock.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]
Indices = npt.NDArray[np.uint8]

KEYS = 1 << 16
"""Bit patterns of FP16."""


def _values_of_keys() -> Doubles:
    keys = np.arange(KEYS, dtype=np.uint32)
    bits = np.where(keys >= KEYS // 2, keys - KEYS // 2, KEYS - 1 - keys)
    return bits.astype(np.uint16).view(np.float16).astype(np.float64)


VALUES = _values_of_keys()
"""The FP16 number of each key, rising: a key is a bit pattern with its order made that of the numbers."""

compiled = numba.njit(nogil=True, cache=True)


@compiled
def _key(bits):
    if bits == 0x8000:  # minus zero is zero
        bits = 0
    return 0xFFFF - bits if bits & 0x8000 else bits | 0x8000


@compiled
def _add(histogram, bits, importance):
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            histogram[_key(np.int64(bits[row, column]))] += importance[column]


@compiled
def _optimum(values, weights, entries):
    """Centres (entries,) of the best clusters of rising `values` (n > entries) with positive `weights`."""
    n = len(values)
    offset = values[n // 2]  # sums of squares about a middle value lose fewer digits
    mass, first, second = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        x = values[i] - offset
        mass[i + 1] = mass[i] + weights[i]
        first[i + 1] = first[i] + weights[i] * x
        second[i + 1] = second[i] + weights[i] * x * x
    best, row = np.empty(n + 1), np.empty(n + 1)
    best[0] = 0.0
    for j in range(1, n + 1):
        best[j] = second[j] - first[j] * first[j] / mass[j]
    cut = np.zeros((entries, n + 1), np.int32)
    stack = np.empty((64, 4), np.int64)
    for k in range(1, entries):
        # k + 1 clusters of the first j values, the last of which starts at cut[k, j]; k <= j as none is empty
        row[:] = np.inf
        stack[0] = (k + 1, n, k, n - 1)
        depth = 1
        while depth:
            depth -= 1
            low, high, left, right = stack[depth]
            j = (low + high) // 2
            found, at = np.inf, left
            for i in range(left, min(right, j - 1) + 1):
                total = first[j] - first[i]
                cost = best[i] + (second[j] - second[i]) - total * total / (mass[j] - mass[i])
                if cost < found:
                    found, at = cost, i
            row[j] = found
            cut[k, j] = at
            if low < j:
                stack[depth] = (low, j - 1, left, at)
                depth += 1
            if j < high:
                stack[depth] = (j + 1, high, at, right)
                depth += 1
        best, row = row, best
    centres = np.empty(entries)
    stop = n
    for k in range(entries - 1, -1, -1):
        start = cut[k, stop] if k else 0
        centres[k] = offset + (first[stop] - first[start]) / (mass[stop] - mass[start])
        stop = start
    return centres


@compiled
def _distinct(histogram, every_value):
    present = np.flatnonzero(histogram)
    return present, every_value[present], histogram[present]


@compiled
def _padded(values, entries):
    table = np.empty(entries)
    for i in range(entries):
        table[i] = values[min(i, len(values) - 1)]
    return table


@compiled
def _solve(histogram, every_value, entries):
    _, values, weights = _distinct(histogram, every_value)
    if len(values) <= entries:  # every value has an entry of its own
        return _padded(values, entries)
    return _optimum(values, weights, entries)


@compiled
def _assign(bits, every_value, table, of_key, out):
    """The nearest entry of a rising table for each value; `of_key` is room for the entry of each FP16 number."""
    middles = (table[1:] + table[:-1]) / 2
    if bits.size < KEYS:
        for row in range(bits.shape[0]):
            for column in range(bits.shape[1]):
                value = every_value[_key(np.int64(bits[row, column]))]
                out[row, column] = np.searchsorted(middles, value)
        return
    entry = 0
    for key in range(KEYS):  # not-a-numbers at both ends get some entry, and are never asked for
        while entry < len(middles) and every_value[key] > middles[entry]:
            entry += 1
        of_key[key] = entry
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            out[row, column] = of_key[_key(np.int64(bits[row, column]))]


@compiled
def _tables(groups, importance, every_value, entries, tables):
    histogram = np.zeros(KEYS)
    for number in range(groups.shape[0]):
        histogram[:] = 0
        _add(histogram, groups[number], importance)
        tables[number] = _solve(histogram, every_value, entries)


@compiled
def _assign_all(groups, every_value, tables, indices):
    of_key = np.empty(KEYS, np.uint8)
    for number in range(groups.shape[0]):
        _assign(groups[number], every_value, tables[number], of_key, indices[number])


def threads() -> int:
    """Threads to use: the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ranges(count: int) -> list[slice]:
    step = -(-count // (4 * threads()))  # more pieces than threads: groups differ in their number of values
    return [slice(start, start + step) for start in range(0, count, step)]


def _bits(groups: Halves) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(groups).view(np.uint16)


def evenly(columns: int) -> Doubles:
    """Importance of the columns where all are alike."""
    return np.ones(columns)


def tables(groups: Halves, entries: int, importance: Doubles | None = None) -> Halves:
    """Best tables (groups, entries), rising, of FP16 values (groups, rows, columns).

    `importance` (columns,) weighs the squared error of each column; every one must be positive. Where a group has
    no more distinct values than entries, each is an entry and the largest fills the rest.
    """
    weights = evenly(groups.shape[2]) if importance is None else importance
    bits, made = _bits(groups), np.empty((len(groups), entries))
    with ThreadPoolExecutor(threads()) as pool:
        jobs = [
            pool.submit(_tables, bits[part], weights, VALUES, entries, made[part])
            for part in _ranges(len(groups))
        ]
        for job in jobs:
            job.result()
    return made.astype(np.float16)


def assign(groups: Halves, made: Halves) -> Indices:
    """The index (groups, rows, columns) of the nearest entry of each value's table."""
    bits, wide = _bits(groups), made.astype(np.float64)
    indices = np.empty(groups.shape, np.uint8)
    with ThreadPoolExecutor(threads()) as pool:
        jobs = [
            pool.submit(_assign_all, bits[part], VALUES, wide[part], indices[part])
            for part in _ranges(len(groups))
        ]
        for job in jobs:
            job.result()
    return indices


class Histogram:
    """Counts of the FP16 values of a whole tensor, taken block by block: the way to one table a tensor."""

    def __init__(self) -> None:
        self.counts = np.zeros(KEYS)

    def add(self, values: Halves, importance: Doubles | None = None) -> None:
        """Count a block (rows, columns)."""
        _add(self.counts, _bits(values), evenly(values.shape[1]) if importance is None else importance)

    def table(self, entries: int) -> Halves:
        """The best table (1, entries)."""
        made: Halves = _solve(self.counts, VALUES, entries)[None].astype(np.float16)
        return made
