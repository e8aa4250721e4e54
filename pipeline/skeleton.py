"""Turns a graph into a MIL program whose weights are absent, in the memory of the graph alone.

The module is traced by `torch.jit.trace` on the meta device, where a tensor has a shape and no data. Before the
trace goes to coremltools, each parameter becomes a *tag*: one FP16 number, different for each parameter, seen at
the parameter's shape through strides of zero. coremltools carries such views along without reading them; when
the program is written, a large constant is recognised by its number and replaced by the parameter's name.

Why this way, of the two that are known to work: with weights as inputs of the graph, every `linear` becomes a
`matmul` with a stray transpose; `torch.export` with stride-0 tensors keeps `linear`, but takes minutes where the
meta trace takes seconds, and needs the deduplication pass removed. Distinct tags need neither, and a pass that
computes with a weight (folds, transposes, slices it) cannot go unnoticed: number or shape no longer fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import coremltools as ct
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.backend.mil.load import (
        MILProtoExporter,
        create_file_value_tensor,
        types_to_proto_primitive,
    )
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline, PassPipelineManager
    from coremltools.proto import MIL_pb2

from pipeline.errors import PipelineError
from pipeline.splice import CONSTANT, WEIGHT

_FIRST_TAG = 0x4000  # the bits of 2.0: tags are FP16 numbers from 2 up, so no pass takes one for a 0 or a 1
_LAST_TAG = 0x7BFF  # the largest finite FP16 number
_TURNS = {"aten::transpose", "aten::permute", "aten::t", "aten::movedim", "aten::mT"}
_FOLD = "10"  # elements from which a constant goes to the weight file, and from which nothing is folded


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a function: `int32` or `float16`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "int32"


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A MIL program without weights.

    In `program`, a constant's file name is `weight:NAME` for a parameter and `constant:NAME` for a computed
    table, whose values are in `constants`.
    """

    program: MIL_pb2.Program
    weights: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, npt.NDArray[np.generic]]


@register_torch_op(override=True, torch_alias=["native_layer_norm"])
def layer_norm(context, node):  # type: ignore[no-untyped-def]
    """As coremltools 9.0's, but epsilon takes the type of the weights; its own leaves it float32 and then refuses."""
    x, shape, weight, bias, epsilon, *_ = _get_inputs(context, node)
    context.add(
        Builder.layer_norm(
            x=x,
            axes=list(range(-len(shape.val), 0)),
            gamma=weight,
            beta=bias,
            epsilon=weight.val.dtype.type(epsilon.val),
            name=node.name,
        )
    )


class _Exporter(MILProtoExporter):
    """Writes names of weights where coremltools would write the weights."""

    def __init__(self, tags: Mapping[int, tuple[str, tuple[int, ...]]], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.tags, self.bound, self.constants = tags, {}, {}

    def create_file_value(self, var):  # type: ignore[no-untyped-def]
        values = var.val
        if values.dtype == np.float16 and not any(values.strides):
            tag = int(values[(0,) * values.ndim].view(np.uint16))
            name, shape = self.tags.get(tag, ("an unknown value", ()))
            if values.shape != shape:
                raise PipelineError(
                    f"a conversion pass changed weight {name} (now {list(values.shape)}): the architecture must not "
                    "compute with a weight before it is used"
                )
            self.bound[name] = shape
            reference = WEIGHT + name
        else:
            self.constants[var.name] = np.ascontiguousarray(values)
            reference = CONSTANT + var.name
        primitive = types_to_proto_primitive(var.sym_type.get_primitive())
        return create_file_value_tensor(reference, 0, values.shape, primitive)


def _place(root: nn.Module, name: str, value: Tensor, *, parameter: bool) -> None:
    *path, leaf = name.split(".")
    module = root
    for step in path:
        module = getattr(module, step)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False) if parameter else value)


def tags(parameters: Iterator[tuple[str, Tensor]]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """A different FP16 bit pattern for each parameter, with its name and shape."""
    found = {_FIRST_TAG + i: (name, tuple(p.shape)) for i, (name, p) in enumerate(parameters)}
    if max(found, default=0) > _LAST_TAG:
        raise PipelineError(
            f"the graph has {len(found)} parameters, more than there are tags for; cut it into parts"
        )
    return found


def skeleton(
    module: nn.Module, tables: Mapping[str, Tensor], inputs: list[Input], output: tuple[str, str], target: str
) -> Skeleton:
    """Trace a module made on the meta device and make its MIL program.

    `tables`: values of its buffers; `output`: name and type (`float16` or `float32`); `target`: oldest system.
    Every parameter of the module must appear in the program unchanged, or this is an error.
    """
    module = module.half().eval()
    # A float input is traced as float32 and cast inside: coremltools' TorchScript front end makes float32 of FP16
    # inputs, and of every weight that meets them.
    types = {"int32": torch.int32, "float16": torch.float32}
    example = tuple(torch.zeros(i.shape, dtype=types[i.dtype], device="meta") for i in inputs)
    with torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)
    tagged = tags(module.named_parameters())
    for bits, (name, shape) in tagged.items():
        value = torch.from_numpy(np.array([bits], np.uint16).view(np.float16))
        _place(traced, name, value.expand(shape), parameter=True)
    for name, value in tables.items():
        _place(traced, name, value.half() if value.is_floating_point() else value, parameter=False)
    deployment = getattr(ct.target, target)
    passes = PassPipeline()
    passes.set_options("common::const_elimination", {"skip_const_by_size": _FOLD})
    if not any(node.kind() in _TURNS for node in traced.inlined_graph.nodes()):
        # It would compare each weight with itself, element by element: 600 MB for the table of an 8B.
        passes.remove_passes({"common::reduce_transposes"})
    # coremltools draws a progress bar for each pass; the stage has one of its own.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = ct.convert(
            traced,
            convert_to="milinternal",
            inputs=[ct.TensorType(i.name, shape=i.shape, dtype=getattr(np, i.dtype)) for i in inputs],
            outputs=[ct.TensorType(output[0], dtype=getattr(np, output[1]))],
            minimum_deployment_target=deployment,
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=passes,
        )
        backend = PassPipeline.get_pipeline("backend_mlprogram")
        backend.set_options_by_another_pipeline(passes)
        PassPipelineManager.apply_pipeline(program, backend)
    exporter = _Exporter(tagged, prog=program, weights_dir="", specification_version=deployment.value)
    exported = exporter.export()
    if lost := [name for name, _ in tagged.values() if name not in exporter.bound]:
        raise PipelineError(
            f"the conversion lost {len(lost)} weights, {lost[0]} first: the architecture does not use them as they are"
        )
    return Skeleton(exported, exporter.bound, exporter.constants)
