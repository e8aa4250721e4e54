"""Hands values over to kernels: the conversion that each parameter's annotation asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milrun.errors import PackageError
from milrun.weights import ImmediateWeight, Weight

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALL = 1 << 14  # constants up to this many elements are decoded once, when planning


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Weight):
        return value.tensor()
    if not isinstance(value, Tensor):
        raise PackageError(f"a tensor is needed, this is {type(value).__name__}")
    return value


def _upcast(value: Any) -> Tensor:
    tensor = _tensor(value)
    return tensor.float() if tensor.dtype is torch.float16 else tensor


def _lazy(value: Any) -> Any:
    return value


def _lazy_upcast(value: Any) -> Any:
    return value if isinstance(value, Weight) else _upcast(value)


def _ints(value: Any) -> list[int]:
    return [int(v) for v in _tensor(value).reshape(-1).tolist()]


def _bools(value: Any) -> list[bool]:
    return [bool(v) for v in _tensor(value).reshape(-1).tolist()]


def _int(value: Any) -> int:
    return int(_tensor(value).item())


def _float(value: Any) -> float:
    return float(_tensor(value).item())


def _bool(value: Any) -> bool:
    return bool(_tensor(value).item())


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise PackageError(f"a string is needed, this is {type(value).__name__}")
    return value


def _strs(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PackageError(f"a list is needed, this is {type(value).__name__}")
    return value


_CONVERTERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tensor": (_tensor, _upcast),
    "tensors": (_tensor, _upcast),
    "lazy": (_lazy, _lazy_upcast),
    "any": (_lazy, _lazy),
    "int": (_int, _int),
    "float": (_float, _float),
    "bool": (_bool, _bool),
    "str": (_str, _str),
    "ints": (_ints, _ints),
    "bools": (_bools, _bools),
    "strs": (_strs, _strs),
}
_SINGLE = {"ints": _int, "bools": _bool, "strs": _str}


def converter(kind: str, *, upcast: bool, several: bool) -> Callable[[Any], Any]:
    """The function that turns a slot's value (or, with `several`, a list of them) into an argument."""
    convert = _CONVERTERS[kind][upcast]
    if several:
        single = _SINGLE.get(kind, convert)
        return lambda values: [single(v) for v in values]
    return convert


def is_static(value: Any, kind: str) -> bool:
    """Whether an argument can be converted when planning, because it never changes and is small."""
    if value is None:
        return False
    if isinstance(value, Weight):
        return kind == "lazy" or isinstance(value, ImmediateWeight) or value.size <= _SMALL
    return True


def static_value(convert: Callable[[Any], Any], value: Any) -> Any:
    """Convert when planning."""
    try:
        return convert(value)
    except (ValueError, RuntimeError, TypeError) as error:
        raise PackageError(f"a constant can't be used here ({error})") from None
