"""Operations that move elements or make tensors, without arithmetic on the values."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from milrun.errors import ExecutionError
from milrun.ops.registry import Context, bounded, op
from milrun.types import TensorType


def _result_dtype(ctx: Context) -> torch.dtype:
    kind = ctx.outputs[0]
    if not isinstance(kind, TensorType):
        raise ExecutionError(f"the result must be a tensor, not {kind}")
    return kind.dtype.carrier


@op("reshape", native=True)
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """New shape; one -1 is inferred, 0 keeps the dimension at the same position (iOS 15, 16)."""
    if 0 in shape and x.numel():
        if len(shape) != x.ndim:
            raise ExecutionError(
                f"a 0 in shape {shape} needs an input of the same rank, not {tuple(x.shape)}"
            )
        shape = [x.shape[i] if s == 0 else s for i, s in enumerate(shape)]
    return x.reshape(shape)


@op("reshape", since=17, native=True)
def reshape_17(x: Tensor, shape: list[int]) -> Tensor:
    """As before, but a 0 matches the dimension counted from the right, 1 where there is none."""
    if 0 in shape and x.numel():
        back = list(x.shape)[::-1]
        filled = [(back[i] if i < len(back) else 1) if s == 0 else s for i, s in enumerate(shape[::-1])]
        shape = filled[::-1]
    return x.reshape(shape)


@op("reshape_like", native=True)
def reshape_like(
    x: Tensor, ref_tensors: list[Tensor], begins: list[int], ends: list[int], end_masks: list[bool]
) -> Tensor:
    """Reshape to parts of the shapes of other tensors, joined."""
    shape: list[int] = []
    for ref, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += ref.shape[begin : None if mask else end]
    return x.reshape(shape)


@op("transpose", native=True)
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    """Permute axes."""
    return x.permute(perm)


@op("expand_dims", native=True)
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """Insert axes of length 1 at positions of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", native=True)
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Drop axes of length 1; longer ones are left, as in PyTorch."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op("flatten2d", native=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """(product of the axes before `axis`, product of the rest)."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


@op("shape", native=True)
def shape_of(x: Tensor) -> Tensor:
    """The shape as a vector of integers."""
    return torch.tensor(x.shape, dtype=torch.int32)


@op("concat", native=True)
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Join along an axis, or interleave equal shapes; scalars make a vector."""
    if values[0].ndim == 0:
        return torch.stack(values)
    if interleave:
        axis %= values[0].ndim
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@op("stack", native=True)
def stack(values: list[Tensor], axis: int) -> Tensor:
    """Join along a new axis."""
    return torch.stack(values, axis)


@op("split", native=True)
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    """Cut into pieces of given sizes, or into equal ones."""
    if split_sizes is not None:
        return tuple(torch.split(x, split_sizes, axis))
    if not num_splits or x.shape[axis] % num_splits:
        raise ExecutionError(f"{x.shape[axis]} elements can't be split into {num_splits} equal parts")
    return tuple(torch.split(x, x.shape[axis] // num_splits, axis))


@op("tile", native=True)
def tile(x: Tensor, reps: list[int]) -> Tensor:
    """Repeat along each axis."""
    bounded([d * r for d, r in zip(x.shape, reps, strict=True)], x.itemsize)
    return x.repeat(reps)


@op("reverse", native=True)
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Reverse the order along axes (default: all)."""
    return x.flip(list(range(x.ndim)) if axes is None else axes)


