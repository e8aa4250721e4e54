"""Resampling of the last two axes at given places: boxes, coordinates, affine warps."""

from __future__ import annotations

import torch
from torch import Tensor

from milrun.errors import ExecutionError
from milrun.ops.registry import Context, bounded, op
from milrun.ops.resize import bilinear


@op("crop", native=True)
def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    """Drop rows and columns at the edges."""
    h, w = x.shape[-2], x.shape[-1]
    return x[..., crop_height[0] : h - crop_height[1], crop_width[0] : w - crop_width[1]]


def _box_axis(mode: str, start: float, end: float, n_out: int) -> Tensor:
    """Positions of `n_out` samples of a box from `start` to `end`, by the modes of `resize_bilinear`."""
    i = torch.arange(n_out, dtype=torch.float64)
    length = end - start
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if n_out == 1:
            return i + (start if mode == "STRICT_ALIGN_CORNERS" else (start + end) / 2)
        return start + i * (length / (n_out - 1))
    size = length + 1
    if mode == "DEFAULT":
        return start + i * ((size - size / n_out) / (n_out - 1) if n_out > 1 else 0)
    if mode == "OFFSET_CORNERS":
        delta = length / n_out
        return start + 0.5 * delta + i * delta
    if mode == "UNALIGN_CORNERS":
        return start + (i + 0.5) * (size / n_out) - 0.5
    raise ExecutionError(f"unknown sampling mode {mode!r}")


def _crop_one(
    image: Tensor, box: list[float], size: tuple[int, int], coordinates: str, sampling: str, normalized: bool,
    spatial_scale: float, pad_value: float,
) -> Tensor:  # fmt: skip
    """One box of one image (C, H, W), resized; samples outside the image are `pad_value`."""
    if coordinates.endswith("WIDTH_FIRST"):
        box = [box[1], box[0], box[3], box[2]]
    h, w = image.shape[-2:]
    box = [v * spatial_scale for v in box]
    if normalized:
        box = [box[0] * (h - 1), box[1] * (w - 1), box[2] * (h - 1), box[3] * (w - 1)]
    if coordinates.startswith("CENTER_SIZE"):
        box = [box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2]
    rows = _box_axis(sampling, box[0], box[2], size[0])
    columns = _box_axis(sampling, box[1], box[3], size[1])
    result = bilinear(image, rows.clamp(0, h - 1).float(), columns.clamp(0, w - 1).float())
    inside = ((rows >= 0) & (rows <= h - 1))[:, None] & ((columns >= 0) & (columns <= w - 1))[None, :]
    return torch.where(inside, result, torch.tensor(pad_value, dtype=result.dtype))


