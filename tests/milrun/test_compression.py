"""Compressed weights against coremltools' own decompression, form by form."""

from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

import milrun


def model(target: Any) -> ct.models.MLModel:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32)).eval()
    return ct.convert(torch.jit.trace(module, torch.zeros(1, 64)), inputs=[ct.TensorType("x", (1, 64))],
                      outputs=[ct.TensorType("y")], minimum_deployment_target=target, skip_model_load=True)  # fmt: skip


def quantize(**options: Any) -> Any:
    config = cto.coreml.OptimizationConfig(cto.coreml.OpLinearQuantizerConfig(weight_threshold=0, **options))
    return lambda m: cto.coreml.linear_quantize_weights(m, config)


def palettize(**options: Any) -> Any:
    config = cto.coreml.OptimizationConfig(cto.coreml.OpPalettizerConfig(weight_threshold=0, **options))
    return lambda m: cto.coreml.palettize_weights(m, config)


def prune(m: Any) -> Any:
    config = cto.coreml.OptimizationConfig(
        cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0)
    )
    return cto.coreml.prune_weights(m, config)


CASES = {
    "int8, iOS 16": (ct.target.iOS16, quantize(dtype="int8"), "int8 affine"),
    "uint8 asymmetric, iOS 16": (ct.target.iOS16, quantize(dtype="uint8", mode="linear"), "uint8 affine"),
    "int4 per block": (
        ct.target.iOS18,
        quantize(dtype="int4", granularity="per_block", block_size=32),
        "int4 per-block",
    ),
    "uint4 per channel": (ct.target.iOS18, quantize(dtype="uint4", mode="linear"), "uint4 per-channel"),
    "int8 per tensor": (ct.target.iOS18, quantize(dtype="int8", granularity="per_tensor"), "int8 per-tensor"),
    "palette of 6 bits, iOS 16": (ct.target.iOS16, palettize(nbits=6, mode="uniform"), "lut6"),
    "palette of 3 bits": (ct.target.iOS18, palettize(nbits=3, mode="uniform"), "lut3"),
    "grouped palettes": (
        ct.target.iOS18,
        palettize(nbits=4, mode="uniform", granularity="per_grouped_channel", group_size=16),
        "lut4 grouped",
    ),
    "sparse, iOS 16": (ct.target.iOS16, prune, "sparse fp16"),
    "sparse": (ct.target.iOS18, prune, "sparse fp16"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_compressed_model_equals_its_decompressed_self(tmp_path: Path, name: str) -> None:
    target, compress, encoding = CASES[name]
    compressed = compress(model(target))
    packed, plain = tmp_path / "packed.mlpackage", tmp_path / "plain.mlpackage"
    compressed.save(str(packed))
    cto.coreml.decompress_weights(compressed).save(str(plain))
    x = {"x": np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)}
    np.testing.assert_array_equal(milrun.load(packed).predict(x)["y"], milrun.load(plain).predict(x)["y"])
    assert any(i.startswith(encoding) for i in milrun.inspect(packed).encodings)


def test_a_gather_decodes_only_its_rows(tmp_path: Path) -> None:
    module = torch.nn.Embedding(1000, 16)
    made = ct.convert(torch.jit.trace(module, torch.zeros(1, 4, dtype=torch.int32)),
                      inputs=[ct.TensorType("x", (1, 4), np.int32)], outputs=[ct.TensorType("y")],
                      minimum_deployment_target=ct.target.iOS18, skip_model_load=True)  # fmt: skip
    path = tmp_path / "table.mlpackage"
    quantize(dtype="int8")(made).save(str(path))
    loaded = milrun.load(path)
    decoded = []
    for step in loaded.function(None).steps():
        for weight in step.weights:
            if weight.size == 16000:
                original = weight.decode
                weight.decode = lambda rows=None, f=original: decoded.append(f(rows)) or decoded[-1]  # type: ignore[method-assign]
    result = loaded.predict({"x": np.array([[1, 5, 999, 1]], np.int32)})["y"]
    assert [d.shape[0] for d in decoded] == [4]
    np.testing.assert_allclose(result[0], module.weight.detach().numpy()[[1, 5, 999, 1]], atol=0.02)


@pytest.mark.parametrize("columns", [16, 5])
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_rows_of_less_than_a_byte_a_value_are_the_rows_of_the_whole(
    tmp_path: Path, bits: int, columns: int
) -> None:
    """Rows that end at a byte and rows that do not; a range of rows, and some of them in any shape."""
    values = np.random.default_rng(0).integers(0, 2**bits, (24, columns), dtype=np.uint8)
    table = np.arange(2**bits, dtype=np.float16).reshape(1, 1, -1, 1)
    kind = {
        1: types.np_uint1_dtype,
        2: types.np_uint2_dtype,
        4: types.np_uint4_dtype,
        6: types.np_uint6_dtype,
    }

    @mb.program(input_specs=[mb.TensorSpec((1,), types.fp16)], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return mb.reduce_sum(
            x=mb.add(x=mb.constexpr_lut_to_dense(indices=values.astype(kind[bits]), lut=table), y=x), axes=[0]
        )

    path = tmp_path / "rows.mlpackage"
    ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32
    ).save(str(path))
    (weight,) = [
        w for w in milrun.load(path).function(None).initial if getattr(w, "shape", ()) == (24, columns)
    ]
    whole = weight.decode().numpy()
    some = torch.tensor([[3, 0, 23], [7, 7, 1]])

    np.testing.assert_array_equal(whole, values)
    np.testing.assert_array_equal(weight.decode(slice(8, 17)).numpy(), values[8:17])
    np.testing.assert_array_equal(weight.decode(some).numpy(), values[some.numpy()])
