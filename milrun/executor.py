"""Runs a plan: slots filled step by step, results stored in their declared type, slots emptied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from milrun.errors import ExecutionError, MilrunError
from milrun.plan import Block, Function, Step
from milrun.types import FP16, TensorType, ValueType
from milrun.weights import Weight

Observer: TypeAlias = Callable[[Step, list[Any]], None]
MAX_ITERATIONS = 1_000_000


class State:
    """A buffer that outlives one prediction. `value` is replaced, never changed in place."""

    def __init__(self, kind: TensorType) -> None:
        self.type = kind
        self.value = torch.zeros([d or 0 for d in kind.shape], dtype=kind.dtype.carrier)


def store(value: Any, kind: ValueType, *, fp32: bool) -> Any:
    """`value` as its declared type stores it.

    Raises
    ------
    ExecutionError
        If the value's shape contradicts the type.
    """
    if not isinstance(value, Tensor) or not isinstance(kind, TensorType):
        return value
    dtype = kind.dtype
    carrier = torch.float32 if fp32 and dtype is FP16 else dtype.carrier
    if value.dtype is not carrier:
        value = value.to(carrier)
    if dtype.wraps:
        low, high = dtype.range
        value = (value - low) % (high - low + 1) + low
    if value.shape != kind.shape and not kind.accepts(tuple(value.shape)):
        raise ExecutionError(f"the result has shape {tuple(value.shape)}, its declared type is {kind}")
    return value


class Executor:
    """Executes one call of a function."""

    def __init__(self, function: Function, observer: Observer | None = None) -> None:
        self.function = function
        self.fp32 = function.numerics.fp32
        self.observer = observer

    def run(self, inputs: list[Any]) -> list[Any]:
        """The function's results for values of its inputs, in order (tensors, or `State`s)."""
        env = list(self.function.initial)
        for slot, value in zip(self.function.input_slots, inputs, strict=True):
            env[slot] = value
        with torch.inference_mode():
            self._block(self.function.block, env)
            return [self._value(env[slot]) for slot in self.function.block.outputs]

    def _value(self, value: Any) -> Any:
        if isinstance(value, Weight):
            tensor = value.tensor()
            return tensor.float() if self.fp32 and tensor.dtype is torch.float16 else tensor
        return value

    def _block(self, block: Block, env: list[Any]) -> None:
        for step in block.steps:
            try:
                results = self._control(step, env) if step.function is None else self._call(step, env)
            except ExecutionError as error:
                raise _located(error, step) from None
            except MilrunError:
                raise
            except Exception as error:
                raise ExecutionError(f"{step.where} failed: {error}") from error
            for slot, value in zip(step.outputs, results, strict=True):
                env[slot] = value
            if self.observer is not None:
                self.observer(step, results)
            for slot in step.frees:
                env[slot] = None

    def _call(self, step: Step, env: list[Any]) -> list[Any]:
        arguments = step.template.copy()
        for position, slots, convert in step.dynamic:
            if isinstance(slots, list):
                arguments[position] = convert([env[s] for s in slots])
            else:
                arguments[position] = convert(env[slots])
        assert step.function is not None  # noqa: S101 - control flow is handled apart
        result = step.function(*arguments)
        results = result if isinstance(result, tuple) else () if result is None else (result,)
        if len(results) != len(step.types):
            raise ExecutionError(f"gave {len(results)} results, declares {len(step.types)}")
        for weight in step.weights:
            if weight.kept is None:
                weight.release()
        return [store(value, kind, fp32=self.fp32) for value, kind in zip(results, step.types, strict=True)]

    def _control(self, step: Step, env: list[Any]) -> list[Any]:
        slots = step.dynamic[0][1]
        assert isinstance(slots, list)  # noqa: S101
        if step.kind == "cond":
            block = step.blocks[0 if bool(self._value(env[slots[0]]).item()) else 1]
            self._block(block, env)
            return [self._value(env[s]) for s in block.outputs]
        condition, body = step.blocks
        values = [self._value(env[s]) for s in slots]
        for _ in range(MAX_ITERATIONS):
            for slot, value in zip(condition.inputs, values, strict=True):
                env[slot] = value
            self._block(condition, env)
            if not bool(self._value(env[condition.outputs[0]]).item()):
                return values
            for slot, value in zip(body.inputs, values, strict=True):
                env[slot] = value
            self._block(body, env)
            values = [self._value(env[s]) for s in body.outputs]
        raise ExecutionError(f"the loop didn't end after {MAX_ITERATIONS} iterations")


def _located(error: ExecutionError, step: Step) -> ExecutionError:
    text = str(error)
    return (
        error
        if text.startswith(step.where.split("/", 1)[0] + "/")
        else ExecutionError(f"{step.where}: {text}")
    )


def run(function: Function, inputs: Mapping[str, Any], observer: Observer | None = None) -> dict[str, Any]:
    """Run a function on values by input name; the results by output name."""
    results = Executor(function, observer).run([inputs[name] for name in function.inputs])
    return dict(zip(function.outputs, results, strict=True))
