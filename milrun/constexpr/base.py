"""What all compressed constants share: decoding by rows, checks of parameters, blocks of an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from milrun.errors import PackageError
from milrun.types import TensorType
from milrun.weights import Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Params: TypeAlias = dict[str, Weight]
_BLOCK = 1 << 22  # elements decoded at a time


@dataclass
class Constexpr(Weight):
    """A constant computed from others. `compute(rows)` gives the values before the final cast."""

    type: TensorType
    sources: list[Weight]
    description: str
    compute: Callable[[slice | Tensor | None], Tensor] = field(repr=False)
    by_rows: bool = True

    @property
    def encoding(self) -> str:
        """How the values are stored, in words."""
        return self.description

    @property
    def stored_bytes(self) -> int:
        """Bytes of all the constants that this one is computed from."""
        return sum(source.stored_bytes for source in self.sources)

    def decode(self, rows: slice | Tensor | None = None) -> Tensor:
        """The values, a block of rows at a time where there are many; `rows` selects some of the first axis."""
        carrier = self.type.dtype.carrier
        if not self.by_rows:
            value = self.compute(None).to(carrier)
            return value if rows is None else value[rows]
        if rows is not None:
            return self.compute(rows).to(carrier)
        if self.size <= _BLOCK:
            return self.compute(slice(None)).to(carrier)
        out = torch.empty(self.shape, dtype=carrier)
        for block in row_blocks(self.shape):
            out[block] = self.compute(block)
        return out

    def release(self) -> None:
        """Give the pages of all sources back."""
        for source in self.sources:
            source.release()


def row_blocks(shape: tuple[int, ...], elements: int = _BLOCK) -> Iterator[slice]:
    """Slices of the first axis that hold about `elements` elements each."""
    step = max(1, elements // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step))


def require(condition: bool, message: str) -> None:  # noqa: FBT001
    """Refuse parameters that contradict one another, with a `PackageError`."""
    if not condition:
        raise PackageError(message)


def row_param(value: Tensor, rows: slice | Tensor | None, per_row: int) -> Tensor:
    """The entries of a per-block parameter that belong to some rows of the data, one entry a row."""
    if rows is None:
        rows = slice(None)
    if value.shape[0] == 1:
        return value
    expanded = value.repeat_interleave(per_row, 0) if per_row > 1 else value
    return expanded[rows]


def blocks_of(data: tuple[int, ...], parameter: tuple[int, ...], what: str) -> list[int]:
    """How many elements of the data one entry of a parameter covers, for each axis; refused where that is no whole number."""
    require(
        len(data) >= 1 and len(data) == len(parameter),
        f"{what}: ranks {len(data)} and {len(parameter)} differ",
    )
    require(
        all(p >= 1 and d % p == 0 for d, p in zip(data, parameter, strict=True)),
        f"{what}: shape {parameter} does not divide {data}",
    )
    return [d // p for d, p in zip(data, parameter, strict=True)]


def spread_blocks(value: Tensor, blocks: list[int], rows: slice | Tensor | None) -> Tensor:
    """A per-block parameter, one entry an element; of the first axis only some rows."""
    for axis, block in enumerate(blocks):
        if axis and block > 1 and value.shape[axis] > 1:
            value = value.repeat_interleave(block, axis)
    return row_param(value, rows, blocks[0])


def scatter_mask(mask: Tensor, values: Tensor) -> Tensor:
    """Values at the places that the mask sets, in order; zeros elsewhere."""
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask] = values
    return dense


def checked_nonzero(mask: Tensor, data: Weight) -> Tensor:
    """The decoded values, if there are as many as set bits in the mask."""
    values = data.decode()
    if int(torch.count_nonzero(mask)) != values.numel():
        raise PackageError(
            f"A sparse constant has {values.numel()} values for {int(mask.sum())} set mask bits."
        )
    return values
