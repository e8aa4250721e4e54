"""Joins programs without weights and a stream of weights into `.mlpackage`s with canonical bytes.

All sizes are known before the first weight is read, so `weight.bin` is laid out first and filled a block of rows
at a time: the peak of memory is one block, whatever the model. All functions of a package point at the same
weights. The same inputs give the same bytes: no dates, no random ids, deterministic protobuf.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from coremltools.proto import MIL_pb2, Model_pb2
from safetensors.numpy import load_file
from tqdm import tqdm

from corembed.release import Function
from pipeline.blob import Blob, Writer
from pipeline.calibration import Calibration
from pipeline.checkpoint import Checkpoint
from pipeline.cut import cut
from pipeline.encodings import Encoding, Pieces, blobs, make
from pipeline.errors import PipelineError
from pipeline.files import read_json, staged_folder, write_json
from pipeline.kept import Kept
from pipeline.params import Variant
from pipeline.places import package_names
from pipeline.skeleton import ct
from pipeline.splice import CONSTANT, WEIGHT, Span, splice, values

PIECES = ("table", "mask", "layer", "head")
_WEIGHTS = "@model_path/weights/weight.bin"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/corembed/corembed/mlpackage")


class Traced:
    """What the stage `trace` wrote: the pieces of each function, and where the weights come from."""

    def __init__(self, folder: Path) -> None:
        """Read `traced/`; its programs hold no weights."""
        self.record = read_json(folder / "trace.json")
        self.weights: Mapping[str, Any] = self.record["weights"]
        self.target: str = self.record["target"]
        self.functions = [Function(**f) for f in self.record["functions"]]
        self.constants = load_file(folder / "constants.safetensors")
        self.pieces = {
            f.name: {p: _read(folder / f.name / f"{p}.mil") for p in PIECES} for f in self.functions
        }

    def spans(self, layout: str, variant: Variant) -> list[Span]:
        """How a layout cuts the model, by the bytes of the variant."""
        count, depth = self.record["layers"], self.record["recipe"]["layers"]
        if layout == "single":
            return [Span(0, count, table=True, head=True)]
        layers, head = [0] * count, 0
        for name, weight in self.weights.items():
            size = sum(b.bytes for b in self.arguments(name, variant)[1].values())
            if name.startswith("layers."):
                layers[int(name.split(".")[1])] += size
            elif weight["piece"] == "head":
                head += size
        tables = sum({digest(v): v.nbytes for k, v in self.constants.items() if "/table/" not in k}.values())
        return cut(layers, head, tables, self.record["size_limit"], depth)

    def arguments(self, name: str, variant: Variant) -> tuple[Encoding, Mapping[str, Blob]]:
        """The encoding of a weight, and the arrays that store it."""
        weight = self.weights[name]
        encoding = make(variant.scheme(name, weight["kind"]), self.target)
        return encoding, blobs(encoding, name, tuple(weight["shape"]))


class Part:
    """The functions of one package, joined from the traced pieces."""

    def __init__(self, traced: Traced, span: Span) -> None:
        """Join the pieces of each function."""
        self.traced, self.functions, self.target = traced, traced.functions, traced.target
        self.weights, self.constants = traced.weights, traced.constants
        depth = traced.record["recipe"]["layers"]
        self.programs = {f.name: splice(traced.pieces[f.name], span, depth) for f in self.functions}


def _read(path: Path) -> MIL_pb2.Program:
    program = MIL_pb2.Program()
    program.ParseFromString(path.read_bytes())
    return program


class Plan:
    """Which arrays a package stores, in which order, and how each weight is encoded."""

    def __init__(self, part: Part, variant: Variant) -> None:
        """Walk the programs once; weights are stored in the order of their first use."""
        self.part, self.variant = part, variant
        self.blobs: list[Blob] = []
        self.encodings: dict[str, Encoding] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self.tables: dict[str, str] = {}
        self.copies: set[str] = set()
        for name, program in part.programs.items():
            for _, value in values(program):
                self._add(name, value.blobFileValue.fileName, variant)

    def _add(self, function: str, reference: str, variant: Variant) -> None:
        key = slot(function, reference)
        if key in self.slots:
            return
        if reference.startswith(WEIGHT):
            self.encodings[key], arrays = self.part.traced.arguments(key.removeprefix(WEIGHT), variant)
        else:
            table = self.part.constants[key.removeprefix(CONSTANT)]
            first = self.tables.setdefault(digest(table), key)
            if first != key:  # the functions of a length share their tables, whatever their batch
                self.slots[key] = self.slots[first]
                self.copies.add(key)
                return
            arrays = {"val": Blob(str(table.dtype), table.shape)}
        self.slots[key] = {argument: len(self.blobs) + i for i, argument in enumerate(arrays)}
        self.blobs += arrays.values()


def digest(table: npt.NDArray[np.generic]) -> str:
    """A fingerprint of a table: type, shape and values."""
    told = f"{table.dtype} {table.shape}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(table).tobytes()).hexdigest()


def slot(function: str, reference: str) -> str:
    """The key of a stored array: weights are shared by all functions, tables belong to one."""
    if reference.startswith(CONSTANT):
        return f"{CONSTANT}{function}/{reference.removeprefix(CONSTANT)}"
    return reference


def write_weights(plan: Plan, feed: Feed, path: Path, label: str) -> list[int]:
    """Stream all arrays of a plan into `weight.bin`; gives the offset of each."""
    progress = tqdm(
        total=sum(b.bytes for b in plan.blobs), desc=label, unit="B", unit_scale=True, disable=None
    )
    with Writer(path, plan.blobs) as writer:
        for key, places in plan.slots.items():
            if key in plan.copies:
                continue
            for argument, data in feed.pieces(plan, key):
                writer.append(places[argument], data)
                progress.update(len(data))
    progress.close()
    return writer.offsets


class Feed:
    """Where the values of weights come from: a checkpoint, what an earlier run encoded, and calibration."""

    def __init__(self, checkpoint: Path, kept: Kept, calibration: Calibration | None = None) -> None:
        self.checkpoint, self.kept, self.calibration = checkpoint, kept, calibration
        self.opened: dict[str, Checkpoint] = {}

    def pieces(self, plan: Plan, key: str) -> Pieces:
        """The bytes of a stored array, or of the arrays of a weight, piece by piece."""
        if key.startswith(CONSTANT):
            yield "val", np.ascontiguousarray(plan.part.constants[key.removeprefix(CONSTANT)]).tobytes()
            return
        name = key.removeprefix(WEIGHT)
        weight = plan.part.weights[name]
        folder = weight["folder"]
        if folder not in self.opened:
            self.opened[folder] = Checkpoint(self.checkpoint / folder)
        tensor = self.opened[folder].find(weight["tensor"], tuple(weight["shape"]))
        read = functools.partial(self.opened[folder].rows, tensor)
        scheme, encoding = plan.variant.scheme(name, weight["kind"]), plan.encodings[key]
        if encoding.operation == "const":  # as fast to make again as to read
            for halves in self.opened[folder].halves(tensor):
                yield "val", halves
            return
        calibration = self.calibration if scheme.calibrated else None
        if scheme.calibrated and calibration is None:
            raise PipelineError(
                f"variant {plan.variant.name!r} rounds {name!r} by calibration, and there is none; "
                "run the stage calibrate of the model first"
            )

        def encode() -> Pieces:
            inputs = calibration.inputs(name) if calibration else None
            yield from encoding.stream(tensor.name, read, inputs)

        if scheme.scheme == "linear" and scheme.bits == 8 and not calibration:  # likewise
            yield from encode()
            return
        facts = plan.part.target + (calibration.fingerprint(name) if calibration else "")
        yield from self.kept.through(self.kept.key(tensor, scheme, facts), encode())


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


def _small_value(small: int | tuple[int, ...]) -> MIL_pb2.Value:
    """A whole number as int32, a shape as uint32, as coremltools writes them."""
    value = MIL_pb2.Value()
    if isinstance(small, int):
        _tensor_type(value.type, MIL_pb2.INT32, ())
        value.immediateValue.tensor.ints.values.append(small)
    else:
        _tensor_type(value.type, MIL_pb2.UINT32, (len(small),))
        value.immediateValue.tensor.bytes.values = np.array(small, "<u4").tobytes()
    return value


def _tensor_type(target: MIL_pb2.ValueType, dtype: int, shape: tuple[int, ...]) -> None:
    target.tensorType.dataType = dtype
    target.tensorType.rank = len(shape)
    for size in shape:
        target.tensorType.dimensions.add().constant.size = size


def bind(program: MIL_pb2.Function, function: str, plan: Plan, offsets: list[int]) -> None:
    """Replace the names in a program by stored arrays, and `const` by the operation that decodes the weight."""
    for operation, value in values(program):
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
            for argument, small in encoding.attributes.items():
                operation.attributes[argument].CopyFrom(_small_value(small))


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
        made.mlProgram.functions[function.name].CopyFrom(program)
        features = description.functions.add(name=function.name) if several else description
        _describe(features, program)
    return made


_ARRAYS = {
    MIL_pb2.INT32: "INT32",
    MIL_pb2.FLOAT16: "FLOAT16",
    MIL_pb2.FLOAT32: "FLOAT32",
}
_MEANING = {
    "input_ids": "Token ids, padded to the bucket's length",
    "attention_mask": "1 for a token, 0 for padding",
    "hidden": "Hidden states after so many layers",
    "embedding": "One vector a text",
}


def _describe(features: Any, function: MIL_pb2.Function) -> None:
    (block,) = function.block_specializations.values()
    outputs = {o.name: o.type for operation in block.operations for o in operation.outputs}
    named = [(features.input, i.name, i.type) for i in function.inputs]
    named += [(features.output, name, outputs[name]) for name in block.outputs]
    for target, name, kind in named:
        feature = target.add(
            name=name, shortDescription=_MEANING[name.split("_")[0] if name.startswith("hidden") else name]
        )
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


def write_package(plan: Plan, feed: Feed, out: Path, metadata: Mapping[str, str]) -> None:
    """Write one `.mlpackage` at `out`."""
    data = out / "Data" / "com.apple.CoreML"
    (data / "weights").mkdir(parents=True)
    offsets = write_weights(plan, feed, data / "weights" / "weight.bin", out.name)
    made = model(plan, offsets, metadata)
    (data / "model.mlmodel").write_bytes(made.SerializeToString(deterministic=True))
    (out / "Manifest.json").write_text(_manifest(), encoding="utf-8")


def assemble(
    traced: Path,
    checkpoint: Path,
    variant: Variant,
    out: Path,
    metadata: Mapping[str, str],
    calibration: Path | None = None,
) -> None:
    """Write all layouts of one variant into the folder `out`, which appears only when all are complete.

    `calibration` is the folder of that stage, which a variant may ask for.
    """
    made, counts = Traced(traced), {}
    feed = Feed(
        checkpoint, Kept.beside(out), Calibration(calibration) if calibration and variant.calibrated else None
    )
    variant.check_layers(made.weights)
    with staged_folder(out) as partial:
        for layout in made.record["layouts"]:
            spans = made.spans(layout, variant)
            counts[layout] = len(spans)
            for name, span in zip(package_names(variant.name, layout, len(spans)), spans, strict=True):
                (partial / name).mkdir(parents=True)
                write_package(Plan(Part(made, span), variant), feed, partial / name, metadata)
        summary = {k: made.record[k] for k in ("functions", "target", "dimension")} | {
            "layouts": counts,
            "metadata": metadata,
        }
        write_json(partial / "packages.json", summary)
    feed.kept.clear()
