"""Constants that stay in the file: each is decoded when an operation needs it and dropped after.

A `Weight` is immutable and knows its declared type; `decode` gives the tensor, `rows` only some of
its first axis, so that an embedding table is never decoded as a whole.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milrun.blob import Blob, BlobFile, unpack_bits
from milrun.errors import PackageError

if TYPE_CHECKING:
    from milrun.types import TensorType


def as_tensor(array: np.ndarray) -> Tensor:
    """Wrap a numpy array without copying; unsigned 16 and 32 bit become the next wider signed type."""
    if array.dtype == np.uint16:
        array = array.astype(np.int32)
    elif array.dtype in (np.uint32, np.uint64):
        array = array.astype(np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


class Weight(ABC):
    """A constant tensor of a declared static type."""

    type: TensorType
    kept: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The declared shape."""
        return tuple(d or 0 for d in self.type.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def encoding(self) -> str:
        """How the values are stored, in words."""

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """Bytes in files (or in the specification) that this constant takes."""

    @abstractmethod
    def decode(self, rows: slice | Tensor | None = None) -> Tensor:
        """The values in the carrier of the declared type, or only some rows of the first axis."""

    def release(self) -> None:  # noqa: B027 - most constants have nothing to give back
        """Give memory-mapped pages back, where that is worth it."""

    def tensor(self, dtype: torch.dtype | None = None, *, keep: bool = False) -> Tensor:
        """Decode into `dtype` (default: the carrier); with `keep` once and for all."""
        if self.kept is not None and (dtype is None or self.kept.dtype == dtype):
            return self.kept
        value = self.decode()
        if dtype is not None and value.dtype != dtype:
            value = value.to(dtype)
        if keep:
            self.kept = value
        else:
            self.release_after(value)
        return value

    def release_after(self, value: Tensor) -> None:
        """Release now if `value` is a copy; a view needs its pages until the operation is over."""
        if not self.is_view or value.dtype != self.type.dtype.carrier:
            self.release()

    @property
    def is_view(self) -> bool:
        """Whether `decode` returns a view of the file."""
        return False

    @property
    def identity(self) -> object:
        """Equal for constants that share their storage."""
        return id(self)


@dataclass
class ImmediateWeight(Weight):
    """A constant that the specification itself holds."""

    type: TensorType
    value: Tensor

    @property
    def encoding(self) -> str:
        return self.type.dtype.name

    @property
    def stored_bytes(self) -> int:
        return math.ceil(self.size * self.type.dtype.bits / 8)

    def decode(self, rows: slice | Tensor | None = None) -> Tensor:
        return self.value if rows is None else self.value[rows]


@dataclass
class BlobWeight(Weight):
    """A constant in a weight file."""

    type: TensorType
    file: BlobFile
    blob: Blob

    def __post_init__(self) -> None:
        if self.type.size is None:
            raise PackageError("A stored constant must have a static shape.")
        if self.blob.dtype.name != self.type.dtype.name and not (
            self.type.dtype.name == "bool" and self.blob.dtype.name == "uint8"
        ):
            raise PackageError(
                f"A constant declared as {self.type} is stored as {self.blob.dtype.name} in "
                f"{self.file.path.name}."
            )
        if self.blob.elements != self.type.size:
            raise PackageError(
                f"A constant declared as {self.type} needs {self.type.size} elements; "
                f"{self.file.path.name} stores {self.blob.elements}."
            )

    @property
    def encoding(self) -> str:
        return self.type.dtype.name

    @property
    def stored_bytes(self) -> int:
        return self.blob.nbytes

    @property
    def is_view(self) -> bool:
        return self.type.dtype.bits >= 8 and not self.type.dtype.wraps

    def decode(self, rows: slice | Tensor | None = None) -> Tensor:
        if self.type.dtype.bits < 8:
            return self._unpack(rows)
        array = self.file.array(self.blob)
        if self.type.dtype.kind == "bool":
            array = array.view(np.bool_)
        value = as_tensor(array).reshape(self.shape)
        return value if rows is None else value[rows]

    def _unpack(self, rows: slice | Tensor | None) -> Tensor:
        """Values of less than a byte; only the rows asked for are unpacked where a row ends at a byte."""
        packed, bits = self.file.array(self.blob).view(np.uint8), self.type.dtype.bits
        shape, later = self.shape, rows
        width = bits * math.prod(shape[1:])
        if rows is not None and width and width % 8 == 0:
            chosen = packed[: shape[0] * width // 8].reshape(shape[0], width // 8)[
                rows if isinstance(rows, slice) else rows.numpy()
            ]
            packed, shape, later = chosen.reshape(-1), (*chosen.shape[:-1], *shape[1:]), None
        array: np.ndarray = unpack_bits(packed, bits, math.prod(shape))
        if self.type.dtype.signed:  # sign-extend: shift the sign bit up, and arithmetically back
            array = (array << (8 - bits)).view(np.int8) >> (8 - bits)
        value = as_tensor(array).reshape(shape)
        return value if later is None else value[later]

    @property
    def identity(self) -> object:
        return str(self.file.path), self.blob.offset

    def release(self) -> None:
        self.file.release(self.blob)
