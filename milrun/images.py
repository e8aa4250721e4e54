"""Image inputs and outputs: PIL images to planar tensors and back. Pillow is imported only here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from milrun.errors import InputError

if TYPE_CHECKING:
    from milrun.features import Feature

# FeatureTypes.proto, ImageFeatureType.ColorSpace
GRAYSCALE, RGB, BGR, GRAYSCALE_FLOAT16 = 10, 20, 30, 40


def image_to_tensor(image: Any, feature: Feature) -> Tensor:
    """(1, channels, height, width) FP32 values of an image, channels in the declared order.

    Raises
    ------
    InputError
        If it is not an image.
    """
    if not hasattr(image, "convert"):
        raise InputError(
            f"Input {feature.name!r} must be a PIL image or an array, not {type(image).__name__}."
        )
    if feature.color in (GRAYSCALE, GRAYSCALE_FLOAT16):
        mode = "F" if feature.color == GRAYSCALE_FLOAT16 else "L"
        return torch.from_numpy(np.array(image.convert(mode), dtype=np.float32))[None, None]
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    if feature.color == BGR:
        pixels = pixels[..., ::-1].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def tensor_to_image(value: np.ndarray, feature: Feature) -> Any:
    """The PIL image of a (1, channels, height, width) result: rounded and clamped to 0..255."""
    from PIL import Image  # noqa: PLC0415 - only models with image outputs need Pillow

    planes = value[0].astype(np.float32)
    if feature.color == GRAYSCALE_FLOAT16:
        return Image.fromarray(planes[0], mode="F")
    pixels = np.clip(np.rint(np.nan_to_num(planes)), 0, 255).astype(np.uint8)
    if feature.color == GRAYSCALE:
        return Image.fromarray(pixels[0], mode="L")
    ordered = pixels[::-1] if feature.color == BGR else pixels
    rgb = np.ascontiguousarray(ordered.transpose(1, 2, 0))
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    return Image.fromarray(np.concatenate([rgb, alpha], 2), mode="RGBA")
