"""Kernels against independent references: numpy, scipy and torch, from the specification."""

from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import scipy.special
import torch
from conftest import Build
from coremltools.converters.mil import Builder as mb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import milrun
from milrun.ops.registry import find

X = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
POSITIVE = np.abs(X) + 0.1

Case = tuple[Callable[[Any], Any], np.ndarray, np.ndarray]
UNARY: dict[str, Case] = {
    "erf": (lambda x: mb.erf(x=x), X, scipy.special.erf(X)),
    "sigmoid": (lambda x: mb.sigmoid(x=x), X, scipy.special.expit(X)),
    "gelu": (lambda x: mb.gelu(x=x), X, X * scipy.special.ndtr(X)),
    "gelu tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        X,
        0.5 * X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))),
    ),
    "gelu sigmoid": (
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        X,
        X * scipy.special.expit(1.702 * X),
    ),
    "rsqrt adds epsilon": (lambda x: mb.rsqrt(x=x, epsilon=0.5), POSITIVE, 1 / np.sqrt(POSITIVE + 0.5)),
    "log adds epsilon": (lambda x: mb.log(x=x, epsilon=0.5), POSITIVE, np.log(POSITIVE + 0.5)),
    "round half to even": (
        lambda x: mb.round(x=x),
        np.array([0.5, 1.5, 2.5, -0.5]),
        np.array([0.0, 2, 2, 0]),
    ),
    "softmax over an inner axis": (lambda x: mb.softmax(x=x, axis=1), X, scipy.special.softmax(X, 1)),
    "logsumexp": (lambda x: mb.reduce_log_sum_exp(x=x, axes=[1, 2]), X, scipy.special.logsumexp(X, (1, 2))),
    "exclusive reversed cumsum": (
        lambda x: mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
        X,
        np.flip(np.cumsum(np.flip(X, 2), 2), 2) - X,
    ),
    "band part": (lambda x: mb.band_part(x=x, lower=0, upper=1), X, np.triu(X) - np.triu(X, 2)),
    "reflect pad": (
        lambda x: mb.pad(x=x, pad=[1, 1, 2, 3], mode="reflect"),
        X,
        np.pad(X, [(0, 0), (1, 1), (2, 3)], "reflect"),
    ),
    "replicate pad": (
        lambda x: mb.pad(x=x, pad=[2, 1], mode="replicate"),
        X,
        np.pad(X, [(0, 0), (0, 0), (2, 1)], "edge"),
    ),
    "negative strides": (
        lambda x: mb.slice_by_index(
            x=x, begin=[1, 2, 3], end=[0, 0, 0], stride=[-1, -2, -1], end_mask=[True, True, False]
        ),
        X,
        X[1::-1, 2::-2, 3:0:-1],
    ),
    "squeeze mask": (
        lambda x: mb.slice_by_index(x=x, begin=[-1, 0, 0], end=[0, 3, 4], squeeze_mask=[True, False, False]),
        X,
        X[-1],
    ),
    "interleaved concat": (
        lambda x: mb.concat(values=[x, mb.mul(x=x, y=np.float32(2))], axis=1, interleave=True),
        X,
        np.stack([X, 2 * X], 2).reshape(2, 6, 4),
    ),
    "gather over two axes of indices": (
        lambda x: mb.gather(x=x, indices=np.array([[2, 0], [1, 1]], np.int32), axis=1),
        X,
        X[:, [[2, 0], [1, 1]]],
    ),
    "floor_div and mod follow the divisor's sign": (
        lambda x: mb.add(x=mb.floor_div(x=x, y=np.float32(-0.7)), y=mb.mod(x=x, y=np.float32(-0.7))),
        X,
        X // np.float32(-0.7) + X % np.float32(-0.7),
    ),
    "layer norm over two axes": (
        lambda x: mb.layer_norm(x=x, axes=[1, 2], epsilon=1e-3),
        X,
        (X - X.mean((1, 2), keepdims=True)) / np.sqrt(X.var((1, 2), keepdims=True) + 1e-3),
    ),
    "l2 norm": (lambda x: mb.l2_norm(x=x), X, X / np.sqrt((X**2).sum() + 1e-6)),
    "argsort": (lambda x: mb.argsort(x=x, axis=2), X, np.argsort(-X, 2)),
    "sliding windows": (
        lambda x: mb.sliding_windows(x=x, axis=2, size=2, stride=2),
        X,
        np.lib.stride_tricks.sliding_window_view(X, 2, 2)[:, :, ::2],
    ),
}