def _has_area(box: list[float], coordinates: str) -> bool:
    """Whether a normalised box, in either direction, covers any of the unit square."""
    a, b, c, d = box
    if coordinates.startswith("CENTER_SIZE"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    clipped = [min(max(v, 0.0), 1.0) for v in (a, b, c, d)]
    return clipped == [a, b, c, d] or (clipped[0] != clipped[2] and clipped[1] != clipped[3])


@op("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor,
    ctx: Context,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes (N, 1, 4, 1, 1) of every image, or (N, 1, 5, 1, 1) each of the image it names first.

    Normalised boxes must lie in the unit square. One that has no area in it is taken as the whole
    image before iOS 16 (from then on there is padding): undefined, and what Core ML gives in
    coremltools' test of such a box.
    """
    settings = (box_coordinate_mode, sampling_mode, normalized_coordinates, spatial_scale, pad_value)
    results = []
    for entry in roi.float().reshape(roi.shape[0], -1).tolist():
        images = [x[int(entry[0])]] if len(entry) == 5 else list(x)
        box = entry[-4:]
        if normalized_coordinates and ctx.opset < 16 and not _has_area(box, box_coordinate_mode):
            box = [0.0, 0.0, 1.0, 1.0] if box_coordinate_mode.startswith("CORNERS") else [0.5, 0.5, 1.0, 1.0]
        results.append(
            torch.stack([_crop_one(i, box, (target_height, target_width), *settings) for i in images])
        )
    return torch.stack(results)


@op("crop_resize", since=17)
def crop_resize_17(
    x: Tensor,
    boxes: Tensor,
    box_indices: list[int] | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes (N, 4), each of the image that `box_indices` names (default: the one of its number)."""
    indices = box_indices if box_indices is not None else list(range(boxes.shape[0]))
    settings = (box_coordinate_mode, sampling_mode, normalized_coordinates, spatial_scale, pad_value)
    size = (target_height, target_width)
    rows = boxes.float().tolist()
    return torch.stack([_crop_one(x[i], box, size, *settings) for i, box in zip(indices, rows, strict=True)])


def _reflect(position: Tensor, low: float, high: float) -> Tensor:
    """Fold positions into [low, high] by reflection at both ends."""
    if high <= low:
        return torch.full_like(position, low)
    span = 2 * (high - low)
    folded = (position - low).remainder(span)
    return low + torch.minimum(folded, span - folded)


def _sample(image: Tensor, xs: Tensor, ys: Tensor, *, nearest: bool, padding: str, value: float) -> Tensor:
    """Values of (C, H, W) at pixel positions (h, w)."""
    h, w = image.shape[-2:]
    if padding == "border":
        xs, ys = xs.clamp(0, w - 1), ys.clamp(0, h - 1)
    elif padding == "reflection":
        xs, ys = _reflect(xs, 0, w - 1), _reflect(ys, 0, h - 1)
    elif padding == "symmetric":
        xs, ys = _reflect(xs, -0.5, w - 0.5).clamp(0, w - 1), _reflect(ys, -0.5, h - 0.5).clamp(0, h - 1)
    elif padding != "constant":
        raise ExecutionError(f"unknown padding mode {padding!r}")

    def pixel(column: Tensor, row: Tensor) -> Tensor:
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        found = image[:, row.clamp(0, h - 1).long(), column.clamp(0, w - 1).long()]
        return torch.where(inside, found, torch.tensor(value, dtype=image.dtype))

    if nearest:
        return pixel(xs.round(), ys.round())
    x0, y0 = xs.floor(), ys.floor()
    fx, fy = xs - x0, ys - y0
    top = pixel(x0, y0) * (1 - fx) + pixel(x0 + 1, y0) * fx
    bottom = pixel(x0, y0 + 1) * (1 - fx) + pixel(x0 + 1, y0 + 1) * fx
    return top * (1 - fy) + bottom * fy


def _pixels(position: Tensor, size: int, mode: str, *, corners: bool) -> Tensor:
    """Pixel positions of coordinates in a mode's units."""
    if mode == "unnormalized":
        return position
    unit = (position + 1) / 2 if mode == "normalized_minus_one_to_one" else position
    return unit * (size - 1) if corners else unit * size - 0.5


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """`x` (B, C, H, W) sampled at coordinates (B, H2, W2, 2), given as (x, y)."""
    points = coordinates.float()
    h, w = x.shape[-2:]
    results = []
    for image, where in zip(x, points, strict=True):
        xs = _pixels(where[..., 0], w, coordinates_mode, corners=align_corners)
        ys = _pixels(where[..., 1], h, coordinates_mode, corners=align_corners)
        nearest = sampling_mode == "nearest"
        results.append(_sample(image, xs, ys, nearest=nearest, padding=padding_mode, value=padding_value))
    return torch.stack(results)


@op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
    ctx: Context,
) -> Tensor:
    """`x` sampled at `(a0 x + a1 y + a2, b0 x + b1 y + b2)` of normalised output coordinates."""
    bounded([*x.shape[:2], output_height, output_width])

    def axis(n: int) -> Tensor:
        i = torch.arange(n, dtype=torch.float32)
        if align_corners:
            return i * (2 / (n - 1)) - 1 if n > 1 else torch.zeros(1)
        return (2 * i + 1) / n - 1

    ys, xs = torch.meshgrid(axis(output_height), axis(output_width), indexing="ij")
    matrix = transform_matrix.expand(x.shape[0], 6)
    points = torch.stack(
        [torch.stack([m[0] * xs + m[1] * ys + m[2], m[3] * xs + m[4] * ys + m[5]], -1) for m in matrix]
    )
    return resample(x, points, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)
