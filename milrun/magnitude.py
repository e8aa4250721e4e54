"""How large can a value get? Upper bounds of |x| that follow from the program alone.

A forward pass over a function's operations in interval arithmetic on magnitudes, plus one relation: a value
that *dominates* another (`reduce_max(abs(x))`, possibly raised by a constant) bounds their quotient by 1.
That is how a norm that divides each row by its maximum is told from one that squares what it gets.
Unknown is infinite: a bound is never too small, often too large.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from milrun.types import TensorType
from milrun.weights import Weight

if TYPE_CHECKING:
    from milrun.plan import Function, Step

FP16_MAX = 65504.0
_SMALL = 1 << 16  # elements of a constant that are worth decoding
_LIMITED = {
    "sigmoid": 1.0, "softmax": 1.0, "tanh": 1.0, "sin": 1.0, "cos": 1.0, "erf": 1.0, "sigmoid_hard": 1.0,
    "softsign": 1.0, "sign": 1.0, "relu6": 6.0,
}  # fmt: skip
# Results hold values of their inputs only (or zeros).
MOVES = frozenset({
    "cast", "identity", "reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "slice_by_size",
    "split", "concat", "stack", "gather", "gather_along_axis", "tile", "abs", "relu", "reduce_max", "reduce_min",
    "reduce_mean", "max_pool", "avg_pool", "select", "minimum", "maximum", "read_state", "reverse",
})  # fmt: skip
_ALIASES = frozenset({"cast", "identity"})
_SHAPES = frozenset({"cast", "identity", "reshape", "expand_dims", "squeeze"})


class Magnitudes:
    """Bounds of one function's values, by slot."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.bound = [math.inf] * len(function.slot_types)
        self._alias = list(range(len(self.bound)))
        self._dominated: dict[int, set[int]] = {}
        self._reciprocal: dict[int, tuple[int, float]] = {}
        for slot, value in enumerate(function.initial):
            if isinstance(value, Weight) and value.type.dtype.is_float and 0 < value.size <= _SMALL:
                peak = float(value.decode().float().abs().max())
                self.bound[slot] = math.inf if math.isnan(peak) else peak
        for step in function.steps():
            for output in step.outputs:
                self.bound[output] = self._of(step)
            if step.outputs:
                self._relate(step, step.outputs[0])

    def constant(self, slot: int) -> float | None:
        """The value of a constant of one element."""
        value = self.function.initial[slot]
        if isinstance(value, Weight) and value.size == 1 and value.type.dtype.kind in ("float", "int"):
            return float(value.decode().reshape(-1)[0])
        return None

    def _slots(self, step: Step, *names: str) -> list[int]:
        return [s for name in names for s in step.parameters.get(name, [])]

    def parameter(self, step: Step, name: str) -> float | None:
        """A constant scalar parameter of a step."""
        slots = self._slots(step, name)
        return self.constant(slots[0]) if slots else None

    def _of(self, step: Step) -> float:
        kind = step.kind
        if kind in _LIMITED:
            return _LIMITED[kind]
        if kind == "clip":
            low, high = self.parameter(step, "alpha"), self.parameter(step, "beta")
            own = self._largest(step, "x")
            return own if low is None or high is None else min(own, max(abs(low), abs(high)))
        if kind in ("add", "sub", "mul", "real_div"):
            return self._binary(step)
        if kind in MOVES:
            return self._largest(step, "x", "values", "a", "b", "y", "input")
        return math.inf

    def _largest(self, step: Step, *names: str) -> float:
        return max((self.bound[s] for s in self._slots(step, *names)), default=math.inf)

    def _binary(self, step: Step) -> float:
        slots = self._slots(step, "x", "y")
        if len(slots) != 2:
            return math.inf
        x, y = slots
        if step.kind in ("add", "sub"):
            return self.bound[x] + self.bound[y]
        if step.kind == "real_div":
            if self._alias[x] in self._dominated.get(y, ()):
                return 1.0
            divisor = self.constant(y)
            return self.bound[x] / abs(divisor) if divisor else math.inf
        for value, other in ((x, y), (y, x)):
            if other in self._reciprocal:
                divisor_slot, numerator = self._reciprocal[other]
                if self._alias[value] in self._dominated.get(divisor_slot, ()):
                    return numerator
        product = self.bound[x] * self.bound[y]
        return math.inf if math.isnan(product) else product

    def _relate(self, step: Step, output: int) -> None:
        """Keep which values `output` renames, dominates, or is the reciprocal of."""
        kind, slots = step.kind, self._slots(step, "x")
        if not slots:
            return
        if kind in _ALIASES:
            self._alias[output] = self._alias[slots[0]]
        if kind in ("abs", "reduce_l1_norm"):
            self._dominated[output] = {self._alias[slots[0]]}
        for slot in self._raised(step):
            self._dominated.setdefault(output, set()).update(self._dominated.get(slot, ()))
        reciprocal = self._inverted(step)
        if reciprocal is not None:
            self._reciprocal[output] = reciprocal

    def _raised(self, step: Step) -> list[int]:
        """The operands that the result is at least as large as, wherever those are not negative."""
        both = self._slots(step, "x", "y")
        if step.kind in (*_SHAPES, "reduce_max", "maximum"):
            return both
        if step.kind == "clip":
            high = self.parameter(step, "beta")
            return both if high is not None and high >= FP16_MAX else []
        least = {"add": 0.0, "mul": 1.0}.get(step.kind)
        if least is None or len(both) != 2:
            return []
        constants = [self.constant(s) for s in both]
        return [s for s, c in zip(both, constants[::-1], strict=True) if c is not None and c >= least]

    def _inverted(self, step: Step) -> tuple[int, float] | None:
        """The divisor's slot and the magnitude of the numerator, if the result is constant / divisor."""
        both = self._slots(step, "x", "y")
        if step.kind == "inverse":
            return both[0], 1.0
        if step.kind == "real_div" and len(both) == 2:
            numerator = self.constant(both[0])
            return None if numerator is None else (both[1], abs(numerator))
        return self._reciprocal.get(both[0]) if step.kind in _SHAPES else None


def elements(function: Function, slot: int, axes: torch.Tensor | None) -> int | None:
    """How many elements a reduction of `slot` over `axes` (None: all) takes together, None if unknown."""
    kind = function.slot_types[slot]
    if not isinstance(kind, TensorType) or kind.size is None:
        return None
    shape = [d or 0 for d in kind.shape]
    if axes is None:
        return math.prod(shape)
    return math.prod(shape[int(a)] for a in axes.reshape(-1))
