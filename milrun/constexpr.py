"""Compressed constants: the `constexpr_*` operations as weights that decode on demand.

Formulas are those of the operations' documentation in coremltools 9.0 (`ops/defs/iOS16/constexpr_ops`,
`iOS18/compression`). Arithmetic is done in FP32 and rounded once to the declared type, a block of
rows at a time, so that the transient memory is small beside the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from milrun.blob import unpack_bits
from milrun.errors import PackageError
from milrun.types import DTYPES, TensorType
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
        return self.description

    @property
    def stored_bytes(self) -> int:
        return sum(source.stored_bytes for source in self.sources)

    def decode(self, rows: slice | Tensor | None = None) -> Tensor:
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
        for source in self.sources:
            source.release()


def row_blocks(shape: tuple[int, ...], elements: int = _BLOCK) -> Iterator[slice]:
    """Slices of the first axis that hold about `elements` elements each."""
    step = max(1, elements // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step))


def build(kind: str, params: Params, outputs: list[TensorType], cast_to: str | None = None) -> list[Weight]:
    """The weights that a `constexpr_*` operation defines.

    Raises
    ------
    PackageError
        If parameters are missing or contradict one another.
    """
    if kind not in _BUILDERS:
        raise PackageError(f"{kind} is not a known constexpr operation; known are {sorted(_BUILDERS)}.")
    if kind == "constexpr_cast":
        return _cast(params, outputs, cast_to)
    try:
        weights = _BUILDERS[kind](params, outputs)
    except KeyError as error:
        raise PackageError(f"{kind}: parameter {error} is missing.") from None
    for weight, declared in zip(weights, outputs, strict=True):
        if weight.type != declared:
            raise PackageError(f"{kind}: its parameters give {weight.type}, its declared type is {declared}.")
    return weights


def _require(condition: bool, message: str) -> None:  # noqa: FBT001
    if not condition:
        raise PackageError(message)


def _row_param(value: Tensor, rows: slice | Tensor | None, per_row: int) -> Tensor:
    """The entries of a per-block parameter that belong to some rows of the data, one entry a row."""
    if rows is None:
        rows = slice(None)
    if value.shape[0] == 1:
        return value
    expanded = value.repeat_interleave(per_row, 0) if per_row > 1 else value
    return expanded[rows]


def _affine(params: Params, _: list[TensorType]) -> list[Weight]:
    data, scale, zero = params["quantized_data"], params["scale"], params["zero_point"]
    axis = int(params["axis"].decode().item())
    rank = len(data.shape)
    _require(-rank <= axis < rank, f"constexpr_affine_dequantize: axis {axis} of rank {rank}")
    axis %= rank
    for parameter in (scale, zero):
        _require(
            parameter.shape in ((), (1,), (data.shape[axis],)),
            f"constexpr_affine_dequantize: a parameter of shape {parameter.shape} for data of "
            f"shape {data.shape}",
        )
    spread = [1] * rank
    spread[axis] = -1

    def compute(rows: slice | Tensor | None) -> Tensor:
        scales, zeros = scale.decode().float().reshape(spread), zero.decode().float().reshape(spread)
        return (data.decode(rows).float() - _row_param(zeros, rows, 1)) * _row_param(scales, rows, 1)

    kind = TensorType(scale.type.dtype, data.type.shape)
    return [Constexpr(kind, [data, scale, zero], f"{data.type.dtype.name} affine", compute)]


def _blocks(data: tuple[int, ...], parameter: tuple[int, ...], what: str) -> list[int]:
    _require(
        len(data) >= 1 and len(data) == len(parameter),
        f"{what}: ranks {len(data)} and {len(parameter)} differ",
    )
    _require(
        all(p >= 1 and d % p == 0 for d, p in zip(data, parameter, strict=True)),
        f"{what}: shape {parameter} does not divide {data}",
    )
    return [d // p for d, p in zip(data, parameter, strict=True)]


def _spread(value: Tensor, blocks: list[int], rows: slice | Tensor | None) -> Tensor:
    for axis, block in enumerate(blocks):
        if axis and block > 1 and value.shape[axis] > 1:
            value = value.repeat_interleave(block, axis)
    return _row_param(value, rows, blocks[0])


def _shift_scale_values(
    data: Tensor, scale: Weight, offset: Weight | None, blocks: list[int], rows: slice | Tensor | None
) -> Tensor:
    values = data.float()
    if offset is not None:
        values = values - _spread(offset.decode().float(), blocks, rows)
    return values * _spread(scale.decode().float(), blocks, rows)


def _blockwise(params: Params, _: list[TensorType]) -> list[Weight]:
    data, scale, offset = params["data"], params["scale"], params.get("offset")
    blocks = _blocks(data.shape, scale.shape, "constexpr_blockwise_shift_scale")
    if offset is not None:
        _require(
            offset.shape == scale.shape, "constexpr_blockwise_shift_scale: offset and scale differ in shape"
        )

    def compute(rows: slice | Tensor | None) -> Tensor:
        return _shift_scale_values(data.decode(rows), scale, offset, blocks, rows)

    per_block = sum(b < d and b > 1 for b, d in zip(blocks, data.shape, strict=True)) > 0
    label = (
        f"{data.type.dtype.name} "
        f"{'per-block' if per_block else 'per-channel' if scale.size > 1 else 'per-tensor'}"
    )
    if isinstance(data, Constexpr):
        label = f"{data.encoding} + scale"
    sources = [data, scale] + ([offset] if offset is not None else [])
    return [Constexpr(TensorType(scale.type.dtype, data.type.shape), sources, label, compute)]


def _lut_packed(params: Params, _: list[TensorType]) -> list[Weight]:
    """The iOS 16 form: flat bytes of packed indices, one palette, and the shape apart."""
    indices, lut = params["indices"], params["lut"]
    shape = tuple(params["shape"].decode().reshape(-1).tolist())
    palettes = lut.size
    _require(
        lut.shape == (palettes,) and palettes in (2, 4, 16, 64, 256),
        f"constexpr_lut_to_dense: lut {lut.shape}",
    )
    bits, count = palettes.bit_length() - 1, math.prod(shape)
    _require(
        indices.size == math.ceil(bits * count / 8), "constexpr_lut_to_dense: indices don't fit the shape"
    )

    def compute(_rows: slice | Tensor | None) -> Tensor:
        packed = indices.decode().numpy()
        out = torch.empty(count, dtype=lut.type.dtype.carrier)
        table = lut.decode()
        step = 1 << 21  # a multiple of 8, so that every block starts at a byte
        for start in range(0, count, step):
            stop = min(count, start + step)
            part = unpack_bits(packed[start * bits // 8 : -(-stop * bits // 8)], bits, stop - start)
            torch.index_select(table, 0, torch.from_numpy(part).int(), out=out[start:stop])
        return out.reshape(shape)

    kind = TensorType(lut.type.dtype, shape)
    return [Constexpr(kind, [indices, lut], f"lut{bits}", compute, by_rows=False)]


def _lut_values(
    indices: Tensor, lut: Tensor, blocks: list[int], axis: int | None, rows: slice | Tensor | None
) -> Tensor:
    """Values of `indices` (rows `rows` of the full indices) from grouped palettes `lut`."""
    vector = lut.shape[-1]
    groups, palettes = lut.shape[:-2], lut.shape[-2]
    flat = lut.reshape(-1, vector)
    number = torch.arange(math.prod(groups), dtype=torch.int32).reshape(groups) * palettes
    position = indices.int() + _spread(number, blocks, rows)
    values = flat[position.reshape(-1)].reshape(*indices.shape, vector)
    if vector == 1:
        return values.squeeze(-1)
    assert axis is not None  # noqa: S101 - checked when built
    values = values.movedim(-1, axis + 1)
    return values.flatten(axis, axis + 1)


def _lut_axis(
    params: Params, indices: tuple[int, ...], lut: Weight, what: str
) -> tuple[int | None, list[int]]:
    _require(len(lut.shape) == len(indices) + 2, f"{what}: lut {lut.shape} for indices {indices}")
    palettes, vector = lut.shape[-2:]
    _require(palettes >= 2 and palettes & (palettes - 1) == 0, f"{what}: {palettes} palette entries")
    axis = None
    if vector > 1:
        _require("vector_axis" in params, f"{what}: vectors of {vector} need vector_axis")
        axis = int(params["vector_axis"].decode().item())
        _require(-len(indices) <= axis < len(indices), f"{what}: vector_axis {axis}")
        axis %= len(indices)
    return axis, _blocks(indices, lut.shape[:-2], what)


def _grown(shape: tuple[int, ...], axis: int | None, vector: int) -> tuple[int, ...]:
    return shape if axis is None else tuple(d * vector if i == axis else d for i, d in enumerate(shape))


def _lut(params: Params, outputs: list[TensorType]) -> list[Weight]:
    if "shape" in params:
        return _lut_packed(params, outputs)
    indices, lut = params["indices"], params["lut"]
    axis, blocks = _lut_axis(params, indices.shape, lut, "constexpr_lut_to_dense")
    _require(
        lut.shape[-2] == 1 << indices.type.dtype.bits,
        f"constexpr_lut_to_dense: {lut.shape[-2]} palette entries for {indices.type.dtype.name} indices",
    )

    def compute(rows: slice | Tensor | None) -> Tensor:
        return _lut_values(indices.decode(rows), lut.decode(), blocks, axis, rows)

    bits, vector = indices.type.dtype.bits, lut.shape[-1]
    label = f"lut{bits}" + (f" x{vector}" if vector > 1 else "")
    if math.prod(lut.shape[:-2]) > 1:
        label += " grouped"
    kind = TensorType(lut.type.dtype, _grown(indices.shape, axis, vector))
    return [Constexpr(kind, [indices, lut], label, compute, by_rows=axis != 0)]


def _scatter_mask(mask: Tensor, values: Tensor) -> Tensor:
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask] = values
    return dense


def _sparse(params: Params, _: list[TensorType]) -> list[Weight]:
    data, mask = params["nonzero_data"], params["mask"]
    if "shape" in params:
        shape = tuple(params["shape"].decode().reshape(-1).tolist())
        _require(
            mask.size == math.ceil(math.prod(shape) / 8),
            "constexpr_sparse_to_dense: mask doesn't fit the shape",
        )
    else:
        shape = mask.shape
    packed = "shape" in params

    def compute(_rows: slice | Tensor | None) -> Tensor:
        bits = mask.decode()
        if packed:
            unpacked = np.unpackbits(bits.numpy(), bitorder="little")[: math.prod(shape)]
            bits = torch.from_numpy(unpacked).reshape(shape)
        return _scatter_mask(bits != 0, _checked_nonzero(bits, data))

    kind = TensorType(data.type.dtype, shape)
    label = f"sparse {data.encoding}"
    return [Constexpr(kind, [data, mask], label, compute, by_rows=False)]


def _checked_nonzero(mask: Tensor, data: Weight) -> Tensor:
    values = data.decode()
    if int(torch.count_nonzero(mask)) != values.numel():
        raise PackageError(
            f"A sparse constant has {values.numel()} values for {int(mask.sum())} set mask bits."
        )
    return values


def _lut_sparse(params: Params, _: list[TensorType]) -> list[Weight]:
    mask, data, lut = params["indices_mask"], params["indices_nonzero_data"], params["lut"]
    axis, blocks = _lut_axis(params, mask.shape, lut, "constexpr_lut_to_sparse")
    vector = lut.shape[-1]

    def grown_mask() -> Tensor:
        bits = mask.decode()
        return bits if axis is None else bits.repeat_interleave(vector, axis)

    def values(_rows: slice | Tensor | None) -> Tensor:
        bits = mask.decode()
        dense = _scatter_mask(bits != 0, _checked_nonzero(bits, data))
        return _lut_values(dense, lut.decode(), blocks, axis, None)[grown_mask() != 0]

    mask_type = TensorType(mask.type.dtype, _grown(mask.shape, axis, vector))
    data_type = TensorType(lut.type.dtype, (data.size * vector,))
    return [
        Constexpr(mask_type, [mask], "mask", lambda _rows: grown_mask(), by_rows=False),
        Constexpr(data_type, [data, lut], f"lut{data.type.dtype.bits}", values, by_rows=False),
    ]


def _sparse_shift_scale(params: Params, _: list[TensorType]) -> list[Weight]:
    mask, data, scale = params["data_mask"], params["nonzero_data"], params["scale"]
    offset = params.get("offset")
    blocks = _blocks(mask.shape, scale.shape, "constexpr_sparse_blockwise_shift_scale")

    def values(_rows: slice | Tensor | None) -> Tensor:
        bits = mask.decode()
        dense = _scatter_mask(bits != 0, _checked_nonzero(bits, data))
        return _shift_scale_values(dense, scale, offset, blocks, None)[bits != 0]

    sources = [data, scale] + ([offset] if offset is not None else [])
    kind = TensorType(scale.type.dtype, (data.size,))
    return [mask, Constexpr(kind, sources, f"{data.type.dtype.name} scaled", values, by_rows=False)]


def _cast(params: Params, outputs: list[TensorType], cast_to: str | None) -> list[Weight]:
    source = params.get("source_val")
    if source is None or cast_to not in DTYPES:
        raise PackageError(f"constexpr_cast: needs source_val and a known output_dtype, not {cast_to!r}.")
    kind = TensorType(DTYPES[cast_to], source.type.shape)
    _require([kind] == outputs, f"constexpr_cast: gives {kind}, declared {outputs}")
    return [Constexpr(kind, [source], source.encoding, source.decode)]


_BUILDERS: dict[str, Callable[[Params, list[TensorType]], list[Weight]]] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_lut_to_dense": _lut,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_lut_to_sparse": _lut_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_cast": lambda params, outputs: _cast(params, outputs, None),
}
