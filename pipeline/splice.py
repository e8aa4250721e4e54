"""Joins traced pieces into the program of a package: a span of layers, with the table before or the head after it.

Works on MIL's protobuf. A layer's operations are copied once a layer, their values renamed, their weights pointed
at that layer's; constants that are no weights stand once. Joining 36 layers takes milliseconds, tracing them minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from coremltools.proto import MIL_pb2

from pipeline.graph import weight_name

WEIGHT = "weight:"
CONSTANT = "constant:"


@dataclasses.dataclass(frozen=True)
class Span:
    """What a package holds: layers `start` to `stop`, the table before them, the head after them."""

    start: int
    stop: int
    table: bool = False
    head: bool = False


def hidden(layer: int) -> str:
    """The feature between two packages: hidden states after so many layers.

    Core ML does not take one name for an input and an output, and a name that counts layers shows a wrong order.
    """
    return f"hidden_{layer}"


def splice(pieces: Mapping[str, MIL_pb2.Program], span: Span, depth: int) -> MIL_pb2.Function:
    """The function of one package.

    `pieces` holds `table`, `mask`, `layer` and `head`; `depth` is how many last layers the head takes. Inputs are
    `input_ids` or `hidden_N`, and `attention_mask`; the output is `embedding` or `hidden_N`.
    """
    joined = _Joined(pieces["layer"])
    ids, mask = _only(pieces["table"]).inputs[0], _only(pieces["mask"]).inputs[0]
    states = [hidden(span.start)]
    if span.table:
        joined.function.inputs.add().CopyFrom(ids)
        states = [joined.add("table", pieces["table"], [ids.name])]
    else:
        value = joined.function.inputs.add(name=states[0])
        value.type.CopyFrom(_only(pieces["layer"]).inputs[0].type)
    joined.function.inputs.add().CopyFrom(mask)
    if span.start < span.stop:
        additive = joined.add("mask", pieces["mask"], [mask.name])
    for layer in range(span.start, span.stop):
        states.append(joined.add("layer", pieces["layer"], [states[-1], additive], layer))
    if span.head:
        last = states[: -1 - depth : -1]
        joined.end(joined.add("head", pieces["head"], [mask.name, *last]), "embedding")
    else:
        joined.end(states[-1], hidden(span.stop))
    return joined.function


def values(function: MIL_pb2.Function) -> Iterator[tuple[MIL_pb2.Operation, MIL_pb2.Value]]:
    """The operations of a function that stand for a stored array, with the value to fill in."""
    for block in function.block_specializations.values():
        for operation in block.operations:
            if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue"):
                yield operation, operation.attributes["val"]


def _only(program: MIL_pb2.Program) -> MIL_pb2.Function:
    return program.functions["main"]


def _block(function: MIL_pb2.Function) -> MIL_pb2.Block:
    (block,) = function.block_specializations.values()
    return block


class _Joined:
    """A function that grows by pieces."""

    def __init__(self, like: MIL_pb2.Program) -> None:
        template = _only(like)
        (opset,) = template.block_specializations
        self.function = MIL_pb2.Function(opset=template.opset)
        self.block = self.function.block_specializations[opset]
        self.constants: set[str] = set()

    def add(self, piece: str, program: MIL_pb2.Program, given: list[str], layer: int = 0) -> str:
        """Copy a piece's operations; `given` names its inputs. Gives the name of its output."""
        function = _only(program)
        block = _block(function)
        names = dict(zip((i.name for i in function.inputs), given, strict=True))
        scope = f"layer_{layer}_" if piece == "layer" else f"{piece}_"
        for operation in block.operations:
            reference = _reference(operation)
            shared = operation.type == "const" and not reference.startswith(WEIGHT)
            for output in operation.outputs:
                names[output.name] = f"{piece if shared else scope.removesuffix('_')}_{output.name}"
            if shared and names[operation.outputs[0].name] in self.constants:
                continue
            copy = self.block.operations.add()
            copy.CopyFrom(operation)
            self._rename(copy, names)
            if shared:
                self.constants.add(copy.outputs[0].name)
            if reference.startswith(WEIGHT):
                own = weight_name(piece, reference.removeprefix(WEIGHT), layer)
                copy.attributes["val"].blobFileValue.fileName = WEIGHT + own
            elif reference:
                copy.attributes[
                    "val"
                ].blobFileValue.fileName = f"{CONSTANT}{piece}/{reference.removeprefix(CONSTANT)}"
        return names[block.outputs[0]]

    @staticmethod
    def _rename(operation: MIL_pb2.Operation, names: Mapping[str, str]) -> None:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.HasField("name"):
                    binding.name = names[binding.name]
        for output in operation.outputs:
            output.name = names[output.name]
        operation.attributes["name"].immediateValue.tensor.strings.values[0] = operation.outputs[0].name

    def end(self, last: str, output: str) -> None:
        """Make a value, which nothing else uses, the function's output under the name of a feature."""
        operation = next(o for o in reversed(self.block.operations) if o.outputs[0].name == last)
        operation.outputs[0].name = output
        operation.attributes["name"].immediateValue.tensor.strings.values[0] = output
        self.block.outputs.append(output)


def _reference(operation: MIL_pb2.Operation) -> str:
    if operation.type != "const" or not operation.attributes["val"].HasField("blobFileValue"):
        return ""
    name: str = operation.attributes["val"].blobFileValue.fileName
    return name
