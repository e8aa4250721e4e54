import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

logging.getLogger("coremltools").setLevel(logging.ERROR)
torch.set_num_threads(2)

Build = Callable[..., Path]
TYPES = {"fp16": types.fp16, "fp32": types.fp32, "int32": types.int32}


def convert(path: Path, program: Any, precision: str, target: Any) -> Path:
    model = ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY if precision == "as-is" else None,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make a real package: build(function of named inputs, x=(shape, dtype), ...)."""
    count = 0

    def make(
        function: Callable[..., Any], *, target: Any = ct.target.iOS18, precision: str = "fp32", **inputs: Any
    ) -> Path:
        nonlocal count
        count += 1
        specs = [mb.TensorSpec(shape, dtype=TYPES[dtype]) for shape, dtype in inputs.values()]
        names = ", ".join(inputs)
        scope = {"function": function}
        exec(f"def body({names}):\n    return function({names})", scope)  # noqa: S102 - mb.program reads parameter names
        program = mb.program(input_specs=specs, opset_version=target)(scope["body"])
        return convert(tmp_path / f"model{count}.mlpackage", program, precision, target)

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
