"""Rounding that looks at the inputs: each row of a weight is chosen so that its outputs, not its entries, are near.

With H the second moment of a linear layer's inputs, the squared error of a row's outputs is e'He for e = w - q.
Rounding every entry to nearest ignores all of H but its diagonal. Three steps make e'He small:

1. `compensate`: entries are rounded one after another, and what each one misses is made good by the entries that
   are not rounded yet (GPTQ: Frantar et al. 2023, arXiv:2210.17323; Cholesky factor of the inverse of H, columns
   of large inputs first, updates in batches of columns);
2. `refit`: for given indices the best table of a group of rows is a small least-squares problem;
3. `descend`: one entry at a time moves to where e'He is least with all others held (coordinate descent, as in
   QuantEase, arXiv:2309.01885), which may undo what 1 could not foresee.

For palettes the order is 1, 3, 2, 3. Further turns bring e'He down by half a per cent and cost half as much time again.

What an entry may become is a table of rising values, whatever it stands for: a palette of a group of rows, or the
integers of a row's scale. All arithmetic is in float64 or float32 on fixed shapes: the same inputs, the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import scipy.linalg

from pipeline.errors import PipelineError
from pipeline.kmeans import Indices, threads

Floats = npt.NDArray[np.float32]

DAMPING = 0.03
"""Share of the mean of H's diagonal that is added to it, so that inputs that calibration hardly saw keep some weight.

With GPTQ's 0.01 the outputs on the calibration texts are 6 % nearer, but single rows move three times as far from the
weights as rounding would take them, for the sake of directions in which there was next to no input."""

_WIDE = 4096  # columns beyond which factors are computed in float32

_BATCH = 128  # columns whose updates are made one by one; those behind them follow in one matrix product

_TOGETHER = 16  # rows that descend together: with all their columns they fit a core's cache
_TILE = 128  # columns of H added together
_SUMS = 128  # sums of a tile kept at a time, over rows and entries

compiled = numba.njit(nogil=True, cache=True)


class Inputs:
    """Second moment of a layer's inputs, `moment` (columns, columns), damped, and what is derived from it."""

    def __init__(self, moment: Floats, damping: float = DAMPING) -> None:
        self.h = moment.astype(np.float32)
        diagonal = self.h.diagonal().astype(np.float64)
        if not np.isfinite(diagonal).all():
            raise PipelineError(
                f"the moments of {len(self.h)} inputs hold NaN or infinite values: an activation overflowed "
                "on the calibration texts; calibrate again, or set calibrated: false"
            )
        self.h[np.diag_indices(len(self.h))] += np.float32(max(damping * diagonal.mean(), 1e-12))
        self.importance: npt.NDArray[np.float64] = self.h.diagonal().astype(np.float64)
        self.order = np.argsort(-self.importance, kind="stable")
        self._factor: npt.NDArray[np.floating[Any]] | None = None

    @property
    def factor(self) -> npt.NDArray[np.floating[Any]]:
        """Upper Cholesky factor of the inverse of H, in rounding order; a view whose columns and rows run backwards."""
        if self._factor is None:
            # The inverse's upper factor is the inverse of a factor of H read backwards; H is not inverted. Both steps
            # work in place, in float32 where float64 would take gigabytes.
            kind = np.float64 if len(self.h) <= _WIDE else np.float32
            reverse = self.order[::-1]
            # As H is symmetric, its transpose is H in Fortran's order.
            matrix = self.h[np.ix_(reverse, reverse)].astype(kind, copy=False).T
            factorise, invert = scipy.linalg.get_lapack_funcs(("potrf", "trtri"), (matrix,))
            matrix, failed = factorise(matrix, lower=1, clean=1, overwrite_a=1)
            if failed:
                raise PipelineError(
                    f"the moments of {len(self.h)} inputs are not positive definite (row {failed}); calibrate again"
                )
            matrix, _ = invert(matrix, lower=1, overwrite_c=1)
            self._factor = matrix[::-1, ::-1]
        return self._factor