@op("reverse_sequence", native=True)
def reverse_sequence(x: Tensor, lengths: list[int], seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Reverse the first `lengths[i]` elements of each batch entry along `seq_axis`."""
    seq_axis, batch_axis = seq_axis % x.ndim, batch_axis % x.ndim
    result = x.clone()
    for i, length in enumerate(lengths):
        entry = x.select(batch_axis, i).narrow(seq_axis - (batch_axis < seq_axis), 0, length)
        target = result.select(batch_axis, i).narrow(seq_axis - (batch_axis < seq_axis), 0, length)
        target.copy_(entry.flip(seq_axis - (batch_axis < seq_axis)))
    return result


@op("fill", native=True)
def fill(shape: list[int], ctx: Context, value: float = 0.0) -> Tensor:
    """A tensor of one value."""
    return torch.full(bounded(shape), value).to(_result_dtype(ctx))


@op("fill_like", native=True)
def fill_like(ref_tensor: Tensor, ctx: Context, value: float = 0.0) -> Tensor:
    """A tensor of one value, shaped like another."""
    return torch.full(ref_tensor.shape, value).to(_result_dtype(ctx))


@op("range_1d", native=True)
def range_1d(start: Tensor, end: Tensor, step: Tensor, ctx: Context) -> Tensor:
    """`start, start + step, ...` up to but excluding `end`."""
    if not start.is_floating_point():
        a, b, s = int(start), int(end), int(step)
        if s == 0:
            raise ExecutionError("a range needs a step other than 0")
        bounded([len(range(a, b, s))], 8)
        return torch.arange(a, b, s) if (b - a) * s > 0 else torch.zeros(0, dtype=torch.int64)
    count = math.ceil((float(end) - float(start)) / float(step)) if float(step) else -1
    bounded([count])
    return float(start) + torch.arange(count, dtype=torch.float64) * float(step)


@op("one_hot", native=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    ctx: Context,
    axis: int = -1,
    on_value: float = 1,
    off_value: float = 0,
) -> Tensor:
    """`on_value` where the new axis' position is the index; an index outside gives none."""
    bounded([*indices.shape, one_hot_vector_size])
    axis %= indices.ndim + 1
    positions = torch.arange(one_hot_vector_size).reshape([-1, *[1] * (indices.ndim - axis)])
    hot = indices.unsqueeze(axis) == positions
    dtype = _result_dtype(ctx)
    return torch.where(hot, torch.tensor(on_value, dtype=dtype), torch.tensor(off_value, dtype=dtype))


@op("pad", native=True)
def pad_tensor(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last `len(pad) / 2` axes: (before, after) pairs in the order of the axes."""
    count = len(pad) // 2
    first = x.ndim - count
    bounded(
        [
            d + sum(pad[2 * (a - first) : 2 * (a - first) + 2]) if a >= first else d
            for a, d in enumerate(x.shape)
        ]
    )
    if mode == "constant":
        flat = [p for i in reversed(range(count)) for p in (pad[2 * i], pad[2 * i + 1])]
        return functional.pad(x, flat, value=constant_val)
    for i in range(count):
        before, after = pad[2 * i], pad[2 * i + 1]
        if before or after:
            x = x.index_select(first + i, _outside(x.shape[first + i], before, after, mode))
    return x


def _outside(size: int, before: int, after: int, mode: str) -> Tensor:
    """Source positions for padding that reflects (the edge not repeated) or replicates the edge."""
    positions = torch.arange(-before, size + after)
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    if mode != "reflect":
        raise ExecutionError(f"unknown padding mode {mode!r}")
    if size == 1:
        return torch.zeros_like(positions)
    positions = positions.remainder(2 * (size - 1))
    return torch.minimum(positions, 2 * (size - 1) - positions)


@op("band_part", native=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero all but a band around the diagonal of the innermost matrices; negative keeps a side whole."""
    rows, columns = x.shape[-2], x.shape[-1]
    distance = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    keep = torch.ones(rows, columns, dtype=torch.bool)
    if lower >= 0:
        keep &= -distance <= lower
    if upper >= 0:
        keep &= distance <= upper
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


def _blocks(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // block, block, w // block, block)


@op("space_to_depth", native=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """Blocks of pixels to channels, ordered (row, column, channel), as in TensorFlow."""
    n, c, h, w = x.shape
    parts = _blocks(x, block_size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block_size**2, h // block_size, w // block_size)


@op("depth_to_space", native=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Inverse of `space_to_depth`."""
    n, c, h, w = x.shape
    parts = x.reshape(n, block_size, block_size, c // block_size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block_size**2, h * block_size, w * block_size)


@op("pixel_shuffle", native=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Channels to blocks of pixels, ordered (channel, row, column), as in PyTorch."""
    return functional.pixel_shuffle(x, upscale_factor)


@op("pixel_unshuffle", native=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Inverse of `pixel_shuffle`."""
    return functional.pixel_unshuffle(x, downscale_factor)


@op("space_to_batch", native=True)
def space_to_batch(x: Tensor, block_shape: list[int], paddings: list[int]) -> Tensor:
    """Blocks of pixels to the batch axis, block position outermost."""
    x = functional.pad(x, [paddings[2], paddings[3], paddings[0], paddings[1]])
    n, c, h, w = x.shape
    rows, columns = block_shape
    parts = x.reshape(n, c, h // rows, rows, w // columns, columns).permute(3, 5, 0, 1, 2, 4)
    return parts.reshape(n * rows * columns, c, h // rows, w // columns)


@op("batch_to_space", native=True)
def batch_to_space(x: Tensor, block_shape: list[int], crops: list[int]) -> Tensor:
    """Inverse of `space_to_batch`, then cropped."""
    rows, columns = block_shape
    n, c, h, w = x.shape
    n //= rows * columns
    parts = (
        x.reshape(rows, columns, n, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, c, h * rows, w * columns)
    )
    return parts[:, :, crops[0] : h * rows - crops[1], crops[2] : w * columns - crops[3]]


@op("sliding_windows", native=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows along an axis; the window's elements become the next axis."""
    axis %= x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)
