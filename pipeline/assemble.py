"""Joins programs without weights and a stream of weights into `.mlpackage`s with canonical bytes.

All sizes are known before the first weight is read, so `weight.bin` is laid out first and filled a block of rows
at a time: the peak of memory is one block, whatever the model. All functions of a package point at the same
weights. The same inputs give the same bytes: no dates, no random ids, deterministic protobuf.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2, Model_pb2
from safetensors.numpy import load_file
from tqdm import tqdm

from corembed.release import Function
from pipeline.blob import Blob, Writer
from pipeline.checkpoint import Checkpoint
from pipeline.encodings import Encoding, arguments, make
from pipeline.errors import PipelineError
from pipeline.files import read_json, staged_folder, write_json
from pipeline.params import Variant
from pipeline.skeleton import CONSTANT, WEIGHT, ct

_WEIGHTS = "@model_path/weights/weight.bin"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/corembed/corembed/mlpackage")


class Part:
    """The traced programs of one part of a model, and where its weights come from."""

    def __init__(
        self, traced: Path, record: Mapping[str, Any], functions: list[Function], target: str
    ) -> None:
        """Read the programs; `record` is the part's entry in `trace.json`."""
        self.weights: Mapping[str, Any] = record["weights"]
        self.record, self.functions, self.target = record, functions, target
        folder = traced / record["folder"]
        self.constants = load_file(folder / "constants.safetensors")
        self.programs = {}
        for function in functions:
            program = MIL_pb2.Program()
            program.ParseFromString((folder / f"{function.name}.mil").read_bytes())
            self.programs[function.name] = program


def _values(program: MIL_pb2.Program) -> Iterator[tuple[MIL_pb2.Operation, MIL_pb2.Value]]:
    """The operations of a program that stand for a stored array, with the value to fill in."""
    for block in program.functions["main"].block_specializations.values():
        for operation in block.operations:
            if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue"):
                yield operation, operation.attributes["val"]


class Plan:
    """Which arrays a package stores, in which order, and how each weight is encoded."""

    def __init__(self, part: Part, variant: Variant) -> None:
        """Walk the programs once; weights are stored in the order of their first use."""
        self.part = part
        self.blobs: list[Blob] = []
        self.encodings: dict[str, Encoding] = {}
        self.slots: dict[str, dict[str, int]] = {}
        for name, program in part.programs.items():
            for _, value in _values(program):
                self._add(name, value.blobFileValue.fileName, variant)

    def _add(self, function: str, reference: str, variant: Variant) -> None:
        key = slot(function, reference)
        if key in self.slots:
            return
        if reference.startswith(WEIGHT):
            weight = self.part.weights[key.removeprefix(WEIGHT)]
            encoding = make(variant.scheme(weight["kind"]), self.part.target)
            self.encodings[key] = encoding
            blobs = arguments(encoding, tuple(weight["shape"]))
        else:
            values = self.part.constants[key.removeprefix(CONSTANT)]
            blobs = {"val": Blob(str(values.dtype), values.shape)}
        self.slots[key] = {argument: len(self.blobs) + i for i, argument in enumerate(blobs)}
        self.blobs += blobs.values()


def slot(function: str, reference: str) -> str:
    """The key of a stored array: weights are shared by all functions, tables belong to one."""
    if reference.startswith(CONSTANT):
        return f"{CONSTANT}{function}/{reference.removeprefix(CONSTANT)}"
    return reference


def write_weights(plan: Plan, checkpoint: Path, path: Path, label: str) -> list[int]:
    """Stream all arrays of a plan into `weight.bin`; gives the offset of each."""
    opened: dict[str, Checkpoint] = {}
    progress = tqdm(
        total=sum(b.bytes for b in plan.blobs), desc=label, unit="B", unit_scale=True, disable=None
    )
    with Writer(path, plan.blobs) as writer:
        for key, places in plan.slots.items():
            for argument, data in _stream(plan, key, checkpoint, opened):
                writer.append(places[argument], data)
                progress.update(len(data))
    progress.close()
    return writer.offsets


def _stream(
    plan: Plan, key: str, checkpoint: Path, opened: dict[str, Checkpoint]
) -> Iterator[tuple[str, bytes]]:
    if key.startswith(CONSTANT):
        yield "val", np.ascontiguousarray(plan.part.constants[key.removeprefix(CONSTANT)]).tobytes()
        return
    name = key.removeprefix(WEIGHT)
    weight = plan.part.weights[name]
    folder = weight["folder"]
    if folder not in opened:
        opened[folder] = Checkpoint(checkpoint / folder)
    tensor = opened[folder].find(weight["tensor"], tuple(weight["shape"]))
    encoding = plan.encodings[key]
    for block in opened[folder].rows(tensor, encoding.rows):
        yield from encoding.encode(weight["tensor"], block).items()


_DTYPES = {
    name: getattr(MIL_pb2, name.upper())
    for name in (
        "float16",
        "float32",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "int4",
        "uint1",
        "uint2",
        "uint4",
        "uint6",
    )
}


def _file_value(blob: Blob, offset: int) -> MIL_pb2.Value:
    value = MIL_pb2.Value(blobFileValue=MIL_pb2.Value.BlobFileValue(fileName=_WEIGHTS, offset=offset))
    _tensor_type(value.type, _DTYPES[blob.dtype], blob.shape)
    return value


def _tensor_type(target: MIL_pb2.ValueType, dtype: int, shape: tuple[int, ...]) -> None:
    target.tensorType.dataType = dtype
    target.tensorType.rank = len(shape)
    for size in shape:
        target.tensorType.dimensions.add().constant.size = size


