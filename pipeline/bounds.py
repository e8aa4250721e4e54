"""Which values can an encoding hold, and which of them is nearest to a given one?

Derived from the stored weight itself, whatever scheme wrote it: integers times scales, entries of palettes, or a
palette times scales. The decoder is milrun's, which shares no code with the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from milrun.constexpr import Constexpr
from milrun.weights import Weight
from pipeline.errors import PipelineError

Floats = npt.NDArray[np.float32]


def nearest(weight: Weight, wanted: Floats, rows: slice) -> tuple[Floats, Floats]:
    """The nearest value that `weight` can hold to each of `wanted` (its rows `rows`), and the gap there.

    Both have the shape of `wanted`. The gap is the distance from one value of the grid to the next: the step of
    integers, the larger of the distances to both neighbours in a palette.
    """
    if not isinstance(weight, Constexpr):
        return _plain(weight, wanted)
    source, table, *rest = weight.sources
    if len(table.shape) == len(source.shape) + 2:
        return _palette(source, table, wanted, rows)
    if len(table.shape) == 1 and weight.encoding.startswith("lut"):  # before iOS 18: one flat table
        return _entries(np.unique(table.decode().float().numpy()), wanted)
    if len(weight.shape) == len(source.shape):
        return _scaled(source, table, rest, wanted, rows)
    raise PipelineError(f"no error bound is known for the encoding {weight.encoding!r}")


def _plain(weight: Weight, wanted: Floats) -> tuple[Floats, Floats]:
    kind = weight.type.dtype
    if kind.is_float:
        rounded = wanted.astype(kind.storage).astype(np.float32)
        return rounded, np.spacing(np.abs(rounded).astype(kind.storage)).astype(np.float32)
    low, high = kind.range
    return np.clip(np.rint(wanted), low, high), np.ones_like(wanted)


def _spread(parameter: Weight, shape: tuple[int, ...], rows: slice) -> Floats:
    """One entry a block (or a row, or a tensor) to one a value of `rows`."""
    values = parameter.decode().float().numpy()
    if values.ndim < len(shape):  # the older operation: one entry a row
        values = values.reshape(-1, *[1] * (len(shape) - 1))
    for axis, size in enumerate(shape):
        repeats = size // values.shape[axis]
        if axis == 0 and values.shape[0] > 1:
            index = np.arange(rows.start, rows.stop) // repeats
            values = values[index]
        elif axis and repeats > 1:
            values = values.repeat(repeats, axis)
    return np.broadcast_to(values, (rows.stop - rows.start, *shape[1:]))


def _scaled(
    source: Weight, scale: Weight, offset: list[Weight], wanted: Floats, rows: slice
) -> tuple[Floats, Floats]:
    scales = _spread(scale, source.shape, rows)
    shift = _spread(offset[0], source.shape, rows) if offset else np.float32(0)
    safe = np.where(scales == 0, np.float32(1), scales)
    inner, gap = nearest(source, wanted / safe + shift, rows)
    if not isinstance(source, Constexpr):
        # Without an offset encoders leave the lowest integer out, so that both ends are alike.
        low, high = source.type.dtype.range
        inner = np.where((inner == low) & (shift == 0) & (low < 0), np.float32(-high), inner)
    return (inner - shift) * scales, gap * np.abs(scales)


def _groups(
    shape: tuple[int, ...], tables: tuple[int, ...], rows: slice
) -> Iterator[tuple[int, int, slice, slice]]:
    """Row and column group, and where its values stand in a block of rows."""
    height, width = (size // count for size, count in zip(shape, tables, strict=True))
    for row in range(rows.start // height, -(-rows.stop // height)):
        top, bottom = max(row * height, rows.start), min((row + 1) * height, rows.stop)
        for column in range(tables[1]):
            yield (
                row,
                column,
                slice(top - rows.start, bottom - rows.start),
                slice(column * width, (column + 1) * width),
            )


def _palette(indices: Weight, lut: Weight, wanted: Floats, rows: slice) -> tuple[Floats, Floats]:
    if len(indices.shape) != 2 or lut.shape[-1] != 1:
        raise PipelineError(f"no error bound is known for palettes of vectors, shape {list(lut.shape)}")
    tables = lut.decode().float().numpy()[..., 0]
    values, gaps = np.empty_like(wanted), np.empty_like(wanted)
    for row, column, down, across in _groups(indices.shape, lut.shape[:2], rows):
        values[down, across], gaps[down, across] = _entries(
            np.unique(tables[row, column]), wanted[down, across]
        )
    return values, gaps


def _entries(table: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """The nearest entry of a table in rising order, and the larger distance to its neighbours."""
    step = np.diff(table)
    near = np.searchsorted((table[1:] + table[:-1]) / 2, wanted)
    return table[near], np.maximum(np.append(step, 0), np.append(0, step))[near]
