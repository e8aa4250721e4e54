"""Static rules for the Neural Engine: what in this package is known to go wrong there?

A finding is a prediction from a rule with a source; nothing here measures or promises placement.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from milrun.inspection import constants, flatten
from milrun.model import Model, Pipeline, load
from milrun.types import TensorType
from milrun.weights import ImmediateWeight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from milrun.program import Function, Step

Severity = Literal["error", "warning", "info"]
GIB = 1 << 30
SCORE_LIMIT = 1 << 20
_EEANE = "eeANE 2.1.0, measured on M2 with macOS 26 and 27"
_INT16_ROWS = 1 << 15
_MOVES = {
    "reshape",
    "transpose",
    "expand_dims",
    "squeeze",
    "slice_by_index",
    "concat",
    "split",
    "cast",
    "identity",
}


@dataclass(frozen=True)
class Finding:
    """One finding. `function` and `operation` are empty where a rule concerns the whole package."""

    rule: str
    severity: Severity
    message: str
    source: str
    function: str = ""
    operation: str = ""


def lint(path: str | Path) -> list[Finding]:
    """Apply all rules to a package; the most severe findings first.

    Raises
    ------
    MilrunError
        As `milrun.load` does.
    """
    model = load(path)
    findings = []
    for part in flatten([model]):
        findings += list(_compiled_size(part))
        for function in part.functions.values():
            for rule in _RULES:
                findings += list(rule(function))
        findings += list(_multifunction(part))
    if isinstance(model, Pipeline):
        findings.append(
            Finding("pipeline", "warning", "Later models of a Core ML pipeline were seen on the "
                                           "CPU, with weights "
                    "duplicated; load the parts as separate models.", _EEANE)
        )  # fmt: skip
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda f: (order[f.severity], f.rule, f.function))


def _compiled_size(model: Model) -> Iterator[Finding]:
    weights: dict[object, int] = {}
    for function in model.functions.values():
        for _, weight in constants(function):
            weights[weight.identity] = weight.stored_bytes
    size = sum(weights.values())
    message = (
        f"Weights of {size / GIB:.2f} GiB: a compiled model above {{}} is not placed on the "
        "Neural Engine, silently."
    )
    if size > 2 * GIB:
        yield Finding("compiled-size", "error", message.format("2 GiB (macOS 26 and older)"), _EEANE)
    elif size > GIB:
        yield Finding("compiled-size", "warning", message.format("1 GiB (macOS 27)"), _EEANE)


def _multifunction(model: Model) -> Iterator[Finding]:
    if len(model.functions) > 1:
        yield Finding(
            "multifunction-memory", "info",
            f"{len(model.functions)} functions: memory was seen to grow with the number of functions loaded.",
            "coremltools #2351",
        )  # fmt: skip


def _tensors(step: Step) -> list[TensorType]:
    return [t for t in step.types if isinstance(t, TensorType)]


def _many(
    function: Function, rule: str, severity: Severity, message: str, source: str, steps: list[Step]
) -> Iterator[Finding]:
    """One finding for a rule that several operations break: the first is named, the others counted."""
    if steps:
        more = f" ({len(steps)} operations; first: {steps[0].kind})"
        yield Finding(rule, severity, message + more, source, function.name, steps[0].name)


def _rank(function: Function) -> Iterator[Finding]:
    steps = [s for s in function.steps() if any(len(t.shape) > 4 for t in _tensors(s))]
    message = (
        "A tensor of rank above 4 makes the compiler reject its subgraph, and the whole model "
        "falls to the CPU."
    )
    yield from _many(function, "rank", "error", message, _EEANE, steps)


def _input_type(function: Function, step: Step, parameter: str) -> TensorType | None:
    slots = step.parameters.get(parameter)
    kind = function.slot_types[slots[0]] if slots else None
    return kind if isinstance(kind, TensorType) else None


def _scores(function: Function) -> Iterator[Finding]:
    steps = []
    for step in function.steps():
        rows = columns = None
        if step.kind == "softmax" and len(step.types) == 1:
            (kind,) = _tensors(step)
            rows, columns = kind.shape[-2:] if len(kind.shape) >= 2 else (None, None)
        elif step.kind == "scaled_dot_product_attention":
            query, key = _input_type(function, step, "query"), _input_type(function, step, "key")
            if query is not None and key is not None:
                rows, columns = query.shape[-2], key.shape[-2]
        if rows and columns and rows * columns >= SCORE_LIMIT:
            steps.append(step)
    message = (
        "Scores of one head reach 2^20 elements: wrong numbers on the Neural Engine only. "
        "Compute the rows in ranges."
    )
    yield from _many(function, "score-matrix", "error", message, _EEANE, steps)


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
        yield from _many(
            function, "fp32-island", "warning", message, "coremltools #2585, executorch #19523", fp32
        )
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
    yield from _many(
        function,
        "integer-island",
        "info",
        message,
        "reported with coremltools' add_int16_cast pass",
        integers,
    )


def _dynamic(function: Function) -> Iterator[Finding]:
    steps = [s for s in function.steps() if any(t.variadic or None in t.shape for t in _tensors(s))]
    message = "Shapes known only at run time: the Neural Engine needs fixed or enumerated ones."
    yield from _many(
        function, "dynamic-shape", "warning", message, "Core ML Tools guide, flexible inputs", steps
    )


def _gathers(function: Function) -> Iterator[Finding]:
    steps = [
        s for s in function.steps()
        if s.kind == "gather" and any(w.size > _INT16_ROWS and w.shape and w.shape[0] >= _INT16_ROWS for w in s.weights)
    ]  # fmt: skip
    message = (
        "A gather from a table of 32,768 rows or more can't use int16 indices; it runs on the "
        "CPU. A table outside the model can be gathered by the host."
    )
    yield from _many(function, "large-gather", "info", message, "coremltools 9.0, add_int16_cast", steps)


def _encodings(function: Function) -> Iterator[Finding]:
    def having(part: str) -> list[Step]:
        return [s for s in function.steps() if any(part in w.encoding for w in s.weights)]

    yield from _many(function, "per-block-weights", "warning", "Per-block linear weights are "
                                                               "reported not to work on the Neural Engine.",
                     "coremltools #2510", having("per-block"))  # fmt: skip
    yield from _many(function, "palettized-4bit", "warning", "4-bit palettes crashed at load or "
                                                             "gave cosine 0.03 on real devices: measure before use.",
                     "coremltools PR #2688, #2716", having("lut4"))  # fmt: skip


def _masks(function: Function) -> Iterator[Finding]:
    steps = []
    for step in function.steps():
        for weight in step.weights:
            small = isinstance(weight, ImmediateWeight) or weight.size <= 1 << 16
            if weight.type.dtype.is_float and small and bool(torch.isinf(weight.decode().float()).any()):
                steps.append(step)
                break
    message = "An infinite constant: a fully masked row gives NaN. Use -1e4, exact in FP16."
    yield from _many(function, "infinite-constant", "warning", message, _EEANE, steps)


def _squares(function: Function) -> Iterator[Finding]:
    """A square in FP16 that a mean reads: the naive RMSNorm."""
    means = {
        s
        for step in function.steps()
        if step.kind in ("reduce_mean", "reduce_sum")
        for s in step.parameters.get("x", [])
    }
    steps = []
    for step in function.steps():
        half = any(t.dtype.name == "fp16" for t in _tensors(step))
        x, y = step.parameters.get("x"), step.parameters.get("y")
        squares = step.kind == "square" or (step.kind == "mul" and x == y) or (step.kind == "pow" and bool(x))
        if half and squares and set(step.outputs) & means:
            steps.append(step)
    message = (
        "A mean of FP16 squares: from |x| = 256 on it overflows and the norm gives a finite row "
        "of zeros. Divide by the row's maximum first."
    )
    yield from _many(
        function,
        "square-overflow",
        "warning",
        message,
        "measured in FP16 arithmetic; executorch #19523",
        steps,
    )


_RULES: list[Callable[[Function], Iterator[Finding]]] = [
    _rank, _scores, _islands, _dynamic, _gathers, _encodings, _masks, _squares,
]  # fmt: skip
