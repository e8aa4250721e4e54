"""Reductions. Accumulation is FP32 for floats, exact for integers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from milrun.ops.accumulate import sum_fp16
from milrun.ops.registry import Context, op


def _sum(x: Tensor, axes: list[int], ctx: Context) -> Tensor:
    if ctx.numerics.fp16_accumulate and ctx.half:
        return sum_fp16(x, axes).float()
    return x.sum(axes, keepdim=True)


def _mean(x: Tensor, axes: list[int], ctx: Context) -> Tensor:
    count = math.prod(x.shape[a] for a in axes)
    total = _sum(x, axes, ctx)
    return total / count if x.is_floating_point() else torch.div(total, count, rounding_mode="trunc")


def _prod(x: Tensor, axes: list[int], _: Context) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], Context], Tensor]] = {
    "reduce_sum": _sum,
    "reduce_mean": _mean,
    "reduce_prod": _prod,
    "reduce_max": lambda x, axes, _: x.amax(axes, keepdim=True),
    "reduce_min": lambda x, axes, _: x.amin(axes, keepdim=True),
    "reduce_sum_square": lambda x, axes, ctx: _sum(x * x, axes, ctx),
    "reduce_l1_norm": lambda x, axes, ctx: _sum(x.abs(), axes, ctx),
    "reduce_l2_norm": lambda x, axes, ctx: torch.sqrt(_sum(x * x, axes, ctx).float()),
    "reduce_log_sum": lambda x, axes, ctx: torch.log(_sum(x, axes, ctx).float()),
    "reduce_log_sum_exp": lambda x, axes, _: torch.logsumexp(x.float(), axes, keepdim=True),
}


def _register(name: str, function: Callable[[Tensor, list[int], Context], Tensor]) -> None:
    @op(name)
    def kernel(x: Tensor, ctx: Context, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        over = sorted({a % x.ndim for a in axes}) if axes is not None else list(range(x.ndim))
        result = function(x, over, ctx) if over else function(x[None], [0], ctx)[0]
        return (
            result
            if keep_dims or not over
            else result.reshape([d for a, d in enumerate(x.shape) if a not in over])
        )


for _name, _function in _REDUCTIONS.items():
    _register(_name, _function)


@op("reduce_argmax", native=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the maximum along an axis."""
    return torch.argmax(x, axis, keepdim=keep_dims)


@op("reduce_argmin", native=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the minimum along an axis."""
    return torch.argmin(x, axis, keepdim=keep_dims)
