"""How a weight is stored: its blobs, the operation that decodes it, and the stream of its values.

Rounding is from the checkpoint's own values in float32. Shapes are (rows, columns), a row being an output channel
of a linear layer or a token of the embedding table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline import compensate, grids, kmeans
from pipeline.blob import Blob
from pipeline.compensate import Inputs
from pipeline.errors import PipelineError
from pipeline.params import Scheme

Floats = npt.NDArray[np.float32]
Read = Callable[[int], Iterator[Floats]]
"""Gives a weight's blocks of rows, each but the last a multiple of that many rows; may be called again."""

Pieces = Iterator[tuple[str, bytes | npt.NDArray[np.uint8]]]


class Encoding(Protocol):
    """One way to store a weight."""

    operation: str
    attributes: Mapping[str, Any]
    """Small arguments of the operation that are no blobs."""

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """The arrays to store, by the operation's argument; a shape that does not fit is an error."""
        ...

    def stream(self, name: str, read: Read, inputs: Inputs | None = None) -> Pieces:
        """The bytes of all arrays, piece by piece, each with the argument it belongs to.

        With `inputs`, rounding makes the outputs near, not the weights.
        """
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
    if bits == 4 and len(flat) % 2 == 0:  # the usual case, without an array of single bits
        return (flat[::2] & 15 | flat[1::2] << 4).tobytes()
    unpacked = np.unpackbits(flat[:, None], axis=1, bitorder="little", count=bits)
    return np.packbits(unpacked.ravel(), bitorder="little").tobytes()


_ROWS = 8  # rows encoded together are a multiple of it, so that a block's packed integers end at a byte


class Float16:
    """Plain FP16: a `const`."""

    operation = "const"
    attributes: Mapping[str, Any] = {}

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """One array."""
        return {"val": Blob("float16", shape)}

    def stream(self, name: str, read: Read, inputs: Inputs | None = None) -> Pieces:
        """Rounded values."""
        del inputs  # so near that there is nothing to make good
        for block in read(1):
            yield "val", to_float16(name, block).tobytes()


