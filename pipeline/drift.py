"""Where does a variant leave the original: which layer, which operation, and does FP16's range suffice?

A few probe texts run through the packages in milrun, which sees every value. Beside each layer stands the state that
the original had there in FP32 (`probes.safetensors`): what differs is weights and arithmetic together. The same
packages run once more with all arithmetic in FP32: what differs then is arithmetic alone, operation by operation.
Errors are relative: the length of the difference over the length of the right value, for a token; 0 is equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import milrun
from corembed.release import Function
from milrun.tracing import to_numpy
from pipeline.runner import Runner
from pipeline.stored import Probe

FP16_MAX = 65504.0
EMBEDDINGS = -1
_MOVES = {"reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "concat", "split", "cast"}
"""Operations that only move values: their results are in the record already."""

Array = npt.NDArray[Any]
Observe = Callable[[int, str, str, list[str], Array], None]
"""Called with layer, operation's kind, its value's name, its inputs' names, and the value."""


def layer_of(name: str, before: int) -> int:
    """The layer that gives a value of this name; what belongs to none belongs to the one before it.

    Names are those of `pipeline.splice`: `table_`, `layer_N_` and `head_`, and `hidden_N` between two packages.
    """
    if found := re.match(r"layer_(\d+)_", name):
        return int(found[1])
    if found := re.fullmatch(r"hidden_(\d+)", name):
        return int(found[1]) - 1
    return before


def run(
    packages: Sequence[Path], function: Function, ids: Array, mask: Array, observe: Observe, precision: str
) -> None:
    """Run packages one after another in milrun, showing every floating value to `observe`."""
    state: dict[str, Any] = {"input_ids": ids}
    layer = EMBEDDINGS
    for package in packages:
        model = milrun.load(package, precision=precision)  # type: ignore[arg-type]
        plan = model.function(function.name)  # type: ignore[union-attr]

        def look(step: Any, results: list[Any], plan: Any = plan) -> None:
            nonlocal layer
            sources = [plan.slot_names[s] for slots in step.parameters.values() for s in slots]
            for slot, value, kind in zip(step.outputs, results, step.types, strict=True):
                name = plan.slot_names[slot]
                layer = layer_of(name, layer)
                array = to_numpy(value, kind)
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    observe(layer, step.kind, name, sources, array)

        state = model.predict({**state, "attention_mask": mask}, function.name, observer=look)


def _tokens(values: Array, mask: Array) -> Array:
    """The rows of real tokens of (1, length, width) values, float64."""
    return values[0][mask[0] == 1].astype(np.float64)


def _error(found: Array, wanted: Array) -> float:
    """The largest relative error of a token."""
    if not np.isfinite(found).all():
        return float("inf")
    length = np.linalg.norm(wanted, axis=-1)
    difference = np.linalg.norm(found - wanted, axis=-1)
    return float((difference / np.where(length == 0, 1, length)).max())


def against_original(runner: Runner, probe: Probe, function: Function | None = None) -> list[dict[str, Any]]:
    """For the embeddings, each layer and the state that is pooled: the error against the original's.

    A layer's result is the value of its shape that comes closest to the original's: names of values are the
    converter's and say nothing.
    """
    function = function or next(f for f in runner.buckets if f.length > len(probe.ids))
    ids, mask = _padded(runner, probe, function)
    shape = (function.batch, function.length, probe.states.shape[2])
    last = (
        [] if np.array_equal(probe.final, probe.states[-1]) else [probe.final]
    )  # not every model has a last norm
    wanted = [*probe.states, *last]
    errors = np.full(len(wanted), np.inf)

    def observe(layer: int, kind: str, name: str, sources: list[str], value: Array) -> None:
        del kind, name, sources
        if value.shape != shape:
            return
        places = [layer + 1, *([len(wanted) - 1] if last and layer == len(probe.states) - 2 else [])]
        for place in places:
            error = _error(_tokens(value, mask), wanted[place].astype(np.float64))
            errors[place] = min(errors[place], error)

    run(runner.packages, function, ids, mask, observe, "declared")
    names = ["embeddings", *(f"layer {i}" for i in range(len(probe.states) - 1)), "final norm"]
    return [
        {"layer": name, "error": float(error)}
        for name, error in zip(names[: len(wanted)], errors, strict=True)
    ]


