"""Resizing of the last two axes.

Sampling modes are those that the documentation of `resize_bilinear` defines by the grid
`position(i)`; nearest-neighbour modes are described at each kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milrun.errors import ExecutionError
from milrun.ops.registry import bounded, op


def grid(mode: str, n_in: int, n_out: int) -> Tensor:
    """Source positions of `n_out` samples over `n_in` pixels, in FP32, clamped to the image."""
    i = torch.arange(n_out, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if n_out == 1:
            positions = i + ((n_in - 1) / 2 if mode == "ALIGN_CORNERS" else 0)
        else:
            positions = i * ((n_in - 1) / (n_out - 1))
    elif mode == "DEFAULT":
        positions = i * ((n_in - n_in / n_out) / (n_out - 1) if n_out > 1 else 0)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, n_in - 1) / n_out
        positions = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        positions = (i + 0.5) * (n_in / n_out) - 0.5
    else:
        raise ExecutionError(f"unknown sampling mode {mode!r}")
    return positions.clamp(0, n_in - 1).float()


def _linear_axis(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    low = positions.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = (positions - low).reshape(shape)
    a, b = x.index_select(axis, low), x.index_select(axis, high)
    return a + (b - a) * weight


def bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The last two axes, interpolated at positions of rows and columns; FP32."""
    bounded([*x.shape[:-2], len(rows), len(columns)])
    x = x.float()
    return _linear_axis(_linear_axis(x, x.ndim - 2, rows), x.ndim - 1, columns)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Bilinear interpolation to a size."""
    rows = grid(sampling_mode, x.shape[-2], target_size_height)
    return bilinear(x, rows, grid(sampling_mode, x.shape[-1], target_size_width))


def _upsample_grid(n_in: int, factor: float, *, corners: bool, half: bool) -> Tensor:
    n_out = math.floor(n_in * factor)
    if corners:
        return grid("STRICT_ALIGN_CORNERS", n_in, n_out)
    return grid("UNALIGN_CORNERS" if half else "DEFAULT", n_in, n_out)


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Bilinear interpolation by factors; the step is recomputed from the sizes."""
    half = (not align_corners) if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ExecutionError("align_corners and half_pixel_centers exclude each other")
    rows = _upsample_grid(x.shape[-2], scale_factor_height, corners=align_corners, half=half)
    return bilinear(
        x, rows, _upsample_grid(x.shape[-1], scale_factor_width, corners=align_corners, half=half)
    )


def _nearest(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return x.index_select(x.ndim - 2, rows.long()).index_select(x.ndim - 1, columns.long())


def _floor_grid(n_in: int, n_out: int) -> Tensor:
    """`floor(i * n_in / n_out)`, in integers."""
    bounded([n_out])
    return torch.div(torch.arange(n_out) * n_in, n_out, rounding_mode="floor").clamp(max=n_in - 1)


@op("upsample_nearest_neighbor", native=True)
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """Each output pixel takes the input pixel that its corner falls into."""
    h, w = math.floor(x.shape[-2] * scale_factor_height), math.floor(x.shape[-1] * scale_factor_width)
    return _nearest(x, _floor_grid(x.shape[-2], h), _floor_grid(x.shape[-1], w))


@op("resize_nearest_neighbor", native=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """As `upsample_nearest_neighbor`, to a size."""
    rows = _floor_grid(x.shape[-2], target_size_height)
    return _nearest(x, rows, _floor_grid(x.shape[-1], target_size_width))


@op("resize", since=17)
def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last `resized_dims` axes to the last entries of `shape`; 0 keeps an axis.

    Nearest neighbour rounds the sampling mode's position, half up: what coremltools' tests expect.
    """
    for i in range(resized_dims):
        axis = x.ndim - resized_dims + i
        target = shape[len(shape) - resized_dims + i] or x.shape[axis]
        bounded([*x.shape[:axis], target, *x.shape[axis + 1 :]])
        positions = grid(sampling_mode, x.shape[axis], target)
        if interpolation_mode == "LINEAR":
            x = _linear_axis(x.float(), axis, positions)
        elif interpolation_mode == "NEAREST_NEIGHBOR":
            x = x.index_select(axis, (positions + 0.5).floor().long().clamp(max=x.shape[axis] - 1))
        else:
            raise ExecutionError(f"unknown interpolation mode {interpolation_mode!r}")
    return x
