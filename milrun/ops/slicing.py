"""Slices, with negative strides and masks as in numpy and TensorFlow."""

from __future__ import annotations

from torch import Tensor

from milrun.errors import ExecutionError
from milrun.ops.registry import op


def _slices(
    shape: tuple[int, ...],
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    masks: tuple[list[bool] | None, list[bool] | None, list[bool] | None],
) -> tuple[list[slice], list[int]]:
    """Forward slices for each axis, and the axes to flip beforehand."""
    rank = len(shape)
    if len(begin) != rank or len(end) != rank:
        raise ExecutionError(f"begin {begin} and end {end} must have the input's rank {rank}")
    begin_mask, end_mask, squeeze_mask = (m or [False] * rank for m in masks)
    slices, flips = [], []
    for axis, size in enumerate(shape):
        step = stride[axis] if stride else 1
        if squeeze_mask[axis]:
            position = 0 if begin_mask[axis] else begin[axis]
            position += size if position < 0 else 0
            if not 0 <= position < size:
                raise ExecutionError(f"index {begin[axis]} is outside axis {axis} of size {size}")
            slices.append(slice(position, position + 1, 1))
            continue
        if step == 0:
            raise ExecutionError("a slice needs a stride other than 0")
        start = None if begin_mask[axis] else begin[axis]
        stop = None if end_mask[axis] else end[axis]
        positions = range(size)[slice(start, stop, step)]
        if step < 0:
            flips.append(axis)
            slices.append(slice(size - 1 - positions.start, size - 1 - positions.stop, -step))
        else:
            slices.append(slice(positions.start, max(positions.start, positions.stop), step))
    return slices, flips


@op("slice_by_index", native=True)
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """`x[begin:end:stride, ...]`; masks open an end, or take the single index at `begin`."""
    slices, flips = _slices(tuple(x.shape), begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    result = (x.flip(flips) if flips else x)[tuple(slices)]
    if squeeze_mask and any(squeeze_mask):
        result = result.squeeze(tuple(a for a, m in enumerate(squeeze_mask) if m))
    return result


@op("slice_by_size", native=True)
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """`size[i]` elements from `begin[i]`; -1 takes all that remain."""
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        start += x.shape[axis] if start < 0 else 0  # noqa: PLW2901
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


@op("slice_update", since=18, native=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """A copy of `x` with the slice replaced by `update`."""
    slices, flips = _slices(tuple(x.shape), begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    result = x.flip(flips) if flips else x.clone()
    target = result[tuple(slices)]
    target.copy_(update.reshape(target.shape))
    return result.flip(flips) if flips else result