def _padded(runner: Runner, probe: Probe, function: Function) -> tuple[Array, Array]:
    from corembed.tokenizer import Tokens  # noqa: PLC0415

    return runner.tokenizer.pad([Tokens(probe.ids, 0)], function)


def arithmetic(runner: Runner, probe: Probe) -> dict[str, Any]:
    """The packages as declared against all arithmetic in FP32: a record a layer, and the worst operations.

    `jump` is the error that an operation adds to the largest error among its inputs. `range_used` is the largest
    magnitude over FP16's largest number: above 1 nothing can hold it. `zero_rows` are rows all zero in FP16 and not
    in FP32, the trace of an overflow inside a norm; `overflows` are values not finite.
    """
    function = next(f for f in runner.buckets if f.length >= len(probe.ids))
    ids, mask = _padded(runner, probe, function)
    exact: dict[str, Array] = {}

    def keep(layer: int, kind: str, name: str, sources: list[str], value: Array) -> None:
        del layer, sources
        if kind not in _MOVES:
            exact[name] = value

    run(runner.packages, function, ids, mask, keep, "fp32")
    layers: dict[int, dict[str, Any]] = {}
    operations: list[dict[str, Any]] = []
    known: dict[str, float] = {}

    def compare(layer: int, kind: str, name: str, sources: list[str], value: Array) -> None:
        before = max((known.get(source, 0.0) for source in sources), default=0.0)
        if name not in exact or exact[name].shape != value.shape or not value.size:
            known[name] = before  # moved, not computed
            return
        right = exact.pop(name)
        known[name] = _relative(value, right)
        if name.startswith("mask_"):
            return  # its -1e4 is a constant of the graph's own, and would hide what the layers use of the range
        if value.shape[-1:] == (1,):  # one number a row, as a norm has: what it is worth shows in the row
            known[name] = before
            return
        operations.append({"layer": _name(layer), "operation": kind, "name": name, "error": known[name],
                           "jump": known[name] - before})  # fmt: skip
        _count(layers.setdefault(layer, {}), value, right)

    run(runner.packages, function, ids, mask, compare, "declared")
    for layer, record in layers.items():
        own = [o for o in operations if o["layer"] == _name(layer)]
        record |= {"layer": _name(layer), "error": max(o["error"] for o in own)}
    worst = sorted(operations, key=lambda o: -o["jump"])[:5]
    return {"layers": [layers[i] for i in sorted(layers)], "operations": worst}


def _name(layer: int) -> str:
    return "embeddings" if layer == EMBEDDINGS else f"layer {layer}"


def _relative(value: Array, right: Array) -> float:
    x, y = value.astype(np.float64), right.astype(np.float64)
    if not np.isfinite(x).all():
        return float("inf")
    length = float(np.linalg.norm(y))
    return float(np.linalg.norm(x - y)) / length if length else float(np.linalg.norm(x))


def _count(record: dict[str, Any], value: Array, right: Array) -> None:
    rows, wanted = (v.reshape(-1, v.shape[-1] if v.ndim else 1) for v in (value, right))
    peak = float(np.abs(right[np.isfinite(right)]).max(initial=0)) / FP16_MAX
    record["range_used"] = max(record.get("range_used", 0.0), peak)
    record["zero_rows"] = record.get("zero_rows", 0) + int((~rows.any(1) & wanted.any(1)).sum())
    record["overflows"] = record.get("overflows", 0) + int((~np.isfinite(value)).sum())


def drift(runner: Runner, probes: Sequence[Probe]) -> dict[str, Any]:
    """All of this module for one layout: errors of the worst probe at each layer."""
    fit = [p for p in probes if len(p.ids) < runner.buckets[-1].length]
    found = [against_original(runner, p) for p in fit]
    layers = [max(each, key=_by_error) for each in zip(*found, strict=True)]
    errors = [layer["error"] for layer in layers]
    jumps = np.diff([0.0, *errors])
    return {
        "against_original": layers,
        "largest_jump": layers[int(np.nanargmax(jumps))]["layer"] if layers else None,
        "arithmetic": arithmetic(runner, fit[0]) if fit else None,
    }


def _by_error(record: Mapping[str, Any]) -> float:
    error: float = record["error"]
    return error
