"""What is in a package: operations, functions, weights and how they are stored, without running it."""

from __future__ import annotations

import collections
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from milrun.model import Model, Pipeline, load
from milrun.weights import Weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from milrun.plan import Function


@dataclass(frozen=True)
class ValueInfo:
    """An input, output or state: its name and type, e.g. `int32[1, 128]`."""

    name: str
    type: str


@dataclass(frozen=True)
class OperationInfo:
    """One operation: where it stands, what it gives, and the bytes of weights it reads."""

    name: str
    kind: str
    where: str
    outputs: tuple[str, ...]
    weight_bytes: int


@dataclass(frozen=True)
class FunctionInfo:
    """One function. `operations` counts operations by kind, without constants."""

    name: str
    opset: int
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    operations: dict[str, int]
    listing: tuple[OperationInfo, ...]


@dataclass(frozen=True)
class WeightInfo:
    """One constant: `bytes` as stored, `encoding` such as `fp16`, `lut4 grouped`, `int8 per-channel`."""

    name: str
    type: str
    encoding: str
    bytes: int
    functions: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A package's contents. `weight_bytes` counts shared storage once; `layers` groups it by name."""

    path: str
    kind: str
    specification_version: int
    default_function: str
    functions: tuple[FunctionInfo, ...]
    weights: tuple[WeightInfo, ...]
    weight_bytes: int
    file_bytes: int
    encodings: dict[str, int]
    layers: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def inspect(path: str | Path) -> Inspection:
    """Read a package and say what it holds.

    Weights are those constants that a program's operations use, with at least 10 elements (smaller
    ones are never stored in the weight file). `layers` sums bytes by the number that follows
    `layer` in a weight's name, where names have one; the rest is `other`.

    Raises
    ------
    MilrunError
        As `milrun.load` does.
    """
    model = load(path)
    models = model.models if isinstance(model, Pipeline) else [model]
    functions = []
    found: dict[object, tuple[str, Weight, set[str]]] = {}
    for index, part in enumerate(flatten(models)):
        prefix = f"{index}:" if len(models) > 1 else ""
        for function in part.functions.values():
            functions.append(_function(function, prefix))
            for name, weight in constants(function):
                key = weight.identity
                found.setdefault(key, (name, weight, set()))[2].add(prefix + function.name)
    infos = tuple(
        WeightInfo(n, str(w.type), w.encoding, w.stored_bytes, tuple(sorted(f))) for n, w, f in found.values()
    )
    encodings: collections.Counter[str] = collections.Counter()
    layers: collections.Counter[str] = collections.Counter()
    for info in infos:
        encodings[info.encoding] += info.bytes
        match = re.search(r"layers?[._]?(\d+)", info.name)
        layers[match.group(1) if match else "other"] += info.bytes
    root = model.package.root
    return Inspection(
        str(path), model.package.spec.WhichOneof("Type"), model.package.spec.specificationVersion,
        model.default_function, tuple(functions), infos, sum(i.bytes for i in infos),
        sum(f.stat().st_size for f in root.rglob("*") if f.is_file()), dict(encodings), dict(layers),
    )  # fmt: skip


def flatten(models: Sequence[Model | Pipeline]) -> Iterator[Model]:
    """The programs of models, those of pipelines inside pipelines too."""
    for model in models:
        if isinstance(model, Pipeline):
            yield from flatten(model.models)
        else:
            yield model


def constants(function: Function) -> Iterator[tuple[str, Weight]]:
    """Constants that operations read, with their names; those inside others are part of them."""
    used = {id(w) for step in function.steps() for w in step.weights}
    used |= {id(function.initial[s]) for s in function.block.outputs if function.initial[s] is not None}
    for name, value in zip(function.slot_names, function.initial, strict=True):
        if isinstance(value, Weight) and value.size >= 10 and id(value) in used:
            yield name, value


def _function(function: Function, prefix: str) -> FunctionInfo:
    steps = function.steps()
    listing = tuple(
        OperationInfo(
            s.name, s.kind, s.where, tuple(str(t) for t in s.types), sum(w.stored_bytes for w in s.weights)
        )
        for s in steps
    )
    counts = dict(collections.Counter(s.kind for s in steps).most_common())
    return FunctionInfo(
        prefix + function.name,
        function.opset,
        tuple(ValueInfo(n, str(t)) for n, t in function.inputs.items()),
        tuple(ValueInfo(n, str(t)) for n, t in function.outputs.items()),
        counts,
        listing,
    )
