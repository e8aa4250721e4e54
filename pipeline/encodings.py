"""How a weight is stored: its blobs, the operation that decodes it, and the values of a block of rows.

Rounding is from the checkpoint's own values in float32. Shapes are (rows, columns), a row being an output channel
of a linear layer or a token of the embedding table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.blob import Blob
from pipeline.errors import PipelineError
from pipeline.kmeans import cluster
from pipeline.params import Scheme

Floats = npt.NDArray[np.float32]


class Encoding(Protocol):
    """One way to store a weight; `rows` is the number of rows that must be encoded together."""

    operation: str
    rows: int

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """The arrays to store, by the operation's argument."""
        ...

    def encode(self, name: str, block: Floats) -> dict[str, bytes]:
        """The bytes of a block of rows, by the operation's argument."""
        ...


def to_float16(name: str, values: Floats) -> npt.NDArray[np.float16]:
    """Round to FP16; a value beyond its range is an error that names the tensor."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        worst = float(np.abs(values).max())
        raise PipelineError(
            f"weight {name!r} holds {worst:g}, beyond FP16's largest number 65504: it cannot be converted to FP16"
        )
    return rounded


def pack(values: npt.NDArray[np.integer], bits: int) -> bytes:
    """Pack integers into `bits` each, lowest bits of a byte first, as MILBlob stores them."""
    flat = values.astype(np.uint8).ravel()
    if bits == 8:
        return flat.tobytes()
    unpacked = np.unpackbits(flat[:, None], axis=1, bitorder="little", count=bits)
    return np.packbits(unpacked.ravel(), bitorder="little").tobytes()


class Float16:
    """Plain FP16: a `const`."""

    operation = "const"
    rows = 1

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """One array."""
        return {"val": Blob("float16", shape)}

    def encode(self, name: str, block: Floats) -> dict[str, bytes]:
        """Rounded values."""
        return {"val": to_float16(name, block).tobytes()}


class Linear:
    """Symmetric integers: value = scale x integer, one FP16 scale a row or for each `block` columns.

    The scale is rounded to FP16 first and the integers are chosen for the rounded scale.
    """

    rows = 8  # so that a block's packed integers end at a byte

    def __init__(self, bits: int, block: int, target: str) -> None:
        """`target` decides the operation; iOS 16 and 17 know 8 bits a row only."""
        self.bits, self.block = bits, block
        self.modern = target == "iOS18"
        if not self.modern and (bits != 8 or block):
            raise PipelineError(
                f"{bits}-bit linear weights{' in blocks' if block else ''} need target iOS18, the model's is {target}"
            )
        self.operation = "constexpr_blockwise_shift_scale" if self.modern else "constexpr_affine_dequantize"

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """Integers and scales; and zero points, all zero, for the older operation."""
        if self.block and shape[1] % self.block:
            raise PipelineError(
                f"blocks of {self.block} columns do not divide a weight of shape {list(shape)}"
            )
        if not self.modern:
            rows = (shape[0],)
            return {
                "quantized_data": Blob("int8", shape),
                "zero_point": Blob("int8", rows),
                "scale": Blob("float16", rows),
            }
        groups = shape[1] // self.block if self.block else 1
        return {"data": Blob(f"int{self.bits}", shape), "scale": Blob("float16", (shape[0], groups))}

    def encode(self, name: str, block: Floats) -> dict[str, bytes]:
        """Scales from the largest magnitude, integers by rounding to nearest."""
        top = 2 ** (self.bits - 1) - 1
        grouped = block.reshape(len(block), -1, self.block or block.shape[1])
        scale = to_float16(name, np.abs(grouped).max(axis=2, keepdims=True) / top)
        scale[scale == 0] = 1  # an all-zero group decodes to zeros with any scale
        integers = np.clip(np.rint(grouped / scale.astype(np.float32)), -top, top).astype(np.int8)
        packed = pack(integers.view(np.uint8) & (2**self.bits - 1), self.bits)
        if not self.modern:
            return {"quantized_data": packed, "zero_point": bytes(len(block)), "scale": scale.tobytes()}
        return {"data": packed, "scale": scale.tobytes()}


class Palette:
    """Indices into a table of 2^bits FP16 values, one table for each `group` rows, tables by k-means."""

    operation = "constexpr_lut_to_dense"

    def __init__(self, bits: int, group: int, target: str) -> None:
        """Grouped tables need iOS 18."""
        if target != "iOS18":
            raise PipelineError(f"palettes for groups of channels need target iOS18, the model's is {target}")
        if group < 1:
            raise PipelineError("a palette needs `group`, the number of rows that share a table")
        self.bits, self.group = bits, group
        self.rows = group * 8

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """Indices, and tables of shape (groups, 1, entries, 1)."""
        if shape[0] % self.group:
            raise PipelineError(f"groups of {self.group} rows do not divide a weight of shape {list(shape)}")
        return {
            "indices": Blob(f"uint{self.bits}", shape),
            "lut": Blob("float16", (shape[0] // self.group, 1, 2**self.bits, 1)),
        }

    def encode(self, name: str, block: Floats) -> dict[str, bytes]:
        """One k-means a group of rows, over the values as FP16 holds them."""
        groups = to_float16(name, block).reshape(len(block) // self.group, -1)
        tables, indices = cluster(groups, 2**self.bits)
        return {"indices": pack(indices, self.bits), "lut": tables.tobytes()}


def make(scheme: Scheme, target: str) -> Encoding:
    """The encoding of a scheme for a deployment target; one that the target cannot hold is refused."""
    if scheme.scheme == "linear":
        return Linear(scheme.bits, scheme.block, target)
    if scheme.scheme == "palette":
        return Palette(scheme.bits, scheme.group, target)
    return Float16()


def arguments(encoding: Encoding, shape: tuple[int, ...]) -> Mapping[str, Blob]:
    """The blobs of a weight, checked against its rank."""
    if len(shape) != 2 and encoding.operation != "const":
        raise PipelineError(f"only matrices can be quantized, not a weight of shape {list(shape)}")
    return encoding.blobs(shape)
