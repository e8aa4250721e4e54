"""One row an operation: what the MIL documentation says it computes, against numpy, scipy and torch.

All rows are outputs of one program, so that the table costs one conversion. Inputs are not constants:
coremltools would fold the operations away and milrun never see them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import scipy.special
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from torch.nn import functional

import milrun

RNG = np.random.default_rng(3)
X = np.linspace(-2.9, 3.1, 24, dtype=np.float32).reshape(2, 3, 4)
P = np.linspace(0.1, 0.9, 24, dtype=np.float32).reshape(2, 3, 4)
IMAGE = RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)
N = np.array([[3, -1, 2], [0, -4, 5]], np.int32)
INPUTS = {"x": X, "p": P, "i": IMAGE, "n": N}
T = {name: torch.from_numpy(value) for name, value in INPUTS.items()}
Y = X[::-1].copy()
ALPHA = np.array([0.1, 0.2, 0.3], np.float32)
SPREAD = ALPHA[:, None]
FOUR = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
K = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
POINTS = np.array([[1, 2], [0, 0]], np.int32)

Row = tuple[Callable[[Any], Any], Any]  # a builder from the inputs (v.x, v.p, v.i, v.n), and what it computes


def f32(value: float) -> Any:
    return np.float32(value)


def as_bool(x: Any) -> Any:
    return mb.greater(x=x, y=f32(0))


def softplus(value: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, value)


# fmt: off
POINTWISE: dict[str, Row] = {
    "acos": (lambda v: mb.acos(x=v.p), np.arccos(P)),
    "asin": (lambda v: mb.asin(x=v.p), np.arcsin(P)),
    "atan": (lambda v: mb.atan(x=v.x), np.arctan(X)),
    "atanh": (lambda v: mb.atanh(x=v.p), np.arctanh(P)),
    "ceil": (lambda v: mb.ceil(x=v.x), np.ceil(X)),
    "cos": (lambda v: mb.cos(x=v.x), np.cos(X)),
    "cosh": (lambda v: mb.cosh(x=v.x), np.cosh(X)),
    "exp2": (lambda v: mb.exp2(x=v.x), np.exp2(X)),
    "floor": (lambda v: mb.floor(x=v.x), np.floor(X)),
    "inverse adds epsilon": (lambda v: mb.inverse(x=v.p, epsilon=f32(0.5)), 1 / (P + 0.5)),
    "sign": (lambda v: mb.sign(x=v.x), np.sign(X)),
    "sin": (lambda v: mb.sin(x=v.x), np.sin(X)),
    "sinh": (lambda v: mb.sinh(x=v.x), np.sinh(X)),
    "sqrt": (lambda v: mb.sqrt(x=v.p), np.sqrt(P)),
    "tan": (lambda v: mb.tan(x=v.p), np.tan(P)),
    "threshold": (lambda v: mb.threshold(x=v.x, alpha=f32(0.5)), np.maximum(X, 0.5)),
    "clamped_relu": (
        lambda v: mb.clamped_relu(x=v.x, alpha=f32(0.1), beta=f32(2)),
        np.minimum(np.where(X >= 0, X, 0.1 * X), 2),
    ),
    "elu": (lambda v: mb.elu(x=v.x, alpha=f32(0.7)), np.where(X > 0, X, 0.7 * np.expm1(X))),
    "leaky_relu": (lambda v: mb.leaky_relu(x=v.x, alpha=f32(0.2)), np.where(X > 0, X, 0.2 * X)),
    "linear_activation": (lambda v: mb.linear_activation(x=v.x, alpha=f32(2), beta=f32(3)), 2 * X + 3),
    "prelu": (lambda v: mb.prelu(x=v.i, alpha=FOUR), np.where(IMAGE > 0, IMAGE, FOUR[:, None, None] * IMAGE)),
    "relu6": (lambda v: mb.relu6(x=mb.mul(x=v.x, y=f32(3))), np.clip(3 * X, 0, 6)),
    "scaled_tanh": (lambda v: mb.scaled_tanh(x=v.x, alpha=f32(2), beta=f32(0.5)), 2 * np.tanh(0.5 * X)),
    "sigmoid_hard": (
        lambda v: mb.sigmoid_hard(x=v.x, alpha=f32(0.3), beta=f32(0.4)),
        np.clip(0.3 * X + 0.4, 0, 1),
    ),
    "silu": (lambda v: mb.silu(x=v.x), X * scipy.special.expit(X)),
    "softplus": (lambda v: mb.softplus(x=v.x), softplus(X)),
    "softplus_parametric": (
        lambda v: mb.softplus_parametric(x=v.i, alpha=FOUR, beta=2 * FOUR),
        FOUR[:, None, None] * softplus(2 * FOUR[:, None, None] * IMAGE),
    ),
    "softsign": (lambda v: mb.softsign(x=v.x), X / (1 + np.abs(X))),
    "thresholded_relu": (lambda v: mb.thresholded_relu(x=v.x, alpha=f32(1)), np.where(X >= 1, X, 0)),
    "maximum": (lambda v: mb.maximum(x=v.x, y=v.p), np.maximum(X, P)),
    "minimum": (lambda v: mb.minimum(x=v.x, y=v.p), np.minimum(X, P)),
    "equal": (lambda v: mb.equal(x=v.n, y=np.int32(2)), N == 2),
    "not_equal": (lambda v: mb.not_equal(x=v.n, y=np.int32(2)), N != 2),
    "greater_equal": (lambda v: mb.greater_equal(x=v.n, y=np.int32(2)), N >= 2),
    "less_equal": (lambda v: mb.less_equal(x=v.n, y=np.int32(2)), N <= 2),
    "logical_and": (lambda v: mb.logical_and(x=as_bool(v.x), y=mb.less(x=v.x, y=f32(1))), (X > 0) & (X < 1)),
    "logical_or": (lambda v: mb.logical_or(x=as_bool(v.x), y=mb.less(x=v.x, y=f32(-1))), (X > 0) | (X < -1)),
    "logical_xor": (lambda v: mb.logical_xor(x=as_bool(v.x), y=mb.less(x=v.x, y=f32(1))), (X > 0) ^ (X < 1)),
    "logical_not": (lambda v: mb.logical_not(x=as_bool(v.x)), X <= 0),
    "select": (lambda v: mb.select(cond=as_bool(v.x), a=v.x, b=v.p), np.where(X > 0, X, P)),
    "cast to an integer is toward zero": (lambda v: mb.cast(x=v.x, dtype="int32"), np.trunc(X)),
    "integer division is toward zero": (
        lambda v: mb.real_div(x=v.n, y=np.int32(-2)), np.trunc(N / -2),
    ),
    "integer floor_div": (lambda v: mb.floor_div(x=v.n, y=np.int32(-2)), N // -2),
    "integer mod": (lambda v: mb.mod(x=v.n, y=np.int32(-3)), N % -3),
}
REDUCTIONS: dict[str, Row] = {
    "reduce_argmax": (lambda v: mb.reduce_argmax(x=v.i, axis=2), IMAGE.argmax(2)),
    "reduce_argmin": (lambda v: mb.reduce_argmin(x=v.i, axis=-1, keep_dims=True), IMAGE.argmin(-1)[..., None]),
    "reduce_l1_norm": (lambda v: mb.reduce_l1_norm(x=v.x, axes=[0, 2]), np.abs(X).sum((0, 2))),
    "reduce_log_sum": (lambda v: mb.reduce_log_sum(x=v.p, axes=[1]), np.log(P.sum(1))),
    "reduce_min": (lambda v: mb.reduce_min(x=v.x, axes=[-1], keep_dims=True), X.min(-1, keepdims=True)),
    "reduce_prod": (lambda v: mb.reduce_prod(x=v.p, axes=[2]), P.prod(2)),
    "max_pool": (
        lambda v: mb.max_pool(x=v.i, kernel_sizes=[2, 3], strides=[2, 1], pad_type="valid"),
        functional.max_pool2d(T["i"], (2, 3), (2, 1)),
    ),
    "l2_pool": (
        lambda v: mb.l2_pool(x=v.i, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        np.sqrt((IMAGE.reshape(1, 4, 3, 2, 3, 2) ** 2).sum((3, 5))),
    ),
    "batch_norm": (
        lambda v: mb.batch_norm(x=v.x, mean=ALPHA, variance=2 * ALPHA, gamma=3 * ALPHA, beta=-ALPHA, epsilon=f32(1e-3)),
        (X - SPREAD) / np.sqrt(2 * SPREAD + 1e-3) * 3 * SPREAD - SPREAD,
    ),
    "instance_norm": (
        lambda v: mb.instance_norm(x=v.x, gamma=ALPHA, beta=-ALPHA, epsilon=f32(1e-3)),
        functional.instance_norm(T["x"], weight=torch.from_numpy(ALPHA), bias=torch.from_numpy(-ALPHA), eps=1e-3),
    ),
    "local_response_norm": (
        lambda v: mb.local_response_norm(x=v.i, size=3, alpha=f32(0.5), beta=f32(0.7), k=f32(1.5)),
        functional.local_response_norm(T["i"], 3, 0.5, 0.7, 1.5),
    ),
}
SHAPES: dict[str, Row] = {
    "batch_to_space": (
        lambda v: mb.batch_to_space(x=mb.transpose(x=v.i, perm=[1, 0, 2, 3]), block_shape=[2, 2], crops=[[1, 0], [0, 2]]),
        IMAGE.transpose(1, 0, 2, 3).reshape(2, 2, 1, 1, 6, 6).transpose(2, 3, 4, 0, 5, 1).reshape(1, 1, 12, 12)[:, :, 1:, :-2],
    ),
    "space_to_batch": (
        lambda v: mb.space_to_batch(x=v.i, block_shape=[2, 3], paddings=[[0, 0], [0, 0]]),
        IMAGE.reshape(1, 4, 3, 2, 2, 3).transpose(3, 5, 0, 1, 2, 4).reshape(6, 4, 3, 2),
    ),
    "depth_to_space": (
        lambda v: mb.depth_to_space(x=v.i, block_size=2),
        IMAGE.reshape(1, 2, 2, 1, 6, 6).transpose(0, 3, 4, 1, 5, 2).reshape(1, 1, 12, 12),
    ),
    "space_to_depth": (
        lambda v: mb.space_to_depth(x=v.i, block_size=2),
        IMAGE.reshape(1, 4, 3, 2, 3, 2).transpose(0, 3, 5, 1, 2, 4).reshape(1, 16, 3, 3),
    ),
    "pixel_shuffle": (lambda v: mb.pixel_shuffle(x=v.i, upscale_factor=2), functional.pixel_shuffle(T["i"], 2)),
    "pixel_unshuffle": (
        lambda v: mb.pixel_unshuffle(x=v.i, downscale_factor=np.uint32(3)), functional.pixel_unshuffle(T["i"], 3),
    ),
    "crop": (lambda v: mb.crop(x=v.i, crop_height=[1, 2], crop_width=[0, 3]), IMAGE[:, :, 1:-2, :-3]),
    "flatten2d": (lambda v: mb.flatten2d(x=v.x, axis=2), X.reshape(6, 4)),
    "reshape_like": (
        lambda v: mb.reshape_like(
            x=mb.transpose(x=v.x, perm=[2, 0, 1]), ref_tensors=[v.n, v.i], begins=[0, 1], ends=[2, 2], end_masks=[False, False]
        ),
        X.transpose(2, 0, 1).reshape(2, 3, 4),
    ),
    "reverse": (lambda v: mb.reverse(x=v.x, axes=[0, 2]), X[::-1, :, ::-1]),
    "reverse_sequence": (
        lambda v: mb.reverse_sequence(x=v.x, lengths=np.array([2, 3], np.int32), seq_axis=1, batch_axis=0),
        np.stack([X[0][[1, 0, 2]], X[1][[2, 1, 0]]]),
    ),
    "slice_by_size": (lambda v: mb.slice_by_size(x=v.x, begin=[0, 1, 1], size=[2, -1, 2]), X[:, 1:, 1:3]),
    "split": (lambda v: mb.split(x=v.x, split_sizes=[1, 3], axis=2)[1], X[:, :, 1:]),
    "squeeze": (lambda v: mb.squeeze(x=v.i, axes=[0]), IMAGE[0]),
    "stack": (lambda v: mb.stack(values=[v.x, v.p], axis=1), np.stack([X, P], 1)),
    "shape": (lambda v: mb.shape(x=mb.relu(x=v.i)), np.array(IMAGE.shape)),
    "fill": (lambda v: mb.fill(shape=mb.shape(x=v.n), value=f32(7)), np.full((2, 3), 7)),
    "range_1d": (
        lambda v: mb.range_1d(start=np.int32(1), end=mb.reduce_max(x=v.n, axes=[0, 1], keep_dims=False), step=np.int32(2)),
        np.array([1, 3]),
    ),
    "one_hot": (
        lambda v: mb.one_hot(indices=mb.maximum(x=v.n, y=np.int32(0)), one_hot_vector_size=6, on_value=f32(2), off_value=f32(-1)),
        np.eye(6)[np.maximum(N, 0)] * 3 - 1,
    ),
    "einsum": (
        lambda v: mb.einsum(values=(v.x, mb.transpose(x=v.p, perm=[2, 1, 0])), equation="chw,whr->chr"),
        np.einsum("chw,rhw->chr", X, P),
    ),
}
INDEXING: dict[str, Row] = {
    "gather_along_axis": (
        lambda v: mb.gather_along_axis(x=v.n, indices=np.array([[2, 0], [1, 1]], np.int32), axis=1),
        np.take_along_axis(N, np.array([[2, 0], [1, 1]]), 1),
    ),
    "gather_nd": (lambda v: mb.gather_nd(x=v.x, indices=POINTS), X[[1, 0], [2, 0]]),
    "scatter": (
        lambda v: mb.scatter(data=v.x, indices=np.array([2, 0], np.int32), updates=mb.slice_by_size(x=v.p, begin=[0, 0, 0], size=[2, 2, 4]), axis=1, mode="add"),
        np.stack([X[:, 0] + P[:, 1], X[:, 1], X[:, 2] + P[:, 0]], 1),
    ),
    "scatter_nd": (
        lambda v: mb.scatter_nd(data=v.x, indices=POINTS, updates=mb.slice_by_index(x=v.p, begin=[0, 0, 0], end=[0, 2, 4], squeeze_mask=[True, False, False], end_mask=[True, False, False]), mode="update"),
        np.where(np.zeros_like(X, bool), X, [[P[0, 1], X[0, 1], X[0, 2]], [X[1, 0], X[1, 1], P[0, 0]]]),
    ),
    "scatter_along_axis": (
        lambda v: mb.scatter_along_axis(data=v.n, indices=np.array([[2], [0]], np.int32), updates=np.array([[9], [8]], np.int32), axis=1, mode="update"),
        np.array([[3, -1, 9], [8, -4, 5]]),
    ),
    "slice_update": (
        lambda v: mb.slice_update(x=v.x, update=mb.slice_by_size(x=v.p, begin=[0, 0, 0], size=[2, 3, 2]), begin=[0, 0, 1], end=[2, 3, 3]),
        np.concatenate([X[..., :1], P[..., :2], X[..., 3:]], -1),
    ),
    "topk": (lambda v: mb.topk(x=v.i, k=2, axis=3, ascending=True)[1], np.argsort(IMAGE, 3)[..., :2]),
    "non_zero": (lambda v: mb.non_zero(x=v.n), np.argwhere(N)),
}
IMAGES: dict[str, Row] = {
    "upsample_nearest_neighbor": (
        lambda v: mb.upsample_nearest_neighbor(x=v.i, scale_factor_height=np.int32(2), scale_factor_width=np.int32(3)),
        IMAGE.repeat(2, 2).repeat(3, 3),
    ),
    "upsample_bilinear": (
        lambda v: mb.upsample_bilinear(x=v.i, scale_factor_height=f32(2), scale_factor_width=f32(2), align_corners=False),
        functional.interpolate(T["i"], scale_factor=2, mode="bilinear", align_corners=False),
    ),
    "upsample_bilinear of the corners": (
        lambda v: mb.upsample_bilinear(x=v.i, scale_factor_height=f32(2), scale_factor_width=f32(2), align_corners=True),
        functional.interpolate(T["i"], scale_factor=2, mode="bilinear", align_corners=True),
    ),
    "resize_bilinear": (
        lambda v: mb.resize_bilinear(x=v.i, target_size_height=9, target_size_width=3, sampling_mode="UNALIGN_CORNERS"),
        functional.interpolate(T["i"], (9, 3), mode="bilinear", align_corners=False),
    ),
    "resize_nearest_neighbor": (
        lambda v: mb.resize_nearest_neighbor(x=v.i, target_size_height=12, target_size_width=3), IMAGE[:, :, np.arange(12) // 2][..., ::2],
    ),
    "resample": (
        lambda v: mb.resample(x=v.i, coordinates=np.array([[[[-0.5, 0.25], [1.0, -1.0]]]], np.float32), sampling_mode="bilinear",
                                       padding_mode="constant", padding_value=f32(0), coordinates_mode="normalized_minus_one_to_one", align_corners=True),
        functional.grid_sample(T["i"], torch.tensor([[[[-0.5, 0.25], [1.0, -1.0]]]]), align_corners=True),
    ),
    "affine": (
        lambda v: mb.affine(x=v.i, transform_matrix=np.array([[1, 0, 0.1, 0, 1, -0.2]], np.float32), output_height=6, output_width=6,
                                     sampling_mode="bilinear", padding_mode="constant", padding_value=f32(0), coordinates_mode="normalized_minus_one_to_one", align_corners=True),
        functional.grid_sample(T["i"], functional.affine_grid(torch.tensor([[[1, 0, 0.1], [0, 1, -0.2]]]), [1, 4, 6, 6], align_corners=True), align_corners=True),
    ),
    "conv_transpose": (
        lambda v: mb.conv_transpose(x=v.i, weight=K, strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        functional.conv_transpose2d(T["i"], torch.from_numpy(K), stride=2, padding=1),
    ),
    "quantize": (
        lambda v: mb.quantize(input=v.x, scale=ALPHA, zero_point=np.array([1, 2, 3], np.int8), output_dtype="int8", axis=1),
        np.clip(np.round(X / SPREAD) + np.array([[1], [2], [3]]), -128, 127),
    ),
    "dequantize": (
        lambda v: mb.dequantize(input=mb.quantize(input=v.x, scale=f32(0.1), output_dtype="int8"), scale=f32(0.1)),
        np.round(X / np.float32(0.1)) * 0.1,
    ),
}
# fmt: on
ROWS = POINTWISE | REDUCTIONS | SHAPES | INDEXING | IMAGES


def outputs(x: Any, p: Any, i: Any, n: Any) -> list[Any]:
    results = []
    for index, (function, _) in enumerate(ROWS.values()):
        result = function(SimpleNamespace(x=x, p=p, i=i, n=n))
        results.append(mb.identity(x=mb.cast(x=result, dtype="fp32"), name=f"row_{index}"))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    specs = [
        mb.TensorSpec(v.shape, types.int32 if v.dtype == np.int32 else types.fp32) for v in INPUTS.values()
    ]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(outputs)
    path = tmp_path_factory.mktemp("catalogue") / "all.mlpackage"
    ct.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32, pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True,
    ).save(str(path))  # fmt: skip
    return milrun.load(path).predict(INPUTS)


@pytest.mark.parametrize("name", ROWS)
def test_an_operation_is_what_its_documentation_says(results: dict[str, np.ndarray], name: str) -> None:
    expected = np.asarray(ROWS[name][1])
    got = results[f"row_{list(ROWS).index(name)}"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
