"""Scales and offsets of integer weights: value = scale x (integer - offset).

A scale that reaches a row's largest magnitude wastes steps on one outlier; a smaller one clips it and rounds all
others better. So several clippings are tried and the one with the least squared error is kept, for each row (or
block of a row) by itself (as in AWQ's and OmniQuant's weight clipping; arXiv:2306.00978, arXiv:2308.13137).
"""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int8]

_CLIPPINGS = {8: np.ones(1), 4: np.linspace(1, 0.5, 26)}
"""Share of the largest magnitude that the integers reach, by bits: the fewer steps, the more a clipping can win.

With 8 bits it wins next to nothing, and eleven tries made the 4B's INT8 take ten times as long."""

compiled = numba.njit(nogil=True, cache=True)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Scales (rows, blocks) as FP16 and offsets (rows, blocks) as integers, for blocks of `width` columns."""

    scale: npt.NDArray[np.float16]
    offset: Integers
    lowest: int
    highest: int
    width: int

    def round(self, weight: Floats) -> Integers:
        """The nearest integers (rows, columns)."""
        out = np.empty(weight.shape, np.int8)
        _round(weight, self.scale.astype(np.float32), self.offset, self.lowest, self.highest, self.width, out)
        return out

    def entries(self) -> Floats:
        """Every value that a row's block can hold: float32 (rows, blocks, integers), rising."""
        integers = np.arange(self.lowest, self.highest + 1, dtype=np.float32)
        steps = integers - self.offset[..., None].astype(np.float32)
        made: Floats = steps * self.scale[..., None].astype(np.float32)
        return made


@compiled
def _nearest(value, scale, offset, lowest, highest):
    return min(max(np.rint(value / scale) + offset, lowest), highest)


@compiled
def _round(weight, scale, offset, lowest, highest, width, out):
    for row in range(weight.shape[0]):
        for block in range(scale.shape[1]):
            factor, shift = scale[row, block], np.float32(offset[row, block])
            low, high = np.float32(lowest), np.float32(highest)
            for column in range(block * width, (block + 1) * width):
                integer = np.rint(weight[row, column] / factor) + shift
                out[row, column] = np.int8(min(max(integer, low), high))


@compiled
def _errors(weight, importance, scale, offset, lowest, highest, width, out):
    for row in range(weight.shape[0]):
        for block in range(scale.shape[1]):
            total = 0.0
            factor, shift = scale[row, block], offset[row, block]
            for column in range(block * width, (block + 1) * width):
                value = weight[row, column]
                integer = _nearest(value, factor, shift, lowest, highest)
                error = value - factor * (integer - shift)
                total += importance[column] * error * error
            out[row, block] = total


def fit(weight: Floats, bits: int, width: int, importance: npt.NDArray[np.float64], *, affine: bool) -> Grid:
    """The best grid for a weight (rows, columns) in blocks of `width` columns.

    Symmetric grids use -2^(bits-1)+1 to 2^(bits-1)-1 and no offset; affine ones all integers and an offset, and
    always hold zero. `importance` (columns,) weighs squared errors. Rounding is for the scale as FP16 holds it.
    """
    highest = 2 ** (bits - 1) - 1
    lowest = -highest - 1 if affine else -highest
    blocks = weight.reshape(len(weight), -1, width)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    if not affine:
        high = np.maximum(-low, high)
        low = -high
    best: Grid | None = None
    least = np.full(low.shape, np.inf)
    for clipping in _CLIPPINGS[bits]:
        scale = ((high - low) * (clipping / (highest - lowest))).astype(np.float16)
        scale[scale == 0] = 1  # an all-zero block decodes to zeros with any scale
        wide = scale.astype(np.float32)
        offset = np.rint(lowest - low * clipping / wide) if affine else np.zeros_like(low)
        grid = Grid(scale, np.clip(offset, lowest, highest).astype(np.int8), lowest, highest, width)
        if len(_CLIPPINGS[bits]) == 1:
            return grid
        error = np.empty(low.shape)
        _errors(weight, importance, wide, grid.offset, lowest, highest, width, error)
        if best is None:
            best, least = grid, error
            continue
        better = error < least
        least = np.minimum(error, least)
        best.scale[better], best.offset[better] = grid.scale[better], grid.offset[better]
    assert best is not None  # noqa: S101 - there is at least one clipping
    return best