@compiled
def _nearest(table, value):
    low, high = 0, len(table) - 1
    while low < high:
        middle = (low + high) // 2
        if value > (table[middle] + table[middle + 1]) * np.float32(0.5):
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _is_nearest(table, index, value):
    """Whether `_nearest` would give `index`."""
    if index > 0 and not value > (table[index - 1] + table[index]) * np.float32(0.5):
        return False
    return index == len(table) - 1 or not value > (table[index] + table[index + 1]) * np.float32(0.5)


@compiled
def _round_batch(work, errors, near, order, start, tables, group, width, first, out):
    """Round columns `start` onwards of `work` (rows, columns in order) into `out` (rows, columns).

    `near` (batch, batch) is what lies of the factor between them, small enough for a core's cache.
    """
    count = len(near)
    for row in range(work.shape[0]):
        mine, left = tables[(first + row) // group], work[row, start : start + count]
        for i in range(count):
            column, effect = order[start + i], near[i]
            table = mine[column // width]
            index = _nearest(table, left[i])
            out[row, column] = index
            error = (left[i] - table[index]) / effect[i]
            errors[row, i] = error
            for k in range(i + 1, count):
                left[k] -= error * effect[k]


@compiled
def _descend(weight, residual, h, tables, group, width, first, sweeps, out):
    """`residual` (rows, columns) is (w - q) H; indices in `out` are changed in place.

    Rows do not know of each other; some go through the columns together, so that a column of `h` serves them all.
    """
    rows, columns = weight.shape
    moving = np.empty(_TOGETHER, np.int64)
    for top in range(0, rows, _TOGETHER):
        count = min(_TOGETHER, rows - top)
        for i in range(count):
            moving[i] = top + i
        for _ in range(sweeps):
            moved = np.zeros(count, np.bool_)
            for column in range(columns):
                inputs = h[column]
                for i in range(count):
                    row = moving[i]
                    table, left = tables[(first + row) // group, column // width], residual[row]
                    index = out[row, column]
                    best = table[index] + left[column] / inputs[column]
                    if _is_nearest(table, index, best):  # nearly always
                        continue
                    moved[i], out[row, column] = True, _nearest(table, best)
                    step = table[out[row, column]] - table[index]
                    for k in range(columns):
                        left[k] -= step * inputs[k]
            still = 0
            for i in range(count):
                if moved[i]:
                    moving[still] = moving[i]
                    still += 1
            count = still
            if not count:
                break


@compiled
def _gather(tables, indices, group, width, out):
    for row in range(indices.shape[0]):
        for column in range(indices.shape[1]):
            out[row, column] = tables[row // group, column // width, indices[row, column]]


@compiled
def _add_rows(sums, indices, h, first, last, start):
    """Set `sums` (rows, entries, tile) to the rows `first` to `last` of a tile of H, added where their indices say."""
    width = min(_TILE, h.shape[1] - start)
    sums[:] = 0
    for k in range(first, last):
        part = h[k, start : start + width]
        for row in range(len(indices)):
            total = sums[row, indices[row, k]]
            for c in range(width):
                total[c] += part[c]


@compiled
def _normal_equations(indices, h, target, group, left, right):
    """Sums over each group's rows of A'HA (groups, entries, entries) and A'Hw; A marks each column's entry.

    As H is symmetric, what lies above its diagonal is added once and counted twice. Rows of H are added where they
    lie side by side, in tiles that stay in the processor's cache.
    """
    rows, columns = indices.shape
    entries = left.shape[1]
    together = max(_SUMS // entries, 1)
    for top in range(0, rows, together):
        some = indices[top : top + together]
        sums = np.empty((len(some), entries, _TILE), np.float32)
        for start in range(0, columns, _TILE):
            stop = min(start + _TILE, columns)
            for above in (True, False):
                _add_rows(sums, some, h, 0 if above else start, start if above else stop, start)
                for row in range(len(some)):
                    mine = left[(top + row) // group]
                    for c in range(stop - start):
                        index = some[row, start + c]
                        for entry in range(entries):
                            mine[entry, index] += sums[row, entry, c]
                            if above:
                                mine[index, entry] += sums[row, entry, c]
    for row in range(rows):
        for column in range(columns):
            right[row // group, indices[row, column]] += target[row, column]


def _each(rows: int, multiple: int, job: Callable[[int, int], None]) -> None:
    """Run `job(start, stop)` over all rows on all cores, in pieces of a multiple of `multiple` rows."""
    step = max(-(-rows // (4 * threads()) // multiple), 1) * multiple
    with ThreadPoolExecutor(threads()) as pool:
        for done in [pool.submit(job, start, min(start + step, rows)) for start in range(0, rows, step)]:
            done.result()


def decoded(tables: Floats, indices: Indices, group: int, width: int) -> Floats:
    """The values (rows, columns) that indices stand for."""
    out = np.empty(indices.shape, np.float32)
    _gather(tables, indices, group, width, out)
    return out


def compensate(weight: Floats, inputs: Inputs, tables: Floats, group: int, width: int) -> Indices:
    """Indices (rows, columns) of a weight into `tables` (rows / group, columns / width, entries), float32, rising."""
    factor, order = inputs.factor, inputs.order
    work = np.ascontiguousarray(weight[:, order])
    out = np.empty(weight.shape, np.uint8)
    for start in range(0, weight.shape[1], _BATCH):
        stop = min(start + _BATCH, weight.shape[1])
        errors = np.empty((len(weight), stop - start), np.float32)
        near = np.ascontiguousarray(factor[start:stop, start:stop], np.float32)

        def job(
            first: int, last: int, start: int = start, errors: Floats = errors, near: Floats = near
        ) -> None:
            rows = slice(first, last)
            _round_batch(work[rows], errors[rows], near, order, start, tables, group, width, first, out[rows])

        _each(len(weight), 1, job)
        work[:, stop:] -= errors @ np.ascontiguousarray(factor[start:stop, stop:], np.float32)
    return out


def descend(
    weight: Floats, inputs: Inputs, tables: Floats, group: int, width: int, out: Indices, sweeps: int = 4
) -> None:
    """Improve indices in place until no single change helps, or `sweeps` times over."""
    residual = (weight - decoded(tables, out, group, width)) @ inputs.h

    def job(first: int, last: int) -> None:
        rows = slice(first, last)
        _descend(weight[rows], residual[rows], inputs.h, tables, group, width, first, sweeps, out[rows])

    _each(len(weight), 1, job)


def refit(
    weight: Floats, inputs: Inputs, tables: Floats, group: int, indices: Indices
) -> tuple[Floats, Indices]:
    """Best tables (groups, 1, entries) for given indices, rising and as FP16 holds them, with the indices renumbered."""
    entries, made, numbers = tables.shape[2], tables.copy(), indices.copy()
    target = weight @ inputs.h

    def job(first: int, last: int) -> None:
        rows, groups = slice(first, last), range(first // group, last // group)
        lefts, rights = np.zeros((len(groups), entries, entries)), np.zeros((len(groups), entries))
        _normal_equations(indices[rows], inputs.h, target[rows], group, lefts, rights)
        for number, left, right in zip(groups, lefts, rights, strict=True):
            used = np.flatnonzero(left.diagonal())
            best = made[number, 0].astype(np.float64)
            ridge = 1e-6 * left.diagonal()[used].mean() * np.eye(len(used))
            best[used] = scipy.linalg.solve(
                left[np.ix_(used, used)] + ridge, right[used] + ridge @ best[used], assume_a="pos"
            )
            ranked = np.argsort(best, kind="stable")
            made[number, 0] = best[ranked].astype(np.float16)
            mine = slice(number * group, (number + 1) * group)
            numbers[mine] = np.argsort(ranked, kind="stable").astype(np.uint8)[indices[mine]]

    _each(len(weight), group, job)
    return made, numbers


def error(weight: Floats, values: Floats, inputs: Inputs) -> float:
    """Sum over the rows of e'He, relative to w'Hw."""
    missed = weight - values
    top = float(np.einsum("rc,rc->", missed @ inputs.h, missed, dtype=np.float64))
    return top / float(np.einsum("rc,rc->", weight @ inputs.h, weight, dtype=np.float64))
