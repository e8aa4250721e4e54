"""One-dimensional k-means, optionally weighted, over weights as FP16 holds them.

FP16 has at most 65,536 values, so weights are sorted by counting: a small group by the two bytes of its numbers, a
large one as a histogram. `pipeline.clusters` finds the tables; nothing is drawn at random, no start can be unlucky.
Groups are shared out between threads; the compiled code does not hold Python's lock.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pipeline.clusters import by_price, compiled

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

_SORTED = 1 << 14  # values of a group from which a histogram is faster than sorting


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
def _sort(keys, weights, more_keys, more_weights):
    """Sort keys with their weights by one byte after the other; equal keys keep their order."""
    for shift in (0, 8):
        places = np.zeros(257, np.int64)
        for key in keys:
            places[((key >> shift) & 0xFF) + 1] += 1
        places = np.cumsum(places)
        for i in range(len(keys)):
            digit = (keys[i] >> shift) & 0xFF
            more_keys[places[digit]], more_weights[places[digit]] = keys[i], weights[i]
            places[digit] += 1
        keys, more_keys = more_keys, keys
        weights, more_weights = more_weights, weights


@compiled
def _sorted(bits, importance, every_value):
    """The distinct values of a group (rows, columns), rising, and the importance of each."""
    size = bits.size
    keys, weights = np.empty(size, np.uint16), np.empty(size)
    i = 0
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            keys[i], weights[i] = _key(np.int64(bits[row, column])), importance[column]
            i += 1
    _sort(keys, weights, np.empty(size, np.uint16), np.empty(size))
    values, count = np.empty(size), 0
    for i in range(size):
        if i and keys[i] == keys[i - 1]:
            weights[count - 1] += weights[i]
            continue
        values[count], weights[count] = every_value[keys[i]], weights[i]
        count += 1
    return values[:count], weights[:count]


@compiled
def _distinct(histogram, every_value):
    present = np.flatnonzero(histogram)
    return every_value[present], histogram[present]


@compiled
def _solve(values, weights, entries):
    if len(values) <= entries:  # every value has an entry of its own
        table = np.empty(entries)
        for i in range(entries):
            table[i] = values[min(i, len(values) - 1)]
        return table
    return by_price(values, weights, entries)


@compiled
def _tables(groups, importance, every_value, entries, tables):
    histogram = np.empty(0)
    for number in range(groups.shape[0]):
        if groups[number].size < _SORTED:
            values, weights = _sorted(groups[number], importance, every_value)
        else:
            histogram = np.zeros(KEYS)
            _add(histogram, groups[number], importance)
            values, weights = _distinct(histogram, every_value)
        tables[number] = _solve(values, weights, entries)


@compiled
def _assign_all(groups, every_value, tables, indices):
    """The nearest entry of a rising table for each value, looked up by its key."""
    of_key = np.empty(KEYS, np.uint8)  # not-a-numbers at both ends get some entry, and are never asked for
    for number in range(groups.shape[0]):
        table, start = tables[number], 0
        for entry in range(len(table)):
            stop = KEYS
            if entry + 1 < len(table):
                stop = np.searchsorted(every_value, (table[entry] + table[entry + 1]) / 2, side="right")
            of_key[start:stop] = entry
            start = max(start, stop)
        for row in range(groups.shape[1]):
            for column in range(groups.shape[2]):
                indices[number, row, column] = of_key[_key(np.int64(groups[number, row, column]))]


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
    """Tables (groups, entries), rising, for FP16 values (groups, rows, columns), of the least squared error.

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
        made: Halves = _solve(*_distinct(self.counts, VALUES), entries)[None].astype(np.float16)
        return made
