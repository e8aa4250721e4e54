"""Gathers and scatters.

Indices below zero count from the end before iOS 17; from then on they are out of bounds. An index out
of bounds is an error where `validate_indices` asks for one; else it is clamped into the axis, which
is memory-safe, as the specification demands, and deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from milrun.errors import ExecutionError
from milrun.ops.registry import Context, Lazy, op
from milrun.weights import Weight


def _indices(indices: Tensor, size: int, validate: bool, ctx: Context) -> Tensor:
    indices = indices.long()
    if validate and indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise ExecutionError(f"an index is outside 0..{size - 1}: {int(indices.min())}..{int(indices.max())}")
    if ctx.opset < 17:
        indices = torch.where(indices < 0, indices + size, indices)
    return indices.clamp(0, max(size - 1, 0))


@op("gather", native=True)
def gather(
    x: Lazy, indices: Tensor, ctx: Context, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """`x[..., indices, ...]` at `axis`. Of a constant table only the rows asked for are decoded."""
    axis %= len(x.shape)
    chosen = _indices(indices, x.shape[axis], validate_indices, ctx)
    if isinstance(x, Weight):
        if axis == 0 and batch_dims == 0 and x.kept is None:
            return x.decode(chosen.reshape(-1)).reshape([*indices.shape, *x.shape[1:]])
        x = x.tensor()
    if batch_dims == 0:
        flat = x.index_select(axis, chosen.reshape(-1))
        return flat.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    batch = math.prod(x.shape[:batch_dims])
    values = x.reshape(batch, *x.shape[batch_dims:])
    places = chosen.reshape(batch, -1)
    parts = [values[b].index_select(axis - batch_dims, places[b]) for b in range(batch)]
    return torch.stack(parts).reshape([*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]])


@op("gather_along_axis", native=True)
def gather_along_axis(
    x: Tensor, indices: Tensor, ctx: Context, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """`out[i, j] = x[indices[i, j], j]` for axis 0."""
    return torch.gather(x, axis, _indices(indices, x.shape[axis], validate_indices, ctx))


def _flat_positions(indices: Tensor, shape: tuple[int, ...], validate: bool, ctx: Context) -> Tensor:
    """Row-major positions of index tuples (last axis) in a tensor of the given leading shape."""
    positions = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for i, size in enumerate(shape):
        positions = positions * size + _indices(indices[..., i], size, validate, ctx)
    return positions


@op("gather_nd", native=True)
def gather_nd(
    x: Tensor, indices: Tensor, ctx: Context, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of `x` at index tuples."""
    depth = indices.shape[-1]
    batch, rest = tuple(x.shape[:batch_dims]), tuple(x.shape[batch_dims + depth :])
    positions = _flat_positions(
        indices, tuple(x.shape[batch_dims : batch_dims + depth]), validate_indices, ctx
    )
    step = math.prod(x.shape[batch_dims : batch_dims + depth])
    offset = torch.arange(math.prod(batch)).reshape([*batch, *[1] * (positions.ndim - batch_dims)]) * step
    flat = x.reshape(-1, *rest)
    return flat.index_select(0, (positions + offset).reshape(-1)).reshape([*positions.shape, *rest])


def _combine(target: Tensor, axis: int, index: Tensor, updates: Tensor, mode: str) -> Tensor:
    """`target` with `updates` folded in at `index` along `axis`; repeated indices apply in turn."""
    result = target.clone()
    updates = updates.to(target.dtype)
    if mode == "update":
        return result.index_copy_(axis, index, updates)
    if mode == "add":
        return result.index_add_(axis, index, updates)
    if mode == "sub":
        return result.index_add_(axis, index, -updates)
    folds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mul": torch.mul,
        "div": torch.div,
        "max": torch.maximum,
        "min": torch.minimum,
    }
    if mode not in folds:
        raise ExecutionError(f"unknown scatter mode {mode!r}")
    for position, place in enumerate(index.tolist()):
        row = result.select(axis, place)
        row.copy_(folds[mode](row, updates.select(axis, position)))
    return result


@op("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    ctx: Context,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Fold slices of `updates` into `data` at positions along an axis."""
    axis %= data.ndim
    index = _indices(indices, data.shape[axis], validate_indices, ctx).reshape(-1)
    if indices.ndim != 1:
        updates = updates.reshape([*data.shape[:axis], -1, *data.shape[axis + 1 :]])
    return _combine(data, axis, index, updates, mode)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    ctx: Context,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Fold elements of `updates` into `data`, each at its own position along an axis."""
    axis %= data.ndim
    index = _indices(indices, data.shape[axis], validate_indices, ctx)
    places = torch.arange(data.numel()).reshape(data.shape)
    grid = [torch.arange(d) for d in indices.shape]
    mesh = list(torch.meshgrid(*grid, indexing="ij"))
    mesh[axis] = index
    flat = places[tuple(mesh)].reshape(-1)
    return _combine(data.reshape(-1), 0, flat, updates.reshape(-1), mode).reshape(data.shape)


@op("scatter_nd")
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    ctx: Context,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Fold slices of `updates` into `data` at index tuples."""
    depth = indices.shape[-1]
    rest = tuple(data.shape[depth:])
    positions = _flat_positions(indices, tuple(data.shape[:depth]), validate_indices, ctx).reshape(-1)
    flat = data.reshape(-1, *rest) if depth else data[None]
    return _combine(flat, 0, positions, updates.reshape(-1, *rest), mode).reshape(data.shape)
