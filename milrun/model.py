"""The loaded model: functions, states and `predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from milrun.errors import InputError, PackageError
from milrun.executor import Executor, Observer, State
from milrun.features import Feature, check_names, default_tensor, input_tensor, read_feature
from milrun.images import tensor_to_image
from milrun.ops.registry import Numerics
from milrun.package import Package, check_kind, read_package
from milrun.plan import Function
from milrun.program import plan_functions
from milrun.types import DTYPES, StateType, TensorType, ValueType

if TYPE_CHECKING:
    from pathlib import Path


class Model:
    """An ML Program ready to run. Made by `milrun.load`."""

    def __init__(self, package: Package, numerics: Numerics) -> None:
        self.package, self.numerics = package, numerics
        self.functions = plan_functions(package, numerics)
        description = package.spec.description
        self.default_function = description.defaultFunctionName or "main"
        per_function = {f.name: f for f in description.functions} or {self.default_function: description}
        if self.default_function not in self.functions:
            raise PackageError(
                f"{package.path.name}: default function {self.default_function!r} is not among "
                f"{sorted(self.functions)}."
            )
        self.inputs: dict[str, dict[str, Feature]] = {}
        self.outputs: dict[str, dict[str, Feature]] = {}
        for name, function in self.functions.items():
            message = per_function.get(name)
            if message is None:
                raise PackageError(f"{package.path.name}: function {name!r} has no description.")
            self.inputs[name] = {f.name: read_feature(f) for f in message.input}
            self.outputs[name] = {f.name: read_feature(f) for f in message.output}
            _check_description(package.path.name, function, self.inputs[name], self.outputs[name])

    def make_state(self, function: str | None = None) -> dict[str, State]:
        """Fresh (zero) state buffers of a function, by name."""
        kinds = self.function(function).inputs
        return {n: State(k.wrapped) for n, k in kinds.items() if isinstance(k, StateType)}

    def function(self, name: str | None) -> Function:
        """A function by name; the default one for None.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        name = name or self.default_function
        if name not in self.functions:
            raise InputError(
                f"The model has no function {name!r}; its functions are {sorted(self.functions)}."
            )
        return self.functions[name]

    def predict(
        self,
        inputs: dict[str, Any],
        function: str | None = None,
        *,
        state: dict[str, State] | None = None,
        observer: Observer | None = None,
    ) -> dict[str, Any]:
        """Run a function.

        Parameters
        ----------
        inputs
            Arrays (or PIL images for image inputs) by input name, of exactly the declared shapes.
        function
            Which function of a multifunction program; the default one for None.
        state
            Buffers of `make_state`, changed by the call. A stateful function called without any
            starts from zeros and forgets them.
        observer
            Called after each operation with its step and results.

        Returns
        -------
        dict
            Outputs by name: numpy arrays of the declared types; of a classifier also a label and a
            dictionary of probabilities.

        Raises
        ------
        InputError
            If an input is missing, unknown, or of a shape that the model doesn't accept.
        ExecutionError
            If an operation fails; the message says which.
        """
        plan = self.function(function)
        features = self.inputs[plan.name]
        check_names(inputs, features)
        states = state if state is not None else self.make_state(plan.name)
        values: list[Any] = []
        for name, kind in plan.inputs.items():
            if isinstance(kind, StateType):
                if name not in states:
                    raise InputError(f"State {name!r} is missing; use make_state().")
                values.append(states[name])
                continue
            given = inputs[name] if name in inputs else default_tensor(features[name], kind)
            values.append(input_tensor(given, features[name], kind, fp32=self.numerics.fp32))
        results = Executor(plan, observer).run(values)
        named = dict(zip(plan.outputs, results, strict=True))
        return {n: _result(named[n], plan.outputs[n], f) for n, f in self.outputs[plan.name].items()}


