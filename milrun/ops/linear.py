"""Matrix products. FP16 operands are multiplied and accumulated in FP32, the result rounded once.

A constant operand is decoded a block of rows at a time, so that the transient copy stays small.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from milrun.constexpr import row_blocks
from milrun.ops.accumulate import matmul_fp16
from milrun.ops.registry import Context, Lazy, op
from milrun.weights import Weight

# Above this many elements a weight is decoded block by block rather than as a whole.
_WHOLE = 1 << 22


def operand(value: Lazy, ctx: Context) -> Tensor:
    """A matrix operand as FP32 (or as the integers it is)."""
    if isinstance(value, Weight):
        dtype = torch.float32 if value.type.dtype.is_float else None
        return value.tensor(dtype, keep=ctx.numerics.keep)
    return value.float() if value.dtype is torch.float16 else value


def _linear_blocks(x: Tensor, weight: Weight) -> Tensor:
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)
    flat, flat_out = x.reshape(-1, x.shape[-1]), out.view(-1, weight.shape[0])
    for rows in row_blocks(weight.shape):
        flat_out[:, rows] = flat @ weight.decode(rows).float().T
    return out


@op("linear")
def linear(x: Tensor, weight: Lazy, ctx: Context, bias: Lazy | None = None) -> Tensor:
    """`x @ weight.T + bias`."""
    offset = None if bias is None else operand(bias, ctx)
    if ctx.numerics.fp16_accumulate and ctx.half:
        result = matmul_fp16(x if x.ndim > 1 else x[None], operand(weight, ctx).T)
        result = result if x.ndim > 1 else result[0]
        return result if offset is None else result.float() + offset
    if isinstance(weight, Weight) and _worth_blocks(weight, ctx) and x.is_floating_point():
        result = _linear_blocks(x, weight)
        return result if offset is None else result + offset
    matrix = operand(weight, ctx)
    if not x.is_floating_point() and not matrix.is_floating_point():
        result = _integer_matmul(x, matrix.T)
        return result if offset is None else result + offset
    return functional.linear(x.float(), matrix.float(), None if offset is None else offset.float())


def _worth_blocks(weight: Weight, ctx: Context) -> bool:
    plain = weight.is_view and weight.type.dtype.name == "fp32"
    return not (plain or ctx.numerics.keep or weight.kept is not None) and weight.size > _WHOLE


def _integer_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Exact integer product: doubles hold it as long as it stays below 2**53."""
    return torch.matmul(x.double(), y.double()).to(torch.int64)


@op("matmul")
def matmul(x: Lazy, y: Lazy, ctx: Context, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """`x @ y` with numpy's rules for rank 1 and batches; `transpose_*` swap the last two axes."""
    if (
        transpose_y and not transpose_x and isinstance(y, Weight) and isinstance(x, Tensor)
        and len(y.shape) == 2 and _worth_blocks(y, ctx) and not (ctx.numerics.fp16_accumulate and ctx.half)
    ):  # fmt: skip
        return _linear_blocks(x, y)
    a, b = operand(x, ctx), operand(y, ctx)
    if transpose_x and a.ndim > 1:
        a = a.transpose(-1, -2)
    if transpose_y and b.ndim > 1:
        b = b.transpose(-1, -2)
    if not a.is_floating_point() and not b.is_floating_point():
        return _integer_matmul(a, b)
    if ctx.numerics.fp16_accumulate and ctx.half:
        result = matmul_fp16(a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None])
        result = result if a.ndim > 1 else result.squeeze(-2)
        return result if b.ndim > 1 else result.squeeze(-1)
    return torch.matmul(a.float(), b.float())


@op("einsum")
def einsum(values: list[Tensor], equation: str) -> Tensor:
    """Batched matrix product over axes -1 and -3, as `nchw,nwhu->nchu` and `chw,whr->chr`."""
    return torch.einsum(equation.replace(" ", ""), *values)
