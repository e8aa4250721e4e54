"""Runs two packages, or one in two precisions, side by side: where do they drift apart, where overflow?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milrun.lockstep import lockstep
from milrun.model import Model, Pipeline, load
from milrun.tracing import stream

if TYPE_CHECKING:
    from pathlib import Path

FP16_MAX = 65504.0
FP16_TINY = 2.0**-14  # smallest normal


@dataclass(frozen=True)
class Difference:
    """One value of both runs. Errors are of `a` against `b`; shares are of elements, 0 to 1.

    `relative` is the largest error over `b`'s largest magnitude; `range_used` is `peak` over the
    largest FP16 number, so above 1 the value can't be held; `zero_rows` are rows (last axis) all
    zero in `a` and not in `b`; `subnormal` counts elements of `a` below the smallest normal FP16.
    """

    name: str
    operation: str
    type: str
    max_error: float
    relative: float
    cosine: float
    peak: float
    range_used: float
    zero_rows: int
    subnormal: float
    nonfinite: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def compare(
    a: str | Path,
    b: str | Path | None,
    inputs: dict[str, Any],
    function: str | None = None,
    **options: Any,
) -> list[Difference]:
    """Compare all floating values that both programs name alike, in the order of `a`'s program.

    `b` None means `a` once more with everything in FP32: where does FP16 hurt? Values of different
    shapes are left out; of a value in a loop the last iteration counts.

    Both run at once, each in a thread, and a value is dropped when its partner has come: memory is that of two
    runs and a few values, not of all of them. Only where the programs compute in different orders do more wait.
    """
    first = load(a, **options)
    second = load(a, precision="fp32") if b is None else load(b, **options)
    operations, others = _operations(first, function), _operations(second, function)
    found: dict[str, Difference] = {}

    def meet(name: str, left: np.ndarray, right: np.ndarray) -> None:
        if left.shape == right.shape and left.dtype.kind == "f" and left.size:
            found[name] = _difference(name, operations[name], left, right)

    shared = {name for name in operations if name in others}
    lockstep(
        lambda emit: stream(first, inputs, emit, shared, function),
        lambda emit: stream(second, inputs, emit, shared, function),
        meet,
    )
    return [found[name] for name in operations if name in found]


def _operations(model: Model | Pipeline, function: str | None) -> dict[str, str]:
    if isinstance(model, Pipeline):
        return {k: v for part in model.models for k, v in _operations(part, None).items()}
    plan = model.function(function)
    return {plan.slot_names[slot]: step.kind for step in plan.steps() for slot in step.outputs}


def _difference(name: str, operation: str, left: np.ndarray, right: np.ndarray) -> Difference:
    x, y = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    error = float(np.abs(x[finite] - y[finite]).max(initial=0.0))
    scale = float(np.abs(y[finite]).max(initial=0.0))
    peaks = [float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in (x, y)]
    norm = math.sqrt(float((x[finite] ** 2).sum()) * float((y[finite] ** 2).sum()))
    cosine = float((x[finite] * y[finite]).sum()) / norm if norm else 1.0
    rows_x, rows_y = x.reshape(-1, x.shape[-1] if x.ndim else 1), y.reshape(-1, y.shape[-1] if y.ndim else 1)
    magnitude = np.abs(x)
    peak = max(peaks)
    return Difference(
        name, operation, f"{left.dtype}{list(left.shape)}", error, error / scale if scale else error, cosine, peak,
        peak / FP16_MAX, int((~rows_x.any(1) & rows_y.any(1)).sum()),
        float(((magnitude > 0) & (magnitude < FP16_TINY)).mean()), int((~np.isfinite(x)).sum()),
    )  # fmt: skip
