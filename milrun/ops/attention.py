"""Scaled dot-product attention, `softmax(q k^T / sqrt(E) + mask) v`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from milrun.ops.accumulate import matmul_fp16
from milrun.ops.registry import Context, op


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, ctx: Context, attn_mask: Tensor | None = None
) -> Tensor:
    """Attention with a boolean mask (true takes part) or an additive one.

    The scores stay FP32 inside the operation; only its result is rounded. A row whose mask
    excludes everything gives NaN, as the formula does.
    """
    if ctx.numerics.fp16_accumulate and ctx.half:
        scores = matmul_fp16(query, key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
        if attn_mask is not None:
            mask = attn_mask
            scores = (
                scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask.float()
            )
        return matmul_fp16(torch.softmax(scores, -1).half(), value)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)
