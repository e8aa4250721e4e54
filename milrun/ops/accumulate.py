"""The pessimistic mode: every partial sum is rounded to FP16, in order.

Real hardware accumulates in something between this and FP32 (and Apple documents neither), so a
program whose results survive both is safe against the difference. It is slow: one pass a term.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_fp16(x: Tensor, axes: list[int]) -> Tensor:
    """Sum over `axes`, kept as length 1, adding one term at a time in FP16. Returns FP16."""
    rest = [a for a in range(x.ndim) if a not in axes]
    terms = x.half().permute(*axes, *rest).reshape(-1, *[x.shape[a] for a in rest])
    total = torch.zeros(terms.shape[1:], dtype=torch.float16)
    for term in terms:
        total = total + term
    return total.reshape([1 if a in axes else x.shape[a] for a in range(x.ndim)])


def matmul_fp16(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` for tensors of rank 2 or more, with an FP16 running sum over the inner axis."""
    total = torch.zeros((), dtype=torch.float16)
    for k in range(x.shape[-1]):
        product = x[..., :, k, None].float() * y[..., None, k, :].float()
        total = (total.float() + product).half()
    return total
