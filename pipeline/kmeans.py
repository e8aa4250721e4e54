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

from pipeline.clusters import KEYS, add, assign_groups, distinct, fill_tables, solve

Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]
Indices = npt.NDArray[np.uint8]


def _values_of_keys() -> Doubles:
    keys = np.arange(KEYS, dtype=np.uint32)
    bits = np.where(keys >= KEYS // 2, keys - KEYS // 2, KEYS - 1 - keys)
    return bits.astype(np.uint16).view(np.float16).astype(np.float64)


VALUES = _values_of_keys()
"""The FP16 number of each key, rising: a key is a bit pattern with its order made that of the numbers."""


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
            pool.submit(fill_tables, bits[part], weights, VALUES, entries, made[part])
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
            pool.submit(assign_groups, bits[part], VALUES, wide[part], indices[part])
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
        add(self.counts, _bits(values), evenly(values.shape[1]) if importance is None else importance)

    def table(self, entries: int) -> Halves:
        """The best table (1, entries)."""
        made: Halves = solve(*distinct(self.counts, VALUES), entries)[None].astype(np.float16)
        return made
