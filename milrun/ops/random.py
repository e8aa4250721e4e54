"""Random tensors. The same seed gives the same values at every call, but not Core ML's values.

A seed of -1 (the default) draws on from the loaded model's own generator, which starts seeded, so
a freshly loaded model repeats itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milrun.ops.registry import Context, bounded, op


def _generator(seed: int, ctx: Context) -> torch.Generator:
    return ctx.generator if seed < 0 else torch.Generator().manual_seed(seed)


@op("random_uniform")
def random_uniform(
    shape: list[int], ctx: Context, low: float = 0.0, high: float = 1.0, seed: int = -1
) -> Tensor:
    """Uniform over [low, high)."""
    return low + (high - low) * torch.rand(bounded(shape), generator=_generator(seed, ctx))


@op("random_normal")
def random_normal(
    shape: list[int], ctx: Context, mean: float = 0.0, stddev: float = 1.0, seed: int = -1
) -> Tensor:
    """Normal with a mean and a standard deviation."""
    return mean + stddev * torch.randn(bounded(shape), generator=_generator(seed, ctx))


@op("random_bernoulli")
def random_bernoulli(shape: list[int], ctx: Context, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with probability `prob`, else 0."""
    return (torch.rand(bounded(shape), generator=_generator(seed, ctx)) < prob).float()


@op("random_categorical")
def random_categorical(
    x: Tensor, ctx: Context, mode: str = "logits", size: int = 1, seed: int = -1
) -> Tensor:
    """`size` draws with replacement from each row's distribution."""
    weights = torch.softmax(x, -1) if mode == "logits" else x
    flat = weights.reshape(-1, x.shape[-1])
    bounded([flat.shape[0], size], 8)
    draws = torch.multinomial(flat, size, replacement=True, generator=_generator(seed, ctx))
    return draws.reshape(*x.shape[:-1], size).float()
