"""Element-wise operations of two tensors, with numpy's broadcasting.

Additions, products and the like are `native`: torch computes an FP16 result from FP32 and rounds it
once, which is the default semantics. Integers wrap around as two's complement does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from milrun.ops.registry import Context, op


@op("add", native=True)
def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`."""
    return x + y


@op("sub", native=True)
def sub(x: Tensor, y: Tensor) -> Tensor:
    """`x - y`."""
    return x - y


@op("mul", native=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """`x * y`."""
    return x * y


@op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """`x / y`; integers are divided as such, truncating toward zero.

    The specification is silent on integers. Core ML's result type is that of the inputs, so a
    fractional result cannot be kept; truncation is what converting to an integer does elsewhere.
    """
    return x / y if x.is_floating_point() or y.is_floating_point() else _integer(x, y, "trunc")


@op("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """`floor(x / y)`."""
    return torch.floor(x / y) if x.is_floating_point() else _integer(x, y, "floor")


@op("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """`x - y * floor(x / y)`: the result has the sign of `y`, as in Python."""
    if x.is_floating_point():
        return torch.remainder(x, y)
    return torch.where(y == 0, torch.zeros_like(y), torch.remainder(x, torch.where(y == 0, 1, y)))


def _integer(x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Integer division; by zero gives zero, where torch would raise and hardware has no answer."""
    zero = y == 0
    return torch.where(zero, 0, torch.div(x, torch.where(zero, 1, y), rounding_mode=mode))


@op("pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """`x ** y`; negative integer exponents truncate toward zero."""
    if not x.is_floating_point() and not y.is_floating_point():
        return torch.pow(x.double(), y.double()).to(x.dtype)
    return torch.pow(x, y)


@op("maximum", native=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """Element-wise maximum; NaN wins."""
    return torch.maximum(x, y)


@op("minimum", native=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """Element-wise minimum; NaN wins."""
    return torch.minimum(x, y)


@op("equal", native=True)
def equal(x: Tensor, y: Tensor) -> Tensor:
    """`x == y`."""
    return x == y


@op("not_equal", native=True)
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """`x != y`."""
    return x != y


@op("greater", native=True)
def greater(x: Tensor, y: Tensor) -> Tensor:
    """`x > y`."""
    return x > y


@op("greater_equal", native=True)
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """`x >= y`."""
    return x >= y


@op("less", native=True)
def less(x: Tensor, y: Tensor) -> Tensor:
    """`x < y`."""
    return x < y


@op("less_equal", native=True)
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """`x <= y`."""
    return x <= y


@op("logical_and", native=True)
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Both true."""
    return torch.logical_and(x, y)


@op("logical_or", native=True)
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """Either true."""
    return torch.logical_or(x, y)


@op("logical_xor", native=True)
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Exactly one true."""
    return torch.logical_xor(x, y)


@op("select", native=True)
def select(cond: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """`a` where `cond`, else `b`; without both, the indices where `cond` is true."""
    if a is None or b is None:
        return torch.nonzero(cond).int()
    return torch.where(cond, a, b)


@op("cast", native=True)
def cast(x: Tensor, dtype: str, ctx: Context) -> Tensor:
    """Convert; floats become integers by truncation toward zero, saturating at the type's range.

    Saturation (and 0 for NaN) is chosen where the specification is silent: it is what Apple's
    hardware conversions do, and C leaves it undefined.
    """
    kind = ctx.outputs[0].dtype  # type: ignore[union-attr]
    if kind.kind == "bool":
        return x != 0
    if kind.kind == "int" and x.is_floating_point():
        low, high = kind.range
        return torch.nan_to_num(x.double(), 0.0).clamp(low, high).to(torch.int64)
    return x
