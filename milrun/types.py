"""The MIL value types that a program declares, and how torch carries each of them.

A `DType` is what the program says (`fp16`, `uint4`, ...). Its *carrier* is the torch type that
holds such values here: torch has no arithmetic for uint16 or sub-byte integers, so those travel in
the next wider signed type and are wrapped to their declared range when stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from coremltools import proto

from milrun.errors import PackageError

Kind = Literal["float", "int", "bool", "str"]


@dataclass(frozen=True)
class DType:
    """One MIL primitive type. `bits` is its width in storage, `blob` its code in a weight file."""

    name: str
    kind: Kind
    bits: int
    signed: bool
    carrier: torch.dtype
    storage: type[np.generic]
    blob: int | None

    @property
    def is_float(self) -> bool:
        """True for fp16, fp32 and fp64."""
        return self.kind == "float"

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer of the type."""
        if self.signed:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    @property
    def wraps(self) -> bool:
        """True where the carrier is wider than the type."""
        return self.kind == "int" and torch.iinfo(self.carrier).bits != self.bits


FP16 = DType("fp16", "float", 16, True, torch.float16, np.float16, 1)  # noqa: FBT003
FP32 = DType("fp32", "float", 32, True, torch.float32, np.float32, 2)  # noqa: FBT003
FP64 = DType("fp64", "float", 64, True, torch.float64, np.float64, None)  # noqa: FBT003
BOOL = DType("bool", "bool", 8, False, torch.bool, np.bool_, None)  # noqa: FBT003
STRING = DType("string", "str", 0, False, torch.uint8, np.str_, None)  # noqa: FBT003


def _int(name: str, carrier: torch.dtype, storage: type[np.generic], blob: int | None) -> DType:
    signed = not name.startswith("u")
    return DType(name, "int", int(name.lstrip("uint")), signed, carrier, storage, blob)


INT32 = _int("int32", torch.int32, np.int32, 14)
UINT8 = _int("uint8", torch.uint8, np.uint8, 3)

# Blob codes: the enumeration `BlobDataType` of coremltools' MILBlob storage format, version 2.
DTYPES: dict[str, DType] = {
    t.name: t
    for t in (
        FP16,
        FP32,
        FP64,
        BOOL,
        STRING,
        INT32,
        UINT8,
        _int("int4", torch.int8, np.int8, 8),
        _int("int8", torch.int8, np.int8, 4),
        _int("int16", torch.int16, np.int16, 6),
        _int("int64", torch.int64, np.int64, None),
        _int("uint1", torch.uint8, np.uint8, 9),
        _int("uint2", torch.uint8, np.uint8, 10),
        _int("uint3", torch.uint8, np.uint8, 12),
        _int("uint4", torch.uint8, np.uint8, 11),
        _int("uint6", torch.uint8, np.uint8, 13),
        _int("uint16", torch.int32, np.uint16, 7),
        _int("uint32", torch.int64, np.uint32, 15),
        _int("uint64", torch.int64, np.uint64, None),
    )
}

_PROTO_NAMES = {"FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64", "BOOL": "bool", "STRING": "string"}


def dtype_from_proto(code: int) -> DType:
    """The `DType` of a `MIL.DataType` code.

    Raises
    ------
    PackageError
        For a code that milrun doesn't know.
    """
    try:
        name = proto.MIL_pb2.DataType.Name(code)
    except ValueError:
        raise PackageError(f"Unknown MIL data type code {code}.") from None
    name = _PROTO_NAMES.get(name, name.lower())
    if name not in DTYPES:
        raise PackageError(f"MIL data type {name!r} is not supported; known are {sorted(DTYPES)}.")
    return DTYPES[name]


@dataclass(frozen=True)
class TensorType:
    """A tensor or, with `shape == ()`, a scalar. None in a shape is a size known only at run time."""

    dtype: DType
    shape: tuple[int | None, ...]
    variadic: bool = False  # the rank itself is unknown

    def __str__(self) -> str:
        dims = ["*"] if self.variadic else ["?" if d is None else str(d) for d in self.shape]
        return f"{self.dtype.name}[{', '.join(dims)}]"

    @property
    def size(self) -> int | None:
        """Number of elements, None where it isn't known."""
        if self.variadic or None in self.shape:
            return None
        return int(np.prod([d for d in self.shape if d is not None], dtype=np.int64))

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape is of this type."""
        if self.variadic:
            return True
        return len(shape) == len(self.shape) and all(
            d is None or d == s for d, s in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class ListType:
    """A list of tensors of one type."""

    element: TensorType

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True)
class StateType:
    """A mutable buffer that outlives one prediction."""

    wrapped: TensorType

    def __str__(self) -> str:
        return f"state<{self.wrapped}>"


@dataclass(frozen=True)
class OpaqueType:
    """A dictionary or tuple: only the results of `classify` have such a type."""

    name: str

    def __str__(self) -> str:
        return self.name


ValueType: TypeAlias = TensorType | ListType | StateType | OpaqueType


def type_from_proto(message: Any) -> ValueType:
    """Read a `MIL.ValueType` message.

    Raises
    ------
    PackageError
        For a message without a type, a rank that its dimensions contradict, or a negative size.
    """
    kind = message.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(message.tensorType)
    if kind == "listType":
        element = type_from_proto(message.listType.type)
        if not isinstance(element, TensorType):
            raise PackageError(f"A MIL list must hold tensors, not {element}.")
        return ListType(element)
    if kind == "stateType":
        wrapped = type_from_proto(message.stateType.wrappedType)
        if not isinstance(wrapped, TensorType):
            raise PackageError(f"A MIL state must wrap a tensor, not {wrapped}.")
        return StateType(wrapped)
    if kind in ("dictionaryType", "tupleType"):
        return OpaqueType(kind.removesuffix("Type"))
    raise PackageError("A value has no type: expected a tensor, list, state, tuple or dictionary.")


def _tensor_type(message: Any) -> TensorType:
    dtype = dtype_from_proto(message.dataType)
    shape: list[int | None] = []
    for dimension in message.dimensions:
        if dimension.WhichOneof("dimension") == "constant":
            size = dimension.constant.size
            if size >= 1 << 40:
                raise PackageError(f"A declared dimension of {size} elements is beyond any real tensor.")
            shape.append(int(size))
        elif dimension.unknown.variadic:
            return TensorType(dtype, (), variadic=True)
        else:
            shape.append(None)
    if message.rank >= 0 and message.rank != len(shape):
        raise PackageError(f"A tensor type declares rank {message.rank} but {len(shape)} dimensions.")
    return TensorType(dtype, tuple(shape))
