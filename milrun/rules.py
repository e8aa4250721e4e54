"""The lint rules for one function of a program, each with its source.

A rule is a function from a planned function to findings. `RULES` lists them.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from milrun.magnitude import FP16_MAX, Magnitudes, elements
from milrun.types import TensorType
from milrun.weights import Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milrun.plan import Function, Step

Severity = Literal["error", "warning", "info"]
EEANE = "eeANE 2.1.0, measured on M2 with macOS 26 and 27"
SCORE_LIMIT = 1 << 20
_INT16_ROWS = 1 << 15
_SMALL = 1 << 16
_MOVES = {
    "reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "concat", "split", "cast", "identity",
}  # fmt: skip
_MASKING = {"add", "sub", "mul", "select", "fill", "fill_like", "concat", "stack", "maximum", "pad"}
_THROUGH = {"cast", "identity", "reshape", "expand_dims", "squeeze", "transpose"}


@dataclass(frozen=True)
class Finding:
    """One finding: a rule, and every place that breaks it.

    `operation` is the first of `operations`, all empty where a rule concerns the whole package; `package` is
    given where several were looked at together.
    """

    rule: str
    severity: Severity
    message: str
    source: str
    function: str = ""
    operation: str = ""
    operations: tuple[str, ...] = ()
    package: str = ""


def _at(
    function: Function, rule: str, severity: Severity, message: str, source: str, steps: list[Step]
) -> Iterator[Finding]:
    """One finding with the places of all operations that break a rule; none without any."""
    if steps:
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in sorted(collections.Counter(s.kind for s in steps).items())
        )
        names = tuple(s.where.removeprefix(f"{function.name}/").rsplit(" (", 1)[0] for s in steps)
        yield Finding(rule, severity, f"{message} ({kinds})", source, function.name, names[0], names)


def _tensors(step: Step) -> list[TensorType]:
    return [t for t in step.types if isinstance(t, TensorType)]


def _input_type(function: Function, step: Step, parameter: str) -> TensorType | None:
    slots = step.parameters.get(parameter)
    kind = function.slot_types[slots[0]] if slots else None
    return kind if isinstance(kind, TensorType) else None


def _constant(function: Function, step: Step, parameter: str) -> Weight | None:
    slots = step.parameters.get(parameter)
    value = function.initial[slots[0]] if slots else None
    return value if isinstance(value, Weight) else None


def _rank(function: Function) -> Iterator[Finding]:
    steps = [s for s in function.steps() if any(len(t.shape) > 4 for t in _tensors(s))]
    message = (
        "A tensor of rank above 4 makes the compiler reject its subgraph, and the whole model "
        "falls to the CPU."
    )
    yield from _at(function, "rank", "error", message, EEANE, steps)


def _score_shape(function: Function, step: Step) -> tuple[int | None, int | None]:
    """Rows and columns of one head's scores: the softmax's axis and the other axis of positions."""
    if step.kind == "softmax" and len(_tensors(step)) == 1:
        shape = _tensors(step)[0].shape
        axis_value = _constant(function, step, "axis")
        axis = int(axis_value.decode().reshape(-1)[0]) % len(shape) if axis_value and shape else -1
        if len(shape) >= 2:  # softmax over another axis than the last: (batch, keys, heads, queries)
            last = axis in (-1, len(shape) - 1)
            return shape[axis], shape[-2] if last else shape[-1]
    if step.kind == "scaled_dot_product_attention":
        query, key = _input_type(function, step, "query"), _input_type(function, step, "key")
        if query is not None and key is not None:
            return query.shape[-2], key.shape[-2]
    return None, None


def _scores(function: Function) -> Iterator[Finding]:
    steps = []
    for step in function.steps():
        rows, columns = _score_shape(function, step)
        if rows and columns and rows * columns >= SCORE_LIMIT:
            steps.append(step)
    message = (
        "Scores of one head reach 2^20 elements: wrong numbers on the Neural Engine only. "
        "Compute the rows in ranges."
    )
    yield from _at(function, "score-matrix", "error", message, EEANE, steps)


def _islands(function: Function) -> Iterator[Finding]:
    floats = collections.Counter(
        t.dtype.name for s in function.steps() for t in _tensors(s) if t.dtype.is_float
    )
    if floats["fp16"]:
        fp32 = [
            s for s in function.steps()
            if s.kind != "cast" and any(t.dtype.name == "fp32" for t in _tensors(s))
        ]  # fmt: skip
        message = "FP32 operations leave the Neural Engine, which computes in FP16."
        source = "coremltools #2585, executorch #19523"
        yield from _at(function, "fp32-island", "warning", message, source, fp32)
    elif floats["fp32"]:
        yield Finding("fp32-program", "warning", "The whole program is FP32: the Neural Engine "
                                                 "computes in FP16 only.",
                      "Core ML Tools guide, typed execution", function.name)  # fmt: skip
    integers = [
        s
        for s in function.steps()
        if s.kind not in _MOVES and any(t.dtype.kind == "int" for t in _tensors(s))
    ]
    message = "Integer arithmetic is usually placed on the CPU."
    source = "reported with coremltools' add_int16_cast pass"
    yield from _at(function, "integer-island", "info", message, source, integers)


def _dynamic(function: Function) -> Iterator[Finding]:
    steps = [s for s in function.steps() if any(t.variadic or None in t.shape for t in _tensors(s))]
    message = "Shapes known only at run time: the Neural Engine needs fixed or enumerated ones."
    source = "Core ML Tools guide, flexible inputs"
    yield from _at(function, "dynamic-shape", "warning", message, source, steps)


def _gathers(function: Function) -> Iterator[Finding]:
    steps = [
        s for s in function.steps()
        if s.kind == "gather" and any(w.size > _INT16_ROWS and w.shape and w.shape[0] >= _INT16_ROWS for w in s.weights)
    ]  # fmt: skip
    message = (
        "A gather from a table of 32,768 rows or more can't use int16 indices; it runs on the "
        "CPU. A table outside the model can be gathered by the host."
    )
    yield from _at(function, "large-gather", "info", message, "coremltools 9.0, add_int16_cast", steps)


def _encodings(function: Function) -> Iterator[Finding]:
    def having(part: str) -> list[Step]:
        return [s for s in function.steps() if any(part in w.encoding for w in s.weights)]

    message = "Per-block linear weights are reported not to work on the Neural Engine."
    yield from _at(
        function, "per-block-weights", "warning", message, "coremltools #2510", having("per-block")
    )
    message = "4-bit palettes crashed at load or gave cosine 0.03 on real devices: measure before use."
    source = "coremltools PR #2688, #2716"
    yield from _at(function, "palettized-4bit", "warning", message, source, having("lut4"))


def _masks(function: Function) -> Iterator[Finding]:
    """Constants that are infinite in FP16, or so near its end that a sum with a score is."""
    infinite, extreme = [], []
    for step in function.steps():
        small = [w for w in step.weights if w.type.dtype.is_float and 0 < w.size <= _SMALL]
        peak = max((float(w.decode().float().abs().max()) for w in small), default=0.0)
        if peak == float("inf"):
            infinite.append(step)
        elif peak >= FP16_MAX and step.kind in _MASKING:
            extreme.append(step)
    message = "An infinite constant: a fully masked row gives NaN. Use -1e4, exact in FP16."
    yield from _at(function, "infinite-constant", "warning", message, EEANE, infinite)
    message = (
        "A constant at or beyond the end of FP16's range (65,504), such as the FP32 minimum: in FP16 it, or "
        "its sum with a score, is infinite, and a fully masked row gives NaN. Use -1e4."
    )
    yield from _at(function, "extreme-constant", "warning", message, EEANE, extreme)


def _exponent(bounds: Magnitudes, step: Step) -> float | None:
    """The power to which a step raises its input; None for a step that does nothing of the kind."""
    if step.kind == "square":
        return 2.0
    if step.kind == "mul":
        return 2.0 if step.parameters.get("x") == step.parameters.get("y") else None
    if step.kind == "pow":
        value = bounds.parameter(step, "y")
        return value if value is not None and value >= 2 else None
    return None


def _squares(function: Function) -> Iterator[Finding]:
    """Powers in FP16 that a mean or sum reads, of values that nothing keeps small: the naive RMSNorm."""
    bounds = Magnitudes(function)
    summed: dict[int, float] = {}  # slot: how many of its elements are added up at most (1 for a mean)
    steps = []
    inside = []
    for step in reversed(function.steps()):
        slots = step.parameters.get("x", [])
        axes = _constant(function, step, "axes")
        count = elements(function, slots[0], None if axes is None else axes.decode()) if slots else None
        if step.kind in ("reduce_mean", "reduce_sum"):
            terms = float(count or 1) if step.kind == "reduce_sum" else 1.0
            summed.update({s: max(terms, summed.get(s, 0.0)) for s in slots})
        reached = max((summed.get(o, 0.0) for o in step.outputs), default=0.0)
        scaled = step.kind == "mul" and any(
            bounds.constant(s) is not None for s in step.parameters.get("y", [])
        )
        if reached and (step.kind in _THROUGH or scaled):
            summed.update({s: max(reached, summed.get(s, 0.0)) for s in slots})
        operand = _input_type(function, step, "x")
        if operand is None or operand.dtype.name != "fp16":
            continue
        peak = bounds.bound[slots[0]]
        power = _exponent(bounds, step)
        if (power is not None and reached and not _fits(peak, power, reached)) or (
            step.kind == "reduce_sum_square" and not _fits(peak, 2.0, count or 1)
        ):
            steps.append(step)
        elif step.kind in ("reduce_l2_norm", "l2_norm") and not _fits(peak, 2.0, count or 1):
            inside.append(step)
    source = "measured in FP16 arithmetic; executorch #19523"
    message = (
        "A mean or sum of FP16 squares: from |x| = 256 on one square overflows, and the norm gives a finite "
        "row of zeros. Divide by the row's maximum first."
    )
    yield from _at(function, "square-overflow", "warning", message, source, steps[::-1])
    message = (
        "An operation that squares and sums FP16 values inside. Which type it keeps them in is not "
        "documented: in FP16, it overflows from |x| = 256 on. Divide by the row's maximum first."
    )
    yield from _at(function, "square-inside", "info", message, source, inside[::-1])


def _fits(peak: float, power: float, terms: float) -> bool:
    try:
        return bool(peak**power * terms <= FP16_MAX)
    except OverflowError:
        return False


RULES: list[Callable[[Function], Iterator[Finding]]] = [
    _rank, _scores, _islands, _dynamic, _gathers, _encodings, _masks, _squares,
]  # fmt: skip
