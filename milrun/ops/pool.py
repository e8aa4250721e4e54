"""Pooling over windows of one to three spatial axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from milrun.ops.conv import pad_spatial, padding
from milrun.ops.registry import op

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _windows(
    x: Tensor,
    kernel: list[int],
    strides: list[int] | None,
    pad_type: str,
    pad: list[int] | None,
    ceil_mode: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Strides and the (before, after) padding, enlarged at the end where `ceil_mode` needs it."""
    sizes = list(x.shape[2:])
    strides = strides or [1] * len(sizes)
    pads = padding(pad_type, pad, sizes, kernel, strides)
    if ceil_mode:
        for i, (size, k, s) in enumerate(zip(sizes, kernel, strides, strict=True)):
            before, after = pads[i]
            out = (size + before + after - k + s - 1) // s + 1
            if (out - 1) * s >= size + before and before + after > 0:
                out -= 1
            pads[i] = (before, max(after, (out - 1) * s + k - size - before))
    return strides, pads


def _window_sum(x: Tensor, kernel: list[int], strides: list[int]) -> Tensor:
    for axis, (k, s) in enumerate(zip(kernel, strides, strict=True), start=2):
        x = x.unfold(axis, k, s).sum(-1)
    return x


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """Mean over each window. Elements that only `ceil_mode` adds never count in the divisor."""
    steps, pads = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    total = _window_sum(pad_spatial(x, pads), kernel_sizes, steps)
    inside = torch.ones((1, 1, *x.shape[2:]))
    if exclude_padding_from_average:
        counted = pad_spatial(inside, pads)
    else:
        declared = padding(pad_type, pad, list(x.shape[2:]), kernel_sizes, steps)
        counted = pad_spatial(inside, declared, 1.0)
        extra = [(0, p[1] - d[1]) for p, d in zip(pads, declared, strict=True)]
        counted = pad_spatial(counted, extra)
    return total / _window_sum(counted, kernel_sizes, steps)


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Square root of the sum of squares over each window."""
    steps, pads = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return torch.sqrt(_window_sum(pad_spatial(x.square(), pads), kernel_sizes, steps))


@op("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Maximum over each window; padding never wins."""
    steps, pads = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return _MAX[x.ndim - 2](pad_spatial(x, pads, -math.inf), kernel_sizes, steps)
