"""A model's inputs and outputs as its description declares them, and the check of what a caller gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milrun.errors import InputError
from milrun.images import image_to_tensor
from milrun.types import TensorType, ValueType
from milrun.weights import as_tensor

_ARRAY_TYPES = {65568: "fp32", 65600: "fp64", 65552: "fp16", 131104: "int32", 131080: "int8"}
_MAX_BYTES = 16 << 30


@dataclass(frozen=True)
class Feature:
    """One declared input, output or state.

    `shape` is the default; `shapes` lists the enumerated ones, `ranges` the allowed (low, high) of
    each dimension (high -1: unbounded); of an image they are (height, width). `default` fills an absent
    optional input.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    optional: bool = False
    default: float | None = None
    color: int = 0

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape is accepted."""
        if self.shapes:
            return shape in self.shapes or shape == self.shape
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= d and (d <= high or high < 0)
                for d, (low, high) in zip(shape, self.ranges, strict=True)
            )
        return not self.shape or shape == self.shape

    @property
    def expected(self) -> str:
        """The accepted shapes, for a message."""
        if self.shapes:
            return "one of " + ", ".join(str(s) for s in sorted({*self.shapes, self.shape}))
        if self.ranges:
            return (
                "("
                + ", ".join(f"{a}" if a == b else f"{a}..{b if b >= 0 else ''}" for a, b in self.ranges)
                + ")"
            )
        return str(self.shape)


def read_feature(message: Any) -> Feature:
    """Read a `FeatureDescription` message."""
    kind = message.type.WhichOneof("Type") or "unknown"
    optional = bool(message.type.isOptional)
    if kind == "multiArrayType":
        array = message.type.multiArrayType
        default = array.WhichOneof("defaultOptionalValue")
        return Feature(
            message.name, "array", _ARRAY_TYPES.get(array.dataType, "fp32"), tuple(array.shape),
            tuple(tuple(s.shape) for s in array.enumeratedShapes.shapes),
            tuple((r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges),
            optional, None if default is None else float(getattr(array, default)),
        )  # fmt: skip
    if kind == "imageType":
        image = message.type.imageType
        ranges: tuple[tuple[int, int], ...] = ()
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            sides = image.imageSizeRange.heightRange, image.imageSizeRange.widthRange
            ranges = tuple((side.lowerBound, side.upperBound) for side in sides)
        sizes = tuple((s.height, s.width) for s in image.enumeratedSizes.sizes)
        return Feature(
            message.name, "image", None, (image.height, image.width), sizes, ranges, optional,
            color=image.colorSpace,
        )  # fmt: skip
    if kind == "stateType":
        array = message.type.stateType.arrayType
        return Feature(message.name, "state", _ARRAY_TYPES.get(array.dataType, "fp16"), tuple(array.shape))
    return Feature(message.name, kind.removesuffix("Type"), optional=optional)


def check_names(given: Any, features: dict[str, Feature]) -> None:
    """Refuse inputs that the model doesn't have, and the absence of those it needs.

    Raises
    ------
    InputError
        Naming what is wrong and what the model declares.
    """
    if not isinstance(given, dict):
        raise InputError(f"Inputs must be a dictionary of arrays by name, not {type(given).__name__}.")
    unknown = sorted(set(given) - set(features))
    if unknown:
        raise InputError(f"The model has no input named {unknown}; its inputs are {sorted(features)}.")
    missing = [n for n, f in features.items() if n not in given and not f.optional]
    if missing:
        raise InputError(
            f"Input {missing} is required and was not given; the model's inputs are {sorted(features)}."
        )


def input_tensor(value: Any, feature: Feature, kind: ValueType, *, fp32: bool) -> Tensor:
    """The tensor for one input, in the type that the program declares.

    Raises
    ------
    InputError
        If it is no numeric array, or of a shape that the model doesn't accept.
    """
    if not isinstance(kind, TensorType):
        raise InputError(f"Input {feature.name!r} is a {kind}; pass it as the state.")
    if feature.kind == "image" and not isinstance(value, np.ndarray):
        tensor = image_to_tensor(value, feature)
        size = tuple(tensor.shape[2:])
        if not feature.allows(size):
            raise InputError(
                f"Input {feature.name!r} is an image of (height, width) {size}; the model expects "
                f"{feature.expected}."
            )
    else:
        tensor = _array_tensor(value, feature, kind)
    carrier = torch.float32 if fp32 and kind.dtype.name == "fp16" else kind.dtype.carrier
    if kind.dtype.kind == "int" and tensor.is_floating_point():
        low, high = kind.dtype.range
        tensor = torch.nan_to_num(tensor.double(), 0.0).clamp(low, high).to(torch.int64)
    return tensor.to(carrier)


def _array_tensor(value: Any, feature: Feature, kind: TensorType) -> Tensor:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"Input {feature.name!r} is not an array ({error}).") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"Input {feature.name!r} must be numeric ({feature.dtype}), not {array.dtype}.")
    shape = tuple(array.shape)
    if kind.shape == () and not kind.variadic and array.size == 1 and len(shape) <= 1:
        return as_tensor(np.ascontiguousarray(array)).reshape(())
    if not feature.allows(shape) or not kind.accepts(shape):
        expected = feature.expected if feature.shape or feature.ranges or feature.shapes else str(kind)
        raise InputError(f"Input {feature.name!r} has shape {shape}; the model expects {expected}.")
    return as_tensor(np.ascontiguousarray(array).reshape(shape))


def default_tensor(feature: Feature, kind: ValueType) -> Any:
    """The array for an optional input that was not given: its default value, or zeros."""
    if not isinstance(kind, TensorType):
        raise InputError(f"Input {feature.name!r} can't be left out.")
    shape = feature.shape or tuple(d or 1 for d in kind.shape)
    if np.prod(shape, dtype=np.float64) * 8 > _MAX_BYTES:
        raise InputError(f"Input {feature.name!r} would be filled with an array of shape {shape}: too large.")
    return np.full(shape, feature.default or 0.0)