CASES = [(name, precision) for name in sorted(UNARY) for precision in ("fp32", "fp16")]
CASES.remove(
    ("floor_div and mod follow the divisor's sign", "fp16")
)  # -0.7 in FP16 moves a quotient across an integer


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_an_operation_follows_its_formula(build: Build, name: str, precision: str) -> None:
    function, x, expected = UNARY[name]
    path = build(lambda x: mb.identity(x=function(x), name="y"), x=(x.shape, "fp32"), precision=precision)
    tolerance = {"fp32": {"rtol": 1e-5, "atol": 1e-5}, "fp16": {"rtol": 4e-3, "atol": 4e-3}}[precision]
    np.testing.assert_allclose(
        milrun.load(path).predict({"x": x.astype(np.float32)})["y"], expected, **tolerance
    )


@pytest.mark.parametrize("pad_type", ["valid", "same", "same_lower", "custom"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_convolution_pads_as_specified(
    build: Build, rng: Any, pad_type: str, stride: int, dilation: int
) -> None:
    x, w = rng.standard_normal((1, 4, 9, 8), np.float32), rng.standard_normal((6, 2, 3, 2), np.float32)
    path = build(
        lambda x: mb.conv(
            x=x, weight=w, strides=[stride] * 2, dilations=[dilation] * 2, pad_type=pad_type, groups=2,
            **({"pad": [1, 0, 2, 1]} if pad_type == "custom" else {}), name="y",
        ),
        x=(x.shape, "fp32"),
    )  # fmt: skip
    pads = []
    for size, k in zip(x.shape[2:], w.shape[2:], strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        pads.append(
            {
                "valid": (0, 0),
                "same": (total // 2, total - total // 2),
                "same_lower": (total - total // 2, total // 2),
                "custom": ((1, 0), (2, 1))[len(pads)],
            }[pad_type]
        )
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(padded), torch.from_numpy(w), None, stride, 0, dilation, 2
    )
    np.testing.assert_allclose(milrun.load(path).predict({"x": x})["y"], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("exclude", [True, False])
def test_average_pooling_counts_padding_as_asked(build: Build, rng: Any, exclude: bool) -> None:
    x = rng.standard_normal((1, 2, 7, 7), np.float32)
    path = build(
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1],
            exclude_padding_from_average=exclude, name="y",
        ),
        x=(x.shape, "fp32"),
    )  # fmt: skip
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 3, 2, 1, count_include_pad=not exclude)
    np.testing.assert_allclose(milrun.load(path).predict({"x": x})["y"], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "additive", "boolean"])
def test_attention_masks_as_torch_does(build: Build, rng: Any, kind: str) -> None:
    q, k, v = (rng.standard_normal((1, 2, n, 8), np.float32) for n in (5, 7, 7))
    keep = rng.random((1, 1, 5, 7)) > 0.3
    keep[..., 0] = True
    mask = {"none": None, "boolean": keep, "additive": np.where(keep, 0, -1e4).astype(np.float32)}[kind]
    extra = {} if mask is None else {"attn_mask": mask}
    path = build(
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, **extra, name="y"),
        q=(q.shape, "fp32"), k=(k.shape, "fp32"), v=(v.shape, "fp32"),
    )  # fmt: skip
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(t) for t in (q, k, v)), attn_mask=None if mask is None else torch.from_numpy(mask)
    )
    np.testing.assert_allclose(
        milrun.load(path).predict({"q": q, "k": k, "v": v})["y"], expected.numpy(), atol=1e-5
    )


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_agrees_with_torch(build: Build, rng: Any, direction: str) -> None:
    two = direction == "bidirectional"
    reference = torch.nn.LSTM(3, 4, bidirectional=two)
    weights = [p.detach().numpy() for p in reference.parameters()]

    def gates(
        w: np.ndarray,
    ) -> np.ndarray:  # torch: input, forget, cell, output; MIL: input, forget, output, cell
        i, f, g, o = np.split(w, 4)
        return np.concatenate([i, f, o, g])

    params = {
        "weight_ih": gates(weights[0]),
        "weight_hh": gates(weights[1]),
        "bias": gates(weights[2] + weights[3]),
    }
    if two:
        params |= {
            "weight_ih_back": gates(weights[4]),
            "weight_hh_back": gates(weights[5]),
            "bias_back": gates(weights[6] + weights[7]),
        }
    x = rng.standard_normal((5, 2, 3), np.float32)
    zero = np.zeros((2, 8 if two else 4), np.float32)
    path = build(
        lambda x: mb.identity(
            x=mb.lstm(x=x, initial_h=zero, initial_c=zero, direction=direction, output_sequence=True, **params)[0],
            name="y",
        ),
        x=(x.shape, "fp32"), target=ct.target.iOS17,
    )  # fmt: skip
    given_x = torch.from_numpy(x[::-1].copy() if direction == "reverse" else x)
    np.testing.assert_allclose(
        milrun.load(path).predict({"x": x})["y"], reference(given_x)[0].detach().numpy(), atol=1e-5
    )


