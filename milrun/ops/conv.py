"""Convolutions of one to three spatial axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from milrun.errors import ExecutionError
from milrun.ops.linear import operand
from milrun.ops.registry import Context, Lazy, op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def padding(
    pad_type: str,
    pad: list[int] | None,
    sizes: list[int],
    kernel: list[int],
    strides: list[int],
) -> list[tuple[int, int]]:
    """(before, after) for each spatial axis; `kernel` is the dilated size.

    `same` puts the odd element after, `same_lower` before: the total is what makes the output
    `ceil(size / stride)` long.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * len(sizes):
            raise ExecutionError(f"pad_type 'custom' needs {2 * len(sizes)} pad values, not {pad}")
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    if pad_type not in ("same", "same_lower"):
        raise ExecutionError(f"unknown pad_type {pad_type!r}")
    result = []
    for size, k, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + k - size)
        small, large = total // 2, total - total // 2
        result.append((small, large) if pad_type == "same" else (large, small))
    return result


def pad_spatial(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the spatial axes (negative amounts crop)."""
    if not any(p for pair in pads for p in pair):
        return x
    return functional.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


@op("conv")
def conv(
    x: Tensor,
    weight: Lazy,
    ctx: Context,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of `x` (n, C_in, *D) with `weight` (C_out, C_in/groups, *K)."""
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    kernel = operand(weight, ctx)
    dilated = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    pads = padding(pad_type, pad, list(x.shape[2:]), dilated, strides)
    if all(a == b for a, b in pads):
        return _CONV[spatial](x, kernel, bias, strides, [a for a, _ in pads], dilations, groups)
    return _CONV[spatial](pad_spatial(x, pads), kernel, bias, strides, 0, dilations, groups)


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Lazy,
    ctx: Context,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv`: the full result, from which padding is cropped.

    With `output_shape` the crop is what remains to that size (for `custom` padding the amounts
    before are kept and the end adjusted; else it is split, the odd element at the end).
    """
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    kernel = operand(weight, ctx)
    full = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], strides, kernel.shape[2:], dilations, strict=True)
    ]
    result = _TRANSPOSE[spatial](x, kernel, None, strides, 0, 0, groups, dilations)
    given = pad if pad_type == "custom" and pad is not None else [0] * (2 * spatial)
    crops = []
    for i in range(spatial):
        if output_shape is not None or pad_type.startswith("same"):
            target = output_shape[2 + i] if output_shape is not None else x.shape[2 + i] * strides[i]
            total = full[i] - target
            if pad_type == "custom":
                crops.append((given[2 * i], total - given[2 * i]))
            elif pad_type == "same_lower":
                crops.append((total - total // 2, total // 2))
            else:
                crops.append((total // 2, total - total // 2))
        else:
            crops.append((given[2 * i], given[2 * i + 1]))
    result = pad_spatial(result, [(-a, -b) for a, b in crops])
    return result if bias is None else result + bias.reshape(-1, *[1] * spatial)


@op("conv_quantized")
def conv_quantized(
    x: Tensor,
    weight: Tensor,
    ctx: Context,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    bias: Tensor | None = None,
    nbits: int = 8,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """`conv` with `weight * quant_scale + quant_bias` as weights (linear quantization only)."""
    if quantization_type != "linear":
        raise ExecutionError(
            f"conv_quantized: quantization_type {quantization_type!r} is not defined for ML Programs"
        )
    shape = [-1, *[1] * (weight.ndim - 1)]
    scale = quant_scale.reshape(shape) if quant_scale.ndim == 1 else quant_scale
    offset = quant_bias.reshape(shape) if quant_bias.ndim == 1 else quant_bias
    values = weight.to(torch.float32) * scale + offset
    return conv(x, values, ctx, bias, strides, pad_type, pad, dilations, groups)