class Pipeline:
    """Models run one after another, each taking what the ones before it gave."""

    def __init__(self, package: Package, numerics: Numerics) -> None:
        self.package = package
        message = package.spec
        kind = message.WhichOneof("Type")
        inner = message.pipeline if kind == "pipeline" else getattr(message, kind).pipeline
        if not inner.models:
            raise PackageError(f"{package.path.name}: a pipeline without models.")
        for index, spec in enumerate(inner.models):
            check_kind(spec, f"{package.path.name}, model {index} of the pipeline,")
        self.models = [load_package(package.with_spec(spec), numerics) for spec in inner.models]
        self.inputs = {"main": {f.name: read_feature(f) for f in message.description.input}}
        self.outputs = {"main": {f.name: read_feature(f) for f in message.description.output}}
        self.default_function = "main"
        self._check()

    def _check(self) -> None:
        known = set(self.inputs["main"])
        for index, model in enumerate(self.models):
            needed = {n for n, f in model.inputs[model.default_function].items() if not f.optional}
            if needed - known:
                raise PackageError(
                    f"{self.package.path.name}: model {index} of the pipeline needs "
                    f"{sorted(needed - known)}, "
                    f"which nothing before it gives (known: {sorted(known)})."
                )
            known |= set(model.outputs[model.default_function])
        if set(self.outputs["main"]) - known:
            raise PackageError(
                f"{self.package.path.name}: outputs {sorted(set(self.outputs['main']) - known)} "
                "come from no model."
            )

    def make_state(self, function: str | None = None) -> dict[str, State]:
        """Fresh state buffers of all models."""
        return {n: s for model in self.models for n, s in model.make_state(function).items()}

    def predict(
        self,
        inputs: dict[str, Any],
        function: str | None = None,
        *,
        state: dict[str, State] | None = None,
        observer: Observer | None = None,
    ) -> dict[str, Any]:
        """Run all models; parameters and results as for `Model.predict`."""
        if function not in (None, "main"):
            raise InputError(f"A pipeline has no function {function!r}.")
        check_names(inputs, self.inputs["main"])
        values = dict(inputs)
        for model in self.models:
            names = model.inputs[model.default_function]
            given = {n: values[n] for n in names if n in values}
            values.update(model.predict(given, state=state, observer=observer))
        return {n: values[n] for n in self.outputs["main"]}


def load_package(package: Package, numerics: Numerics) -> Model | Pipeline:
    """Load what a package holds."""
    if package.spec.WhichOneof("Type") == "mlProgram":
        return Model(package, numerics)
    return Pipeline(package, numerics)


def load(
    path: str | Path,
    *,
    precision: Literal["declared", "fp32"] = "declared",
    accumulate: Literal["fp32", "fp16"] = "fp32",
    keep_weights: bool = False,
    threads: int | None = None,
) -> Model | Pipeline:
    """Load a `.mlpackage` and check all of it.

    Parameters
    ----------
    path
        The package folder.
    precision
        `declared` stores each operation's result in the type that the program declares; `fp32`
        computes and stores everything floating in FP32.
    accumulate
        `fp32`: sums inside an operation are FP32, the result rounded once. `fp16`: sums are rounded
        after every term, in order: pessimistic, and slow.
    keep_weights
        Keep decoded weights of matrix products in memory for repeated runs, instead of decoding
        them each time.
    threads
        Number of torch threads, for the whole process; None leaves it as it is.

    Raises
    ------
    PackageError
        If the package is incomplete or corrupt.
    UnsupportedModelError
        If it holds no ML Program.
    UnsupportedOperationError
        If the program uses an operation without a kernel: all are listed, with their places.
    """
    if precision not in ("declared", "fp32") or accumulate not in ("fp32", "fp16"):
        raise InputError(f"precision {precision!r} or accumulate {accumulate!r} is unknown.")
    if threads is not None:
        torch.set_num_threads(threads)
    numerics = Numerics(precision == "fp32", accumulate == "fp16", keep_weights)
    return load_package(read_package(path), numerics)


def to_numpy(value: Any, kind: ValueType) -> Any:
    """A result as numpy array of its declared type (FP32 where everything is computed so)."""
    if not isinstance(value, Tensor):
        return value
    array = value.contiguous().numpy()
    if isinstance(kind, TensorType) and kind.dtype.wraps:
        return array.astype(kind.dtype.storage)
    return array.copy()


def _result(value: Any, kind: ValueType, feature: Feature) -> Any:
    result = to_numpy(value, kind)
    return tensor_to_image(result, feature) if feature.kind == "image" else result


def _check_description(
    name: str, function: Function, inputs: dict[str, Feature], outputs: dict[str, Feature]
) -> None:
    tensors = {n for n, k in function.inputs.items() if not isinstance(k, StateType)}
    if tensors != set(inputs):
        raise PackageError(
            f"{name}: function {function.name!r} takes {sorted(tensors)}, the description says "
            f"{sorted(inputs)}."
        )
    absent = set(outputs) - set(function.outputs)
    if absent:
        raise PackageError(
            f"{name}: function {function.name!r} doesn't give {sorted(absent)}, which the "
            "description promises."
        )
    for feature in inputs.values():
        kind = function.inputs[feature.name]
        if feature.dtype is not None and feature.dtype not in DTYPES:
            raise PackageError(f"{name}: input {feature.name!r} has an unknown type.")
        if not isinstance(kind, TensorType):
            raise PackageError(f"{name}: input {feature.name!r} is declared as {kind}.")
