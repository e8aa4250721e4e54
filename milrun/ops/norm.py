"""Normalisations. Statistics are FP32 whatever the declared type."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from milrun.ops.accumulate import sum_fp16
from milrun.ops.registry import Context, op


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.ndim - 2))


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """`gamma (x - mean) / sqrt(variance + epsilon) + beta`, per channel (second axis)."""
    scale = torch.rsqrt(variance + epsilon)
    scale = scale if gamma is None else scale * gamma
    result = (x - _per_channel(mean, x)) * _per_channel(scale, x)
    return result if beta is None else result + _per_channel(beta, x)


@op("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Each channel of each sample normalised over its spatial axes, biased variance."""
    axes = list(range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    result = (x - mean) * torch.rsqrt(variance + epsilon)
    result = result if gamma is None else result * _per_channel(gamma, x)
    return result if beta is None else result + _per_channel(beta, x)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """`x / sqrt(sum(x^2) + epsilon)` over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@op("layer_norm")
def layer_norm(
    x: Tensor,
    ctx: Context,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """`gamma (x - E[x]) / sqrt(Var[x] + epsilon) + beta` over `axes` (default: all)."""
    over = sorted(a % x.ndim for a in axes) if axes is not None else list(range(x.ndim))
    shape = [x.shape[a] if a in over else 1 for a in range(x.ndim)]
    if ctx.numerics.fp16_accumulate and ctx.half:
        count = torch.tensor(float(torch.Size([x.shape[a] for a in over]).numel()))
        centred = x - sum_fp16(x, over).float() / count
        result = centred * torch.rsqrt(sum_fp16(centred.square(), over).float() / count + epsilon)
    elif over == list(range(x.ndim - len(over), x.ndim)):
        normalized = [x.shape[a] for a in over]
        if gamma is not None:
            gamma = gamma.reshape(normalized).to(x.dtype)
        if beta is not None:
            beta = beta.reshape(normalized).to(x.dtype)
        return functional.layer_norm(x, normalized, gamma, beta, epsilon)
    else:
        variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
        result = (x - mean) * torch.rsqrt(variance + epsilon)
    result = result if gamma is None else result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


@op("local_response_norm")
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """`x / (k + alpha / size * sum of squares of neighbouring channels) ** beta`.

    Channels are the third axis from the end: the documentation's (n, C, *D) is that for rank 4, and
    for rank 3 the numbers in coremltools' smoke test fit no other reading.
    """
    if x.ndim == 3:
        return functional.local_response_norm(x[None], size, alpha, beta, k)[0]
    return functional.local_response_norm(x, size, alpha, beta, k)
