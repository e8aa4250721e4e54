"""Compressed constants: the `constexpr_*` operations as weights that decode on demand.

Formulas are those of the operations' documentation in coremltools 9.0 (`ops/defs/iOS16/constexpr_ops`,
`iOS18/compression`). Arithmetic is done in FP32 and rounded once to the declared type, a block of
rows at a time, so that the transient memory is small beside the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milrun.constexpr import palettes, scaled, sparse
from milrun.constexpr.base import Constexpr, Params, require, row_blocks
from milrun.errors import PackageError
from milrun.types import DTYPES, TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

    from milrun.weights import Weight

__all__ = ["BUILDERS", "Constexpr", "build", "row_blocks"]


def build(kind: str, params: Params, outputs: list[TensorType], cast_to: str | None = None) -> list[Weight]:
    """The weights that a `constexpr_*` operation defines.

    Raises
    ------
    PackageError
        If parameters are missing or contradict one another.
    """
    if kind not in BUILDERS:
        raise PackageError(f"{kind} is not a known constexpr operation; known are {sorted(BUILDERS)}.")
    if kind == "constexpr_cast":
        return _cast(params, outputs, cast_to)
    try:
        weights = BUILDERS[kind](params, outputs)
    except KeyError as error:
        raise PackageError(f"{kind}: parameter {error} is missing.") from None
    for weight, declared in zip(weights, outputs, strict=True):
        if weight.type != declared:
            raise PackageError(f"{kind}: its parameters give {weight.type}, its declared type is {declared}.")
    return weights


def _cast(params: Params, outputs: list[TensorType], cast_to: str | None) -> list[Weight]:
    source = params.get("source_val")
    if source is None or cast_to not in DTYPES:
        raise PackageError(f"constexpr_cast: needs source_val and a known output_dtype, not {cast_to!r}.")
    kind = TensorType(DTYPES[cast_to], source.type.shape)
    require([kind] == outputs, f"constexpr_cast: gives {kind}, declared {outputs}")
    return [Constexpr(kind, [source], source.encoding, source.decode)]


BUILDERS: dict[str, Callable[[Params, list[TensorType]], list[Weight]]] = {
    "constexpr_affine_dequantize": scaled.affine,
    "constexpr_blockwise_shift_scale": scaled.blockwise,
    "constexpr_lut_to_dense": palettes.lut_to_dense,
    "constexpr_sparse_to_dense": sparse.sparse_to_dense,
    "constexpr_lut_to_sparse": palettes.lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": scaled.sparse_shift_scale,
    "constexpr_cast": lambda params, outputs: _cast(params, outputs, None),
}