class Linear:
    """Integers: value = scale x (integer - offset), one FP16 scale a row or for each `block` columns.

    The scale is rounded to FP16 first and the integers are chosen for the rounded scale.
    """

    def __init__(self, scheme: Scheme, target: str) -> None:
        """`target` decides the operation; iOS 16 and 17 know 8 bits a row only."""
        self.bits, self.block, self.affine = scheme.bits, scheme.block, scheme.affine
        self.modern = target == "iOS18"
        if not self.modern and (self.bits != 8 or self.block):
            blocks = " in blocks" if self.block else ""
            raise PipelineError(
                f"{self.bits}-bit linear weights{blocks} need target iOS18, the model's is {target}; "
                "use 8 bits a row or a palette for the whole tensor"
            )
        self.operation = "constexpr_blockwise_shift_scale" if self.modern else "constexpr_affine_dequantize"
        self.attributes: Mapping[str, Any] = {} if self.modern else {"axis": 0}

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """Integers, scales, and offsets where they are not zero or the older operation asks for them."""
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
        each = (shape[0], shape[1] // self.block if self.block else 1)
        made = {"data": Blob(f"int{self.bits}", shape), "scale": Blob("float16", each)}
        return made | ({"offset": Blob(f"int{self.bits}", each)} if self.affine else {})

    def stream(self, name: str, read: Read, inputs: Inputs | None = None) -> Pieces:
        """Scales by the least squared error, integers by rounding to nearest, or by `inputs`."""
        for block in read(_ROWS):
            to_float16(name, np.array([block.min(), block.max()]))  # all must lie in FP16's range
            width = self.block or block.shape[1]
            importance = inputs.importance if inputs else kmeans.evenly(block.shape[1])
            grid = grids.fit(block, self.bits, width, importance, affine=self.affine)
            integers, mask = self.integers(block, grid, inputs), 2**self.bits - 1
            yield "data" if self.modern else "quantized_data", pack(integers.view(np.uint8) & mask, self.bits)
            yield "scale", grid.scale.tobytes()
            if not self.modern:
                yield "zero_point", grid.offset.tobytes()
            elif self.affine:
                yield "offset", pack(grid.offset.view(np.uint8) & mask, self.bits)

    @staticmethod
    def integers(block: Floats, grid: grids.Grid, inputs: Inputs | None) -> grids.Integers:
        """The integers (rows, columns) of a block."""
        if inputs is None:
            return grid.round(block)
        tables = grid.entries()
        indices = compensate.compensate(block, inputs, tables, 1, grid.width)
        compensate.descend(block, inputs, tables, 1, grid.width, indices)
        return (indices.astype(np.int16) + grid.lowest).astype(np.int8)


class Palette:
    """Indices into a table of 2^bits FP16 values: one table for the tensor, or one for each `group` rows."""

    operation = "constexpr_lut_to_dense"

    def __init__(self, scheme: Scheme, target: str) -> None:
        """`target` decides the form; several tables need iOS 18."""
        self.bits, self.group = scheme.bits, scheme.group
        self.modern = target == "iOS18"
        self.attributes: Mapping[str, Any] = {}
        if self.group and not self.modern:
            raise PipelineError(
                f"palettes for groups of channels need target iOS18, the model's is {target}; "
                "leave out `group` for one table a tensor"
            )

    def blobs(self, shape: tuple[int, ...]) -> dict[str, Blob]:
        """Indices, and tables of shape (groups, 1, entries, 1); before iOS 18 flat bytes and one flat table."""
        if self.group and shape[0] % self.group:
            raise PipelineError(f"groups of {self.group} rows do not divide a weight of shape {list(shape)}")
        if not self.modern:
            self.attributes = {"shape": shape}
            packed = -(-math.prod(shape) * self.bits // 8)
            return {"indices": Blob("uint8", (packed,)), "lut": Blob("float16", (2**self.bits,))}
        count = shape[0] // self.group if self.group else 1
        return {
            "indices": Blob(f"uint{self.bits}", shape),
            "lut": Blob("float16", (count, 1, 2**self.bits, 1)),
        }

    def stream(self, name: str, read: Read, inputs: Inputs | None = None) -> Pieces:
        """Exact k-means over the values as FP16 holds them; one table a tensor takes a first pass to count them.

        With `inputs`, squared errors weigh what the columns' inputs are, and the tables of groups are fitted again
        to the indices that come out.
        """
        entries, whole = 2**self.bits, None
        importance = inputs.importance if inputs else None
        if not self.group:
            histogram = kmeans.Histogram()
            for block in read(1):
                histogram.add(to_float16(name, block), importance)
            whole = histogram.table(entries)
            yield "lut", whole.tobytes()
        for block in read(math.lcm(self.group or 1, _ROWS)):
            halves = to_float16(name, block)
            groups = halves.reshape(-1, self.group or len(halves), halves.shape[1])
            tables = kmeans.tables(groups, entries, importance) if whole is None else whole
            if inputs is None:
                indices = kmeans.assign(groups, tables)
            else:
                tables, indices = self.improve(block, groups.shape[1], tables, inputs)
            yield "indices", pack(indices, self.bits)
            if whole is None:
                yield "lut", tables.tobytes()

    def improve(
        self, block: Floats, group: int, tables: kmeans.Halves, inputs: Inputs
    ) -> tuple[kmeans.Halves, kmeans.Indices]:
        """Tables (groups, entries) and indices (rows, columns) of a block by its inputs."""
        wide, width = tables.astype(np.float32)[:, None], block.shape[1]
        indices = compensate.compensate(block, inputs, wide, group, width)
        compensate.descend(block, inputs, wide, group, width, indices)
        if self.group:  # a table of the whole tensor is fixed before the first block
            wide, indices = compensate.refit(block, inputs, wide, group, indices)
            compensate.descend(block, inputs, wide, group, width, indices)
        return wide[:, 0].astype(np.float16), indices


def make(scheme: Scheme, target: str) -> Encoding:
    """The encoding of a scheme for a deployment target; one that the target cannot hold is refused."""
    if scheme.scheme == "linear":
        return Linear(scheme, target)
    if scheme.scheme == "palette":
        return Palette(scheme, target)
    return Float16()


def blobs(encoding: Encoding, name: str, shape: tuple[int, ...]) -> Mapping[str, Blob]:
    """The blobs of a weight, its rank and sizes checked; an error names the weight."""
    if len(shape) != 2 and encoding.operation != "const":
        raise PipelineError(f"weight {name!r}: only matrices can be quantized, not a shape of {list(shape)}")
    try:
        return encoding.blobs(shape)
    except PipelineError as error:
        raise PipelineError(f"weight {name!r}: {error}") from error