SHAPES = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4)
OPERATORS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
             "greater": np.greater, "equal": np.equal, "floor_div": np.floor_divide, "mod": np.mod}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    shapes=SHAPES,
    name=st.sampled_from(sorted(OPERATORS)),
    dtype=st.sampled_from([np.int32, np.float32, np.float16]),
    seed=st.integers(0, 1 << 16),
)
def test_binary_operations_broadcast_as_numpy_does(shapes: Any, name: str, dtype: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = (generator.integers(-20, 20, s).astype(dtype) for s in shapes.input_shapes)
    if name in ("floor_div", "mod"):
        y = np.where(y == 0, np.ones_like(y), y)
    kernel = find(name, 18)
    assert kernel is not None
    widen = not kernel.native and dtype is np.float16
    got = kernel.function(*(torch.from_numpy(np.asarray(a, np.float32 if widen else dtype)) for a in (x, y)))
    expected = OPERATORS[name](x, y)
    assert tuple(got.shape) == shapes.result_shape
    np.testing.assert_array_equal(got.numpy().astype(expected.dtype), expected)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), shape=hnp.array_shapes(max_dims=4, max_side=6))
def test_slices_are_numpys(data: st.DataObject, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape)).reshape(shape)
    slices = [data.draw(st.slices(n)) for n in shape]
    begin = [0 if s.start is None else s.start for s in slices]
    end = [0 if s.stop is None else s.stop for s in slices]
    kernel = find("slice_by_index", 18)
    assert kernel is not None
    got = kernel.function(
        torch.from_numpy(x), begin, end, [s.step or 1 for s in slices],
        [s.start is None for s in slices], [s.stop is None for s in slices],
    )  # fmt: skip
    np.testing.assert_array_equal(got.numpy(), x[tuple(slices)])


@settings(max_examples=100, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 6, 8]), values=st.lists(st.integers(0, 255), min_size=1, max_size=50)
)
def test_unpacking_inverts_packing(bits: int, values: list[int]) -> None:
    from milrun.blob import unpack_bits

    wanted = [v & ((1 << bits) - 1) for v in values]
    stream = sum(v << (bits * i) for i, v in enumerate(wanted))
    packed = np.frombuffer(stream.to_bytes(-(-bits * len(wanted) // 8), "little"), np.uint8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, len(wanted)), wanted)
