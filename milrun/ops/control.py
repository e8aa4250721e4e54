"""Lists, state and classification. `cond` and `while_loop` are the executor's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from milrun.errors import ExecutionError
from milrun.ops.registry import Context, bounded, op
from milrun.types import ListType

_MAX_LENGTH = 1 << 24


@op("make_list", native=True)
def make_list(
    ctx: Context,
    elem_shape: Any = None,
    init_length: int = 1,
    dynamic_length: bool = True,
    dtype: str = "fp32",
) -> list[Tensor | None]:
    """A list of `init_length` empty places; a place is zeros until it is written."""
    if not 0 <= init_length <= _MAX_LENGTH:
        raise ExecutionError(f"a list of {init_length} elements")
    kind = ctx.outputs[0]
    element = kind.element if isinstance(kind, ListType) else None
    if element is None or element.size is None:
        return [None] * init_length
    dtype_ = torch.float32 if ctx.numerics.fp32 and element.dtype.name == "fp16" else element.dtype.carrier
    bounded([init_length, *(d or 0 for d in element.shape)])
    return [torch.zeros([d or 0 for d in element.shape], dtype=dtype_)] * init_length


def _read(ls: list[Tensor | None], index: int) -> Tensor:
    if not -len(ls) <= index < len(ls):
        raise ExecutionError(f"index {index} is outside a list of {len(ls)}")
    value = ls[index]
    if value is not None:
        return value
    written = next((v for v in ls if v is not None), None)
    if written is None:
        raise ExecutionError("the list was read before anything was written to it")
    return torch.zeros_like(written)


@op("list_length", native=True)
def list_length(ls: Any) -> Tensor:
    """Number of places."""
    return torch.tensor(len(ls), dtype=torch.int32)


@op("list_read", native=True)
def list_read(ls: Any, index: int) -> Tensor:
    """One element."""
    return _read(ls, index)


def _grow(ls: list[Tensor | None], length: int) -> list[Tensor | None]:
    if length > _MAX_LENGTH:
        raise ExecutionError(f"a list of {length} elements")
    return ls + [None] * (length - len(ls))


@op("list_write", native=True)
def list_write(ls: Any, index: int, value: Tensor) -> Any:
    """A copy of the list with one place set; it grows where the index is past its end."""
    result = _grow(ls, index + 1)
    result[index] = value
    return list(result)


@op("list_gather", native=True)
def list_gather(ls: Any, indices: list[int]) -> Tensor:
    """Elements stacked along a new first axis."""
    if not indices:
        return torch.zeros((0, *_read(ls, 0).shape), dtype=_read(ls, 0).dtype)
    return torch.stack([_read(ls, i) for i in indices])


@op("list_scatter", native=True)
def list_scatter(ls: Any, indices: list[int], value: Tensor) -> Any:
    """A copy of the list with several places set from the rows of `value`."""
    result = list(_grow(ls, max([len(ls), *(i + 1 for i in indices)])))
    for index, row in zip(indices, value, strict=True):
        result[index] = row
    return result


@op("read_state", native=True)
def read_state(input: Any) -> Tensor:  # noqa: A002 - the operation's own parameter name
    """The state's present value."""
    value: Tensor = input.value
    return value


@op("write_state", native=True)
def write_state(input: Any, data: Tensor) -> None:  # noqa: A002
    """Replace the state's value."""
    input.value = data.to(input.value.dtype)


@op("coreml_update_state", native=True)
def coreml_update_state(state: Any, value: Tensor) -> Tensor:
    """Write, and give back what was written."""
    state.value = value.to(state.value.dtype)
    return value


@op("classify", native=True)
def classify(probabilities: Tensor, classes: list[str]) -> tuple[Any, Any]:
    """The most probable class and a dictionary of all probabilities (ties: the earlier class)."""
    values = probabilities.float().reshape(-1).tolist()
    if len(values) != len(classes):
        raise ExecutionError(f"{len(values)} probabilities for {len(classes)} classes")
    best = max(range(len(values)), key=values.__getitem__)
    return classes[best], dict(zip(classes, values, strict=True))
