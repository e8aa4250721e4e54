"""Reads `MIL.Value` messages: immediate tensors, references into weight files, lists, strings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from milrun.blob import unpack_bits
from milrun.errors import PackageError
from milrun.types import ListType, TensorType, type_from_proto
from milrun.weights import BlobWeight, ImmediateWeight, Weight, as_tensor

if TYPE_CHECKING:
    from milrun.package import Package


def read_value(message: Any, package: Package) -> Weight | str | list[Any]:
    """A constant: a `Weight`, a string (scalar of type string) or a list of strings or integers.

    Raises
    ------
    PackageError
        If the data doesn't fit the declared type.
    """
    kind = type_from_proto(message.type)
    if message.WhichOneof("value") == "blobFileValue":
        if not isinstance(kind, TensorType):
            raise PackageError(f"a {kind} can't be stored in a weight file")
        file = package.blob_file(message.blobFileValue.fileName)
        return BlobWeight(kind, file, file.blob(message.blobFileValue.offset))
    if message.WhichOneof("value") != "immediateValue":
        raise PackageError("a constant has no value")
    if isinstance(kind, ListType):
        return [_scalar(read_value(item, package)) for item in message.immediateValue.list.values]
    if not isinstance(kind, TensorType):
        raise PackageError(f"constants of type {kind} are not supported")
    return _tensor(message.immediateValue.tensor, kind)


def _scalar(value: Weight | str | list[Any]) -> Any:
    return value.decode().item() if isinstance(value, Weight) else value


def _tensor(message: Any, kind: TensorType) -> Weight | str | list[Any]:
    if kind.size is None:
        raise PackageError(f"a constant must have a static shape, not {kind}")
    field = message.WhichOneof("value")
    dtype = kind.dtype
    if dtype.kind == "str":
        strings = [str(s) for s in message.strings.values]
        if len(strings) != kind.size:
            raise PackageError(f"{len(strings)} strings for {kind}")
        return strings[0] if kind.shape == () else strings
    if field == "bytes":
        array = _from_bytes(message.bytes.values, kind)
    elif field is None:
        array = np.zeros(0, dtype.storage)
    else:
        raw = getattr(message, field).values
        if field == "strings" or len(raw) != kind.size:
            raise PackageError(f"{len(raw)} values ({field}) for {kind}")
        with np.errstate(all="ignore"):
            array = np.array(raw, dtype=np.float64 if field in ("floats", "doubles") else None)
            array = array.astype(dtype.storage)
    if array.size != kind.size:
        raise PackageError(f"{array.size} values for {kind}")
    return ImmediateWeight(kind, as_tensor(array.reshape(tuple(d or 0 for d in kind.shape))))


def _from_bytes(data: bytes, kind: TensorType) -> np.ndarray:
    dtype = kind.dtype
    count = kind.size or 0
    if len(data) != math.ceil(count * dtype.bits / 8):
        raise PackageError(f"{len(data)} bytes for {kind}")
    if dtype.bits >= 8:
        return np.frombuffer(data, dtype.storage).copy()
    array = unpack_bits(np.frombuffer(data, np.uint8), dtype.bits, count)
    return (array << (8 - dtype.bits)).view(np.int8) >> (8 - dtype.bits) if dtype.signed else array
