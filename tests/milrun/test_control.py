"""Lists, loops, conditions, recurrent layers and suppression of boxes, against formulas written out here."""

from typing import Any

import coremltools as ct
import numpy as np
import pytest
from conftest import Build
from coremltools.converters.mil import Builder as mb
from scipy.special import expit

import milrun


def predict(path: Any, **inputs: np.ndarray) -> list[np.ndarray]:
    return list(milrun.load(path).predict(inputs).values())


def test_a_loop_collects_a_list(build: Build) -> None:
    """The squares of 0 to 3 times x, written in reverse, one place left out: zeros there."""

    def body(x: Any) -> Any:
        made = mb.make_list(init_length=5, dynamic_length=False, elem_shape=(2,), dtype="fp32")

        def step(i: Any, ls: Any) -> Any:
            value = mb.mul(x=x, y=mb.cast(x=mb.mul(x=i, y=i), dtype="fp32"))
            return mb.add(x=i, y=np.int32(1)), mb.list_write(
                ls=ls, index=mb.sub(x=np.int32(4), y=i), value=value
            )

        _, filled = mb.while_loop(
            _cond=lambda i, _ls: mb.less(x=i, y=np.int32(4)),
            _body=step,
            loop_vars=(mb.const(val=np.int32(0)), made),
        )
        return (
            mb.list_gather(ls=filled, indices=np.array([0, 1, 2, 3, 4], np.int32)),
            mb.list_read(ls=filled, index=np.int32(2)),
            mb.cast(x=mb.list_length(ls=filled), dtype="fp32"),
        )

    x = np.array([1.0, -2.0], np.float32)
    everything, one, length = predict(build(body, x=((2,), "fp32")), x=x)
    np.testing.assert_array_equal(everything, np.stack([x * k for k in (0, 9, 4, 1, 0)]))
    np.testing.assert_array_equal(one, 4 * x)
    assert length == 5


def test_a_list_is_scattered_into(build: Build) -> None:
    def body(x: Any) -> Any:
        made = mb.make_list(init_length=3, dynamic_length=True, elem_shape=(2,), dtype="fp32")
        filled = mb.list_scatter(ls=made, indices=np.array([2, 0], np.int32), value=x)
        return mb.list_gather(ls=filled, indices=np.array([0, 1, 2], np.int32))

    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    (got,) = predict(build(body, x=((2, 2), "fp32")), x=x)
    np.testing.assert_array_equal(got, [[3, 4], [0, 0], [1, 2]])


@pytest.mark.parametrize(("value", "expected"), [(3.0, 9.0), (-3.0, -4.0), (0.0, -1.0)])
def test_conditions_nest_and_see_outer_values(build: Build, value: float, expected: float) -> None:
    """x > 0: x * x; else x - 1, through a condition inside the other's branch."""

    def body(x: Any) -> Any:
        squared = mb.mul(x=x, y=x)
        total = mb.reduce_sum(x=x)
        return mb.cond(
            pred=mb.greater(x=total, y=np.float32(0)),
            _true_fn=lambda: mb.identity(x=squared),
            _false_fn=lambda: mb.cond(
                pred=mb.less(x=total, y=np.float32(-100)),
                _true_fn=lambda: mb.identity(x=squared),
                _false_fn=lambda: mb.sub(x=x, y=np.float32(1)),
            ),
        )

    (got,) = predict(build(body, x=((1,), "fp32")), x=np.array([value], np.float32))
    assert got.item() == expected


WEIGHTS = np.random.default_rng(4).standard_normal((4, 12, 4)).astype(np.float32) / 2


def recurrent(kind: str, x: np.ndarray, *, reset_after: bool = False) -> np.ndarray:
    """All hidden states, from the documentation's formulas; gates are in the order reset, output, update."""
    h = np.zeros((x.shape[1], 4), np.float32)
    states = []
    wi, wh = WEIGHTS[0, :, :3], WEIGHTS[1]
    for step in x:
        if kind == "rnn":
            h = np.tanh(step @ wi[:4].T + h @ wh[:4].T)
        else:
            (ir, io, iz), (hr, ho, hz) = (np.split(w, 3) for w in (wi, wh))
            r, z = expit(step @ ir.T + h @ hr.T), expit(step @ iz.T + h @ hz.T)
            o = np.tanh(step @ io.T + (r * (h @ ho.T) if reset_after else (r * h) @ ho.T))
            h = (1 - z) * o + z * h
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_recurrent_layers_follow_their_formulas(build: Build, rng: Any, kind: str, direction: str) -> None:
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    rows = 4 if kind == "rnn" else 12

    def body(x: Any) -> Any:
        return getattr(mb, kind)(
            x=x, initial_h=np.zeros((2, 4), np.float32), weight_ih=WEIGHTS[0, :rows, :3], weight_hh=WEIGHTS[1, :rows],
            direction=direction, output_sequence=True,
        )  # fmt: skip

    states, last = predict(build(body, x=(x.shape, "fp32"), target=ct.target.iOS17), x=x)
    expected = recurrent(kind, x[::-1] if direction == "reverse" else x)
    np.testing.assert_allclose(states, expected, atol=1e-5)
    np.testing.assert_allclose(last, expected[-1], atol=1e-5)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (center x, center y, width, height)."""
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)
        for i in (0, 1)
    ]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


@pytest.mark.parametrize("target", [ct.target.iOS16, ct.target.iOS17], ids=["iOS16", "iOS17"])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_boxes_are_suppressed_greedily(build: Build, rng: Any, threshold: float, target: Any) -> None:
    """From iOS 17 on the boxes are the last axis, and there are no threshold of the score and no count."""
    boxes = np.concatenate([rng.uniform(0, 4, (12, 2)), rng.uniform(2, 5, (12, 2))], 1).astype(np.float32)
    scores = rng.uniform(0, 1, (12, 1)).astype(np.float32)
    old = target == ct.target.iOS16
    given = {"b": boxes[None], "s": scores[None]} if old else {"b": boxes.T[None], "s": scores.T[None]}
    extra = {"score_threshold": np.float32(0.3)} if old else {}
    path = build(
        lambda b, s: mb.non_maximum_suppression(
            boxes=b, scores=s, iou_threshold=np.float32(threshold), max_boxes=6, **extra
        ),
        b=(given["b"].shape, "fp32"), s=(given["s"].shape, "fp32"), target=target,
    )  # fmt: skip
    kept: list[int] = []
    for index in np.argsort(-scores[:, 0]):
        free = all(overlap(boxes[index], boxes[k]) <= threshold for k in kept)
        if (not old or scores[index, 0] > 0.3) and free and len(kept) < 6:
            kept.append(int(index))
    outputs = predict(path, **given)
    coordinates = next(o for o in outputs if o.shape == ((1, 6, 4) if old else (1, 4, 6)))[0]
    indices = next(o for o in outputs if o.shape == (1, 6))
    assert indices[0, : len(kept)].tolist() == kept
    np.testing.assert_array_equal((coordinates if old else coordinates.T)[: len(kept)], boxes[kept])
    if old:
        assert [o.item() for o in outputs if o.shape == (1,)] == [len(kept)]
