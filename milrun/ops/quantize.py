"""Run-time quantization of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from milrun.ops.registry import op

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(value: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if value.ndim == 0 or axis is None:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return value.reshape(shape)


@op("quantize")
def quantize(
    input: Tensor,  # noqa: A002 - the operation's own parameter name
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """`clip(round(input / scale) + zero_point)`, rounding half to even."""
    result = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        result = result + _along(zero_point, input, axis).float()
    return result.nan_to_num(0.0).clamp(*_RANGES[output_dtype])


@op("dequantize")
def dequantize(
    input: Tensor,  # noqa: A002
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """`scale * (input - zero_point)`."""
    values = input.float()
    if zero_point is not None:
        values = values - _along(zero_point, input, axis).float()
    return values * _along(scale, input, axis)
