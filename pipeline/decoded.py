"""What a weight is after encoding: the arrays of `encodings`, decoded by the operations' formulas."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipeline import encodings
from pipeline.compensate import Inputs
from pipeline.params import Scheme

Floats = npt.NDArray[np.float32]


def _integers(data: bytes, bits: int, shape: tuple[int, ...], *, signed: bool) -> npt.NDArray[np.int32]:
    packed = np.frombuffer(data, np.uint8)
    if bits == 8:
        values = packed.astype(np.int32)
    else:
        each = np.unpackbits(packed, bitorder="little", count=math.prod(shape) * bits).reshape(-1, bits)
        values = (each @ (1 << np.arange(bits, dtype=np.int32))).astype(np.int32)
    if signed:
        values -= values >> (bits - 1) << bits
    return values.reshape(shape)


def decode(scheme: Scheme, arrays: dict[str, bytes], shape: tuple[int, int]) -> Floats:
    """Values (rows, columns) of the arrays that an iOS 18 encoding made."""
    rows, columns = shape
    if scheme.scheme == "float16":
        return np.frombuffer(arrays["val"], np.float16).reshape(shape).astype(np.float32)
    if scheme.scheme == "palette":
        tables = np.frombuffer(arrays["lut"], np.float16).reshape(-1, 2**scheme.bits).astype(np.float32)
        table = np.arange(rows) // (scheme.group or rows)
        chosen: Floats = tables[
            table[:, None], _integers(arrays["indices"], scheme.bits, shape, signed=False)
        ]
        return chosen
    width = scheme.block or columns
    each = (rows, columns // width)
    scale = np.frombuffer(arrays["scale"], np.float16).reshape(each).astype(np.float32)
    values = _integers(arrays["data"], scheme.bits, shape, signed=True)
    if scheme.affine:
        values -= _integers(arrays["offset"], scheme.bits, each, signed=True).repeat(width, 1)
    return values.astype(np.float32) * scale.repeat(width, 1)


def rounded(name: str, weight: Floats, scheme: Scheme, inputs: Inputs | None) -> tuple[Floats, int]:
    """A weight as a scheme stores it for iOS 18, and its bytes there."""
    encoding = encodings.make(scheme, "iOS18")
    shape = (weight.shape[0], weight.shape[1])
    planned = encodings.blobs(encoding, name, shape)
    arrays = dict.fromkeys(planned, b"")
    for argument, data in encoding.stream(name, lambda _: iter([weight]), inputs):
        arrays[argument] += data
    return decode(scheme, arrays, shape), sum(blob.bytes for blob in planned.values())
