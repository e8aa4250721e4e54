"""From protobuf to plan: every operation resolved, every reference and type checked, before any runs.

The result is `milrun.plan`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import milrun.ops  # noqa: F401 - registers the kernels
from milrun import constexpr
from milrun.arguments import converter, is_static, static_value
from milrun.errors import MilrunError, PackageError, UnsupportedOperationError
from milrun.liveness import assign_frees
from milrun.ops.registry import MAX_BYTES, Context, Kernel, Numerics, find
from milrun.plan import Block, Function, Step
from milrun.types import TensorType, ValueType, type_from_proto
from milrun.values import read_value
from milrun.weights import Weight

if TYPE_CHECKING:
    from milrun.package import Package

_OPSETS = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18, "CoreML9": 26}
CONTROL = {"cond": 2, "while_loop": 2}
_MAX_DEPTH = 40


class _Scope:
    """Names visible in a block: its own, then those of the blocks around it."""

    def __init__(self, outer: _Scope | None) -> None:
        self.outer, self.own = outer, dict[str, int]()

    def find(self, name: str) -> int | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.own:
                return scope.own[name]
            scope = scope.outer
        return None


class Planner:
    """Plans one function of a program."""

    def __init__(self, package: Package, numerics: Numerics) -> None:
        self.package, self.numerics = package, numerics
        self.generator = torch.Generator()
        self.values: list[Any] = []
        self.names: list[str] = []
        self.types: list[ValueType] = []
        self.unsupported: list[str] = []
        self.opset = 15
        self._blobs: dict[tuple[str, int, str], Weight] = {}

    def plan(self, name: str, message: Any) -> Function:
        """Plan the function `name`.

        Raises
        ------
        PackageError
            If the program is not well formed.
        UnsupportedOperationError
            Listing every operation without a kernel, with function, block and name.
        """
        if message.opset not in message.block_specializations:
            raise PackageError(f"Function {name!r} has no block for its opset {message.opset!r}.")
        if message.opset not in _OPSETS:
            raise PackageError(
                f"Function {name!r}: unknown opset {message.opset!r}; known are {sorted(_OPSETS)}."
            )
        self.opset = _OPSETS[message.opset]
        scope = _Scope(None)
        inputs: dict[str, ValueType] = {}
        slots = []
        for value in message.inputs:
            inputs[value.name] = type_from_proto(value.type)
            slots.append(self._define(scope, value.name, inputs[value.name], None))
        block = self._block(message.block_specializations[message.opset], scope, name, slots, 0)
        if self.unsupported:
            raise UnsupportedOperationError(
                f"{self.package.path.name} uses operations that milrun cannot run: "
                + "; ".join(self.unsupported)
            )
        outputs = {
            n: self.types[s]
            for n, s in zip(message.block_specializations[message.opset].outputs, block.outputs, strict=True)
        }
        assign_frees(block, set(block.outputs), {i for i, v in enumerate(self.values) if v is not None})
        return Function(
            name, self.opset, inputs, slots, outputs, block, self.values, self.names, self.types,
            self.numerics, self.generator,
        )  # fmt: skip

    def _define(self, scope: _Scope, name: str, kind: ValueType, value: Any) -> int:
        if not name:
            raise PackageError("A value has no name.")
        if isinstance(kind, TensorType) and (kind.size or 0) * max(1, kind.dtype.bits // 8) > MAX_BYTES:
            raise PackageError(f"Value {name!r} is declared as {kind}: more than {MAX_BYTES} bytes.")
        scope.own[name] = len(self.values)
        self.values.append(value)
        self.names.append(name)
        self.types.append(kind)
        return len(self.values) - 1

    def _block(self, message: Any, scope: _Scope, where: str, inputs: list[int], depth: int) -> Block:
        if depth > _MAX_DEPTH:
            raise PackageError(f"{where}: blocks nested deeper than {_MAX_DEPTH}.")
        steps = []
        for operation in message.operations:
            step = self._operation(operation, scope, where, depth)
            if step is not None:
                steps.append(step)
        outputs = []
        for name in message.outputs:
            slot = scope.find(name)
            if slot is None:
                raise PackageError(f"{where}: block output {name!r} is not defined.")
            outputs.append(slot)
        return Block(inputs, outputs, steps)

    def _operation(self, message: Any, scope: _Scope, where: str, depth: int) -> Step | None:
        name = _operation_name(message)
        place = f"{where}/{name} ({message.type})"
        try:
            types = [(o.name, type_from_proto(o.type)) for o in message.outputs]
            if message.type == "const":
                self._const(message, types, scope)
                return None
            if message.type.startswith("constexpr_"):
                self._constexpr(message, types, scope)
                return None
            if message.type in CONTROL:
                return self._control(message, types, scope, place, name, depth)
            kernel = find(message.type, self.opset)
            if kernel is None:
                self.unsupported.append(place)
                for output, kind in types:
                    self._define(scope, output, kind, None)
                return None
            return self._step(kernel, message, types, scope, place, name)
        except PackageError as error:
            if str(error).startswith(where):
                raise
            raise PackageError(f"{place}: {error}") from None

    def _const(self, message: Any, types: list[tuple[str, ValueType]], scope: _Scope) -> None:
        if len(types) != 1 or "val" not in message.attributes:
            raise PackageError("a const must have one output and a value")
        value = self._value(message.attributes["val"])
        declared = types[0][1]
        if isinstance(value, Weight) and isinstance(declared, TensorType):
            if value.type.dtype is not declared.dtype or not declared.accepts(value.shape):
                raise PackageError(f"a const declared as {declared} holds {value.type}")
            declared = value.type
        self._define(scope, types[0][0], declared, value)

    def _constexpr(self, message: Any, types: list[tuple[str, ValueType]], scope: _Scope) -> None:
        values = {k: self._value(v) for k, v in message.attributes.items() if k != "name"}
        for name, argument in message.inputs.items():
            if len(argument.arguments) != 1:
                raise PackageError(f"parameter {name!r} must have one value")
            values[name] = self._binding(argument.arguments[0], scope)[1]
        cast_to = values.pop("output_dtype", None)
        params: dict[str, Weight] = {}
        for name, value in values.items():
            if not isinstance(value, Weight):
                raise PackageError(f"parameter {name!r} must be a constant tensor")
            params[name] = value
        declared = []
        for _, kind in types:
            if not isinstance(kind, TensorType):
                raise PackageError(f"a compressed constant can't be a {kind}")
            declared.append(kind)
        for (name, kind), weight in zip(
            types, constexpr.build(message.type, params, declared, cast_to), strict=True
        ):
            self._define(scope, name, kind, weight)

    def _value(self, message: Any) -> Any:
        if message.WhichOneof("value") == "blobFileValue":
            key = (message.blobFileValue.fileName, message.blobFileValue.offset, str(message.type))
            if key not in self._blobs:
                value = read_value(message, self.package)
                assert isinstance(value, Weight)  # noqa: S101 - a stored value is always a tensor
                self._blobs[key] = value
            return self._blobs[key]
        return read_value(message, self.package)

    def _binding(self, message: Any, scope: _Scope) -> tuple[int | None, Any]:
        if message.WhichOneof("binding") == "value":
            return None, self._value(message.value)
        slot = scope.find(message.name)
        if slot is None:
            raise PackageError(f"value {message.name!r} is used before it is defined, or nowhere defined")
        return slot, self.values[slot]

    def _control(
        self,
        message: Any,
        types: list[tuple[str, ValueType]],
        scope: _Scope,
        place: str,
        name: str,
        depth: int,
    ) -> Step:
        if len(message.blocks) != CONTROL[message.type]:
            raise PackageError(f"needs {CONTROL[message.type]} blocks, has {len(message.blocks)}")
        parameter = "pred" if message.type == "cond" else "loop_vars"
        if set(message.inputs) != {parameter}:
            raise PackageError(f"needs the parameter {parameter!r}, has {sorted(message.inputs)}")
        captured, arguments = [], []
        for binding in message.inputs[parameter].arguments:
            slot, value = self._binding(binding, scope)
            if slot is None:
                slot = self._define(_Scope(None), f"{name}_literal", value.type, value)
            captured.append(slot)
            arguments.append(slot)
        blocks = []
        for index, block in enumerate(message.blocks):
            inner = _Scope(scope)
            inputs = [self._define(inner, v.name, type_from_proto(v.type), None) for v in block.inputs]
            if len(inputs) != (len(arguments) if message.type == "while_loop" else 0):
                raise PackageError(f"block {index} takes {len(inputs)} values")
            blocks.append(self._block(block, inner, f"{place}[{index}]", inputs, depth + 1))
        bodies = blocks[1:] if message.type == "while_loop" else blocks
        if any(len(b.outputs) != len(types) for b in bodies):
            raise PackageError("a block's number of results is not the operation's")
        outputs = [self._define(scope, n, t, None) for n, t in types]
        return Step(
            message.type, name, place, outputs, tuple(t for _, t in types), blocks=blocks, captured=captured,
            dynamic=[(0, arguments, lambda v: v)], parameters={parameter: arguments},
        )  # fmt: skip

    def _step(
        self,
        kernel: Kernel,
        message: Any,
        types: list[tuple[str, ValueType]],
        scope: _Scope,
        place: str,
        name: str,
    ) -> Step:
        known = {p.name for p in kernel.parameters if p.kind != "ctx"}
        unknown = set(message.inputs) - known
        if unknown:
            raise PackageError(f"unknown parameters {sorted(unknown)}; known are {sorted(known)}")
        upcast = not kernel.native or self.numerics.fp32
        step = Step(message.type, name, place, [], tuple(t for _, t in types), function=kernel.function)
        half = bool(types) and isinstance(types[0][1], TensorType) and types[0][1].dtype.name == "fp16"
        context = Context(
            message.type, self.opset, step.types, self.numerics, half and not self.numerics.fp32,
            frozenset(message.inputs), self.generator,
        )  # fmt: skip
        for position, parameter in enumerate(kernel.parameters):
            if parameter.kind == "ctx":
                step.template.append(context)
                continue
            if parameter.name not in message.inputs or not message.inputs[parameter.name].arguments:
                if parameter.required:
                    raise PackageError(f"parameter {parameter.name!r} is missing")
                step.template.append(parameter.default)
                continue
            bound = [self._binding(b, scope) for b in message.inputs[parameter.name].arguments]
            step.parameters[parameter.name] = [s for s, _ in bound if s is not None]
            step.weights += [v for _, v in bound if isinstance(v, Weight)]
            self._argument(step, position, parameter.kind, bound, upcast=upcast)
        step.outputs = [self._define(scope, n, t, None) for n, t in types]
        return step

    def _argument(
        self, step: Step, position: int, kind: str, bound: list[tuple[int | None, Any]], *, upcast: bool
    ) -> None:
        several = kind in ("tensors", "ints", "bools", "strs") and (kind == "tensors" or len(bound) > 1)
        if len(bound) > 1 and not several:
            raise PackageError(f"{len(bound)} values for a parameter that takes one")
        convert = converter(kind, upcast=upcast, several=several)
        raw = [v for _, v in bound]
        if all(is_static(v, kind) for v in raw):
            step.template.append(static_value(convert, raw if several else raw[0]))
            return
        step.template.append(None)
        slots = []
        for slot, value in bound:
            slots.append(
                slot if slot is not None else self._define(_Scope(None), "literal", value.type, value)
            )
        step.dynamic.append((position, slots if several else slots[0], convert))


def _operation_name(message: Any) -> str:
    if "name" in message.attributes:
        strings = message.attributes["name"].immediateValue.tensor.strings.values
        if strings:
            return str(strings[0])
    return str(message.outputs[0].name) if message.outputs else "unnamed"


def plan_functions(package: Package, numerics: Numerics) -> dict[str, Function]:
    """Plan every function of a package's program, by name."""
    functions = {}
    program = package.spec.mlProgram
    if not program.functions:
        raise PackageError(f"{package.path.name}: the program has no functions.")
    for name in sorted(program.functions):
        try:
            functions[name] = Planner(package, numerics).plan(name, program.functions[name])
        except MilrunError:
            raise
        except (
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
            RuntimeError,
            OverflowError,
        ) as error:
            raise PackageError(f"{package.path.name}: function {name!r} is malformed ({error}).") from error
    return functions
