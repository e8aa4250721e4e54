"""How kernels are declared: a typed function under a decorator *is* the operation's signature.

A kernel's parameter names are the operation's, its annotations say how an argument is handed over
(`Tensor`, `list[Tensor]`, `int`, `list[int]`, `float`, `bool`, `str`, `Lazy`), and its defaults are
those of the specification. The planner therefore knows at load time what is missing or unknown.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from milrun.errors import ExecutionError
from milrun.types import ValueType
from milrun.weights import Weight

Lazy: TypeAlias = Weight | Tensor
# A tensor larger than this is refused: no real model has one, a corrupted program may ask for it.
MAX_BYTES = 16 << 30


@dataclass(frozen=True)
class Numerics:
    """How a program computes: see `milrun.load`."""

    fp32: bool = False
    fp16_accumulate: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Context:
    """What a kernel may ask about its operation; passed to kernels with a parameter `ctx`."""

    kind: str
    opset: int
    outputs: tuple[ValueType, ...]
    numerics: Numerics
    half: bool  # the results are declared FP16 and stored so
    given: frozenset[str]
    generator: torch.Generator


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel. `kind` is the annotation's name; `required` without a default."""

    name: str
    kind: str
    required: bool
    default: Any


@dataclass(frozen=True)
class Kernel:
    """An implementation of an operation from some opset on. `native`: takes FP16 tensors as they are."""

    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    since: int
    native: bool


KERNELS: dict[str, list[Kernel]] = {}
F = typing.TypeVar("F", bound=Callable[..., Any])
_KINDS: dict[Any, str] = {
    Tensor: "tensor",
    list[Tensor]: "tensors",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    list[int]: "ints",
    list[bool]: "bools",
    list[str]: "strs",
    Any: "any",
    Context: "ctx",
}


def op(*names: str, since: int = 15, native: bool = False) -> Callable[[F], F]:
    """Register a function as the kernel of operations `names` from iOS opset `since` on.

    Unless `native`, FP16 tensors are given to it as FP32 and its results rounded once to the
    declared type: the accumulation is FP32.
    """

    def register(function: F) -> F:
        hints = typing.get_type_hints(function)
        parameters = []
        for parameter in inspect.signature(function).parameters.values():
            required = parameter.default is inspect.Parameter.empty
            kind = _kind(hints[parameter.name])
            default = None if required else parameter.default
            parameters.append(Parameter(parameter.name.rstrip("_"), kind, required, default))
        kernel = Kernel(function, tuple(parameters), since, native)
        for name in names:
            KERNELS.setdefault(name, []).append(kernel)
        return function

    return register


def _kind(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        if Weight in members:
            return "lazy"
        (hint,) = members
    return _KINDS[hint]


def find(name: str, opset: int) -> Kernel | None:
    """The newest kernel of an operation that the opset has, or None."""
    candidates = [k for k in KERNELS.get(name, ()) if k.since <= opset]
    if not candidates:  # an operation of a newer opset in an older program: Core ML backports some
        candidates = KERNELS.get(name, [])[:1]
    return max(candidates, key=lambda k: k.since, default=None)


def bounded(shape: list[int] | tuple[int, ...], itemsize: int = 4) -> list[int]:
    """`shape`, if a tensor of it may exist.

    Raises
    ------
    ExecutionError
        If a size is negative or the tensor would need more than `MAX_BYTES`.
    """
    count = itemsize
    for size in shape:
        if size < 0:
            raise ExecutionError(f"a result of shape {list(shape)} is impossible")
        count *= size
    if count > MAX_BYTES:
        raise ExecutionError(f"a result of shape {list(shape)} needs {count} bytes; the limit is {MAX_BYTES}")
    return list(shape)