def bind(program: MIL_pb2.Program, function: str, plan: Plan, offsets: list[int]) -> None:
    """Replace the names in a program by stored arrays, and `const` by the operation that decodes the weight."""
    for operation, value in _values(program):
        key = slot(function, value.blobFileValue.fileName)
        stored = {a: _file_value(plan.blobs[i], offsets[i]) for a, i in plan.slots[key].items()}
        encoding = plan.encodings.get(key)
        if encoding is None or encoding.operation == "const":
            value.CopyFrom(stored["val"])
            continue
        operation.type = encoding.operation
        del operation.attributes["val"]
        if plan.part.target == "iOS18":
            for argument, stored_value in stored.items():
                operation.inputs[argument].arguments.add().value.CopyFrom(stored_value)
        else:  # before iOS 18 the data of a constexpr operation are attributes
            for argument, stored_value in stored.items():
                operation.attributes[argument].CopyFrom(stored_value)
            axis = operation.attributes["axis"]
            _tensor_type(axis.type, MIL_pb2.INT32, ())
            axis.immediateValue.tensor.ints.values.append(0)


def model(plan: Plan, offsets: list[int], metadata: Mapping[str, str]) -> Model_pb2.Model:
    """The specification of a package: one function as a plain model, several as a multifunction one."""
    part = plan.part
    made = Model_pb2.Model(specificationVersion=getattr(ct.target, part.target).value)
    description = made.description
    for key, text in metadata.items():
        description.metadata.userDefined[key] = text
    description.metadata.shortDescription = metadata["corembed.summary"]
    made.mlProgram.version = 1
    several = len(part.functions) > 1
    if several and part.target != "iOS18":
        raise PipelineError(
            f"several buckets in one package need target iOS18, the model's is {part.target}; give one max_length"
        )
    if several:
        description.defaultFunctionName = part.functions[0].name
    for function in part.functions:
        program = part.programs[function.name]
        bind(program, function.name, plan, offsets)
        made.mlProgram.functions[function.name].CopyFrom(program.functions["main"])
        features = description.functions.add(name=function.name) if several else description
        _describe(features, program.functions["main"])
    return made


_ARRAYS = {
    MIL_pb2.INT32: "INT32",
    MIL_pb2.FLOAT16: "FLOAT16",
    MIL_pb2.FLOAT32: "FLOAT32",
}
_MEANING = {
    "input_ids": "Token ids, padded to the bucket's length",
    "attention_mask": "1 for a token, 0 for padding",
    "hidden": "Hidden states between two parts",
    "embedding": "One vector a text",
}


def _describe(features: Any, function: MIL_pb2.Function) -> None:
    (block,) = function.block_specializations.values()
    outputs = {o.name: o.type for operation in block.operations for o in operation.outputs}
    named = [(features.input, i.name, i.type) for i in function.inputs]
    named += [(features.output, name, outputs[name]) for name in block.outputs]
    for target, name, kind in named:
        feature = target.add(name=name, shortDescription=_MEANING[name])
        array = feature.type.multiArrayType
        array.shape.extend(d.constant.size for d in kind.tensorType.dimensions)
        array.dataType = array.ArrayDataType.Value(_ARRAYS[kind.tensorType.dataType])


def _manifest() -> str:
    items = {
        "com.apple.CoreML/model.mlmodel": ("model.mlmodel", "CoreML Model Specification"),
        "com.apple.CoreML/weights": ("weights", "CoreML Model Weights"),
    }
    entries = {
        str(uuid.uuid5(_NAMESPACE, path)).upper(): {
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": path,
        }
        for path, (name, description) in items.items()
    }
    root = str(uuid.uuid5(_NAMESPACE, "com.apple.CoreML/model.mlmodel")).upper()
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"


def write_package(plan: Plan, checkpoint: Path, out: Path, metadata: Mapping[str, str]) -> None:
    """Write one `.mlpackage` at `out`."""
    data = out / "Data" / "com.apple.CoreML"
    (data / "weights").mkdir(parents=True)
    offsets = write_weights(plan, checkpoint, data / "weights" / "weight.bin", out.name)
    made = model(plan, offsets, metadata)
    (data / "model.mlmodel").write_bytes(made.SerializeToString(deterministic=True))
    (out / "Manifest.json").write_text(_manifest(), encoding="utf-8")


def package_names(variant: str, layout: str, count: int) -> list[str]:
    """Where the packages of a variant stand in a release, in running order."""
    if layout == "single":
        return [f"{variant}.mlpackage"]
    return [f"{variant}-parts/part{number:02d}.mlpackage" for number in range(1, count + 1)]


def assemble(
    traced: Path, checkpoint: Path, variant: Variant, out: Path, metadata: Mapping[str, str]
) -> None:
    """Write all layouts of one variant into the folder `out`, which appears only when all are complete."""
    record = read_json(traced / "trace.json")
    functions = [Function(**f) for f in record["functions"]]
    with staged_folder(out) as partial:
        for layout, parts in record["layouts"].items():
            for name, entry in zip(package_names(variant.name, layout, len(parts)), parts, strict=True):
                part = Part(traced, entry, functions, record["target"])
                (partial / name).mkdir(parents=True)
                write_package(Plan(part, variant), checkpoint, partial / name, metadata)
        counts = {layout: len(parts) for layout, parts in record["layouts"].items()}
        summary = {k: record[k] for k in ("functions", "target", "dimension")} | {
            "layouts": counts,
            "metadata": metadata,
        }
        write_json(partial / "packages.json", summary)
