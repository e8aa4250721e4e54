"""Kernels over random shapes, types and parameters, against numpy."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from milrun.ops.registry import Context, Numerics, find

CONTEXT = Context("any", 18, (), Numerics(), half=False, given=frozenset(), generator=torch.Generator())
DTYPES = st.sampled_from([np.float32, np.int32, np.int8, np.uint8])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
quick = settings(max_examples=60, deadline=None)


def arrays(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    low = 0 if dtype is np.uint8 else -9
    return np.random.default_rng(seed).integers(low, 10, shape).astype(dtype)


def call(name: str, *arguments: Any, **parameters: Any) -> np.ndarray:
    kernel = find(name, 18)
    assert kernel is not None
    if any(p.kind == "ctx" for p in kernel.parameters):
        parameters["ctx"] = CONTEXT
    given = [torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in arguments]
    result = kernel.function(*given, **parameters)
    return np.asarray(result)


REDUCTIONS = {
    "reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min, "reduce_prod": np.prod,
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_sum_square": lambda x, **k: (x.astype(np.int64) ** 2).sum(**k),
}  # fmt: skip


@quick
@given(data=st.data(), shape=SHAPES, name=st.sampled_from(sorted(REDUCTIONS)), seed=st.integers(0, 999))
def test_reductions_over_any_axes(data: st.DataObject, shape: tuple[int, ...], name: str, seed: int) -> None:
    axes = data.draw(
        st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, unique_by=lambda a: a % len(shape))
    )
    keep, dtype = data.draw(st.booleans()), data.draw(st.sampled_from([np.float32, np.int32]))
    x = arrays(shape, dtype, seed)
    expected = REDUCTIONS[name](x, axis=tuple(axes), keepdims=keep)
    got = call(name, x, axes=axes, keep_dims=keep)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@quick
@given(data=st.data(), shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 999))
def test_moves_keep_every_value(data: st.DataObject, shape: tuple[int, ...], dtype: Any, seed: int) -> None:
    x = arrays(shape, dtype, seed)
    perm = data.draw(st.permutations(range(len(shape))))
    np.testing.assert_array_equal(call("transpose", x, list(perm)), x.transpose(perm))
    reps = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    np.testing.assert_array_equal(call("tile", x, reps), np.tile(x, reps))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    np.testing.assert_array_equal(call("reverse", x, axes), np.flip(x, axes))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    np.testing.assert_array_equal(
        call("concat", [torch.from_numpy(x)] * 2, axis), np.concatenate([x, x], axis)
    )
    np.testing.assert_array_equal(call("reshape", x, [-1]), x.reshape(-1))


@quick
@given(data=st.data(), shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 999))
def test_padding_with_a_constant(data: st.DataObject, shape: tuple[int, ...], dtype: Any, seed: int) -> None:
    axes = data.draw(st.integers(1, len(shape)))
    widths = data.draw(st.lists(st.integers(0, 3), min_size=2 * axes, max_size=2 * axes))
    x = arrays(shape, dtype, seed)
    pairs = [(0, 0)] * (len(shape) - axes) + list(zip(widths[::2], widths[1::2], strict=True))
    got = call("pad", x, widths, mode="constant", constant_val=3.0)
    np.testing.assert_array_equal(got, np.pad(x, pairs, constant_values=3))


@quick
@given(
    data=st.data(),
    shape=SHAPES,
    indices=hnp.array_shapes(min_dims=0, max_dims=2, max_side=3),
    seed=st.integers(0, 999),
)
def test_gathering_at_any_axis(
    data: st.DataObject, shape: tuple[int, ...], indices: tuple[int, ...], seed: int
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = arrays(shape, np.float32, seed)
    chosen = np.random.default_rng(seed).integers(0, shape[axis], indices).astype(np.int32)
    np.testing.assert_array_equal(call("gather", x, np.asarray(chosen), axis=axis), np.take(x, chosen, axis))


@quick
@given(data=st.data(), shape=SHAPES, exclusive=st.booleans(), reverse=st.booleans(), seed=st.integers(0, 999))
def test_running_sums(
    data: st.DataObject, shape: tuple[int, ...], exclusive: bool, reverse: bool, seed: int
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = arrays(shape, np.float32, seed)
    turned = np.flip(x, axis) if reverse else x
    expected = np.cumsum(turned, axis) - (turned if exclusive else 0)
    expected = np.flip(expected, axis) if reverse else expected
    np.testing.assert_allclose(
        call("cumsum", x, axis=axis, exclusive=exclusive, reverse=reverse), expected, atol=1e-5
    )


@quick
@given(
    batch=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3),
    sizes=st.tuples(*[st.integers(1, 4)] * 3), turned=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 999),
)  # fmt: skip
def test_matrix_products_broadcast_their_batches(
    batch: Any, sizes: tuple[int, int, int], turned: tuple[bool, bool], seed: int
) -> None:
    rows, inner, columns = sizes
    x = arrays((*batch.input_shapes[0], rows, inner), np.float32, seed)
    y = arrays((*batch.input_shapes[1], inner, columns), np.float32, seed + 1)
    given_x = x.swapaxes(-1, -2) if turned[0] else x
    given_y = y.swapaxes(-1, -2) if turned[1] else y
    got = call("matmul", given_x, given_y, transpose_x=turned[0], transpose_y=turned[1])
    np.testing.assert_allclose(got, x @ y, atol=1e-4)
