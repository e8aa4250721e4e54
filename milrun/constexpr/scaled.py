"""Scale and shift: affine quantization, per tensor, channel or block, dense or sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milrun.constexpr.base import (
    Constexpr,
    Params,
    blocks_of,
    checked_nonzero,
    require,
    row_param,
    scatter_mask,
    spread_blocks,
)
from milrun.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor

    from milrun.weights import Weight


def affine(params: Params, _: list[TensorType]) -> list[Weight]:
    """`constexpr_affine_dequantize`: (data - zero point) x scale, per tensor or along one axis."""
    data, scale, zero = params["quantized_data"], params["scale"], params["zero_point"]
    axis = int(params["axis"].decode().item())
    rank = len(data.shape)
    require(-rank <= axis < rank, f"constexpr_affine_dequantize: axis {axis} of rank {rank}")
    axis %= rank
    for parameter in (scale, zero):
        require(
            parameter.shape in ((), (1,), (data.shape[axis],)),
            f"constexpr_affine_dequantize: a parameter of shape {parameter.shape} for data of "
            f"shape {data.shape}",
        )
    spread = [1] * rank
    spread[axis] = -1

    def compute(rows: slice | Tensor | None) -> Tensor:
        scales, zeros = scale.decode().float().reshape(spread), zero.decode().float().reshape(spread)
        return (data.decode(rows).float() - row_param(zeros, rows, 1)) * row_param(scales, rows, 1)

    kind = TensorType(scale.type.dtype, data.type.shape)
    return [Constexpr(kind, [data, scale, zero], f"{data.type.dtype.name} affine", compute)]


def _shift_scale_values(
    data: Tensor, scale: Weight, offset: Weight | None, blocks: list[int], rows: slice | Tensor | None
) -> Tensor:
    values = data.float()
    if offset is not None:
        values = values - spread_blocks(offset.decode().float(), blocks, rows)
    return values * spread_blocks(scale.decode().float(), blocks, rows)


def blockwise(params: Params, _: list[TensorType]) -> list[Weight]:
    """`constexpr_blockwise_shift_scale`: (data - offset) x scale, an entry a block."""
    data, scale, offset = params["data"], params["scale"], params.get("offset")
    blocks = blocks_of(data.shape, scale.shape, "constexpr_blockwise_shift_scale")
    if offset is not None:
        require(
            offset.shape == scale.shape, "constexpr_blockwise_shift_scale: offset and scale differ in shape"
        )

    def compute(rows: slice | Tensor | None) -> Tensor:
        return _shift_scale_values(data.decode(rows), scale, offset, blocks, rows)

    per_block = sum(b < d and b > 1 for b, d in zip(blocks, data.shape, strict=True)) > 0
    label = (
        f"{data.type.dtype.name} "
        f"{'per-block' if per_block else 'per-channel' if scale.size > 1 else 'per-tensor'}"
    )
    if isinstance(data, Constexpr):
        label = f"{data.encoding} + scale"
    sources = [data, scale] + ([offset] if offset is not None else [])
    return [Constexpr(TensorType(scale.type.dtype, data.type.shape), sources, label, compute)]


def sparse_shift_scale(params: Params, _: list[TensorType]) -> list[Weight]:
    """`constexpr_sparse_blockwise_shift_scale`: the mask, and the scaled nonzero values."""
    mask, data, scale = params["data_mask"], params["nonzero_data"], params["scale"]
    offset = params.get("offset")
    blocks = blocks_of(mask.shape, scale.shape, "constexpr_sparse_blockwise_shift_scale")

    def values(_rows: slice | Tensor | None) -> Tensor:
        bits = mask.decode()
        dense = scatter_mask(bits != 0, checked_nonzero(bits, data))
        return _shift_scale_values(dense, scale, offset, blocks, None)[bits != 0]

    sources = [data, scale] + ([offset] if offset is not None else [])
    kind = TensorType(scale.type.dtype, (data.size,))
    return [mask, Constexpr(kind, sources, f"{data.type.dtype.name} scaled", values, by_rows=False)]
