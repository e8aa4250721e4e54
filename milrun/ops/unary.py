"""Element-wise operations of one tensor, and activations.

All are computed in FP32 and rounded once; the formulas are those of the MIL documentation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from milrun.ops.registry import Context, op

_SIMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "round": torch.round,  # half to even
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": lambda x: functional.softplus(x, threshold=1e9),
    "softsign": functional.softsign,
    "square": torch.square,
}


def _register(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @op(name)
    def kernel(x: Tensor) -> Tensor:
        return function(x)


for _name, _function in _SIMPLE.items():
    _register(_name, _function)


@op("abs", native=True)
def absolute(x: Tensor) -> Tensor:
    """`|x|`."""
    return x.abs()


@op("relu", native=True)
def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`."""
    return functional.relu(x)


@op("relu6", native=True)
def relu6(x: Tensor) -> Tensor:
    """`min(max(x, 0), 6)`."""
    return functional.relu6(x)


@op("identity", native=True)
def identity(x: Tensor) -> Tensor:
    """`x`."""
    return x


@op("logical_not", native=True)
def logical_not(x: Tensor) -> Tensor:
    """Negation."""
    return torch.logical_not(x)


@op("exp2")
def exp2(x: Tensor) -> Tensor:
    """`2 ** x`."""
    return torch.exp2(x.float())


@op("clip")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`min(max(x, alpha), beta)`."""
    return x.clamp(alpha, beta)


@op("threshold", native=True)
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """`max(x, alpha)`."""
    return torch.maximum(x, alpha)


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """`1 / (x + epsilon)`."""
    return torch.reciprocal(x + epsilon)


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """`log(x + epsilon)`."""
    return torch.log(x + epsilon)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """`1 / sqrt(x + epsilon)`."""
    return torch.rsqrt(x + epsilon)


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit: exact, its tanh approximation, or `x * sigmoid(1.702 x)`."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`min(beta, x)` for `x >= 0`, else `min(beta, alpha x)`."""
    return torch.where(x >= 0, x, alpha * x).clamp(max=beta)


@op("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """`x` for `x > 0`, else `alpha (exp(x) - 1)`."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """`x` for `x >= 0`, else `alpha x`."""
    return torch.where(x >= 0, x, alpha * x)


@op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha x + beta`."""
    return alpha * x + beta


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` for `x > 0`, else `alpha[channel] x`; channels are the second axis."""
    return torch.where(x > 0, x, _channels(alpha, x) * x)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha tanh(beta x)`."""
    return alpha * torch.tanh(beta * x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`min(max(alpha x + beta, 0), 1)`."""
    return (alpha * x + beta).clamp(0, 1)


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha[channel] log(1 + exp(beta[channel] x))`."""
    return _channels(alpha, x) * functional.softplus(_channels(beta, x) * x, threshold=1e9)


@op("softmax")
def softmax(x: Tensor, ctx: Context, axis: int = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` along an axis, stabilised by the maximum."""
    if ctx.numerics.fp16_accumulate and ctx.half:
        from milrun.ops.accumulate import sum_fp16  # noqa: PLC0415

        exponentials = torch.exp(x - x.amax(axis, keepdim=True))
        return exponentials / sum_fp16(exponentials, [axis % x.ndim]).float()
    return torch.softmax(x, axis)


@op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """`x` for `x >= alpha`, else 0."""
    return torch.where(x >= alpha, x, torch.zeros((), dtype=x.dtype))
