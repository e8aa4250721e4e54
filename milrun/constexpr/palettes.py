"""Look-up tables: one palette or one a group, of scalars or vectors, dense or sparse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milrun.blob import unpack_bits
from milrun.constexpr.base import (
    Constexpr,
    Params,
    blocks_of,
    checked_nonzero,
    require,
    scatter_mask,
    spread_blocks,
)
from milrun.types import TensorType
from milrun.weights import Weight


def _lut_packed(params: Params, _: list[TensorType]) -> list[Weight]:
    """The iOS 16 form: flat bytes of packed indices, one palette, and the shape apart."""
    indices, lut = params["indices"], params["lut"]
    shape = tuple(params["shape"].decode().reshape(-1).tolist())
    palettes = lut.size
    require(
        lut.shape == (palettes,) and palettes in (2, 4, 16, 64, 256),
        f"constexpr_lut_to_dense: lut {lut.shape}",
    )
    bits, count = palettes.bit_length() - 1, math.prod(shape)
    require(
        indices.size == math.ceil(bits * count / 8), "constexpr_lut_to_dense: indices don't fit the shape"
    )

    def compute(_rows: slice | Tensor | None) -> Tensor:
        packed = indices.decode().numpy()
        out = torch.empty(count, dtype=lut.type.dtype.carrier)
        table = lut.decode()
        step = 1 << 21  # a multiple of 8, so that every block starts at a byte
        for start in range(0, count, step):
            stop = min(count, start + step)
            part = unpack_bits(packed[start * bits // 8 : -(-stop * bits // 8)], bits, stop - start)
            torch.index_select(table, 0, torch.from_numpy(part).int(), out=out[start:stop])
        return out.reshape(shape)

    kind = TensorType(lut.type.dtype, shape)
    return [Constexpr(kind, [indices, lut], f"lut{bits}", compute, by_rows=False)]


def _lut_values(
    indices: Tensor, lut: Tensor, blocks: list[int], axis: int | None, rows: slice | Tensor | None
) -> Tensor:
    """Values of `indices` (rows `rows` of the full indices) from grouped palettes `lut`."""
    vector = lut.shape[-1]
    groups, palettes = lut.shape[:-2], lut.shape[-2]
    flat = lut.reshape(-1, vector)
    number = torch.arange(math.prod(groups), dtype=torch.int32).reshape(groups) * palettes
    position = indices.int() + spread_blocks(number, blocks, rows)
    values = flat[position.reshape(-1)].reshape(*indices.shape, vector)
    if vector == 1:
        return values.squeeze(-1)
    assert axis is not None  # noqa: S101 - checked when built
    values = values.movedim(-1, axis + 1)
    return values.flatten(axis, axis + 1)


def _lut_axis(
    params: Params, indices: tuple[int, ...], lut: Weight, what: str
) -> tuple[int | None, list[int]]:
    require(len(lut.shape) == len(indices) + 2, f"{what}: lut {lut.shape} for indices {indices}")
    palettes, vector = lut.shape[-2:]
    require(palettes >= 2 and palettes & (palettes - 1) == 0, f"{what}: {palettes} palette entries")
    axis = None
    if vector > 1:
        require("vector_axis" in params, f"{what}: vectors of {vector} need vector_axis")
        axis = int(params["vector_axis"].decode().item())
        require(-len(indices) <= axis < len(indices), f"{what}: vector_axis {axis}")
        axis %= len(indices)
    return axis, blocks_of(indices, lut.shape[:-2], what)


def _grown(shape: tuple[int, ...], axis: int | None, vector: int) -> tuple[int, ...]:
    return shape if axis is None else tuple(d * vector if i == axis else d for i, d in enumerate(shape))


def lut_to_dense(params: Params, outputs: list[TensorType]) -> list[Weight]:
    """`constexpr_lut_to_dense`: entries of the palettes by index; the iOS 16 form is told by its parameter `shape`."""
    if "shape" in params:
        return _lut_packed(params, outputs)
    indices, lut = params["indices"], params["lut"]
    axis, blocks = _lut_axis(params, indices.shape, lut, "constexpr_lut_to_dense")
    require(
        lut.shape[-2] == 1 << indices.type.dtype.bits,
        f"constexpr_lut_to_dense: {lut.shape[-2]} palette entries for {indices.type.dtype.name} indices",
    )

    def compute(rows: slice | Tensor | None) -> Tensor:
        return _lut_values(indices.decode(rows), lut.decode(), blocks, axis, rows)

    bits, vector = indices.type.dtype.bits, lut.shape[-1]
    label = f"lut{bits}" + (f" x{vector}" if vector > 1 else "")
    if math.prod(lut.shape[:-2]) > 1:
        label += " grouped"
    kind = TensorType(lut.type.dtype, _grown(indices.shape, axis, vector))
    return [Constexpr(kind, [indices, lut], label, compute, by_rows=axis != 0)]


def lut_to_sparse(params: Params, _: list[TensorType]) -> list[Weight]:
    """`constexpr_lut_to_sparse`: the mask, grown along the vector axis, and the nonzero values."""
    mask, data, lut = params["indices_mask"], params["indices_nonzero_data"], params["lut"]
    axis, blocks = _lut_axis(params, mask.shape, lut, "constexpr_lut_to_sparse")
    vector = lut.shape[-1]

    def grown_mask() -> Tensor:
        bits = mask.decode()
        return bits if axis is None else bits.repeat_interleave(vector, axis)

    def values(_rows: slice | Tensor | None) -> Tensor:
        bits = mask.decode()
        dense = scatter_mask(bits != 0, checked_nonzero(bits, data))
        return _lut_values(dense, lut.decode(), blocks, axis, None)[grown_mask() != 0]

    mask_type = TensorType(mask.type.dtype, _grown(mask.shape, axis, vector))
    data_type = TensorType(lut.type.dtype, (data.size * vector,))
    return [
        Constexpr(mask_type, [mask], "mask", lambda _rows: grown_mask(), by_rows=False),
        Constexpr(data_type, [data, lut], f"lut{data.type.dtype.bits}", values, by_rows=False),
    ]
