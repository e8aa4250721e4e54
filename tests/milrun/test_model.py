"""Loading and predicting with `milrun.load`."""

import subprocess
import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from conftest import Build
from coremltools.converters.mil import Builder as mb

import milrun


def linear(build: Build, precision: str = "fp32") -> tuple[Path, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    path = build(lambda x: mb.linear(x=x, weight=weight, name="y"), x=((1, 16), "fp32"), precision=precision)
    return path, weight


def test_a_linear_layer_gives_the_matrix_product(build: Build, rng: np.random.Generator) -> None:
    path, weight = linear(build)
    x = rng.standard_normal((1, 16)).astype(np.float32)
    np.testing.assert_allclose(milrun.load(path).predict({"x": x})["y"], x @ weight.T, rtol=1e-6, atol=1e-6)


def test_fp16_results_are_rounded_once_from_fp32_sums(build: Build, rng: np.random.Generator) -> None:
    path, weight = linear(build, "fp16")
    x = rng.standard_normal((1, 16)).astype(np.float32)
    exact = x.astype(np.float16).astype(np.float64) @ weight.astype(np.float16).astype(np.float64).T
    got = milrun.load(path).predict({"x": x})["y"]
    np.testing.assert_array_equal(got, exact.astype(np.float32).astype(np.float16).astype(np.float32))


def test_precision_fp32_never_rounds(build: Build) -> None:
    path = build(
        lambda x: mb.sub(x=mb.add(x=x, y=np.float32(1000.0)), y=np.float32(1000.0), name="y"),
        x=((4,), "fp32"),
        precision="fp16",
    )
    x = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    rounded = milrun.load(path).predict({"x": x})["y"]
    assert np.abs(rounded - x).max() > 0.05
    np.testing.assert_allclose(milrun.load(path, precision="fp32").predict({"x": x})["y"], x, atol=1e-3)


def test_accumulating_in_fp16_loses_what_fp32_keeps(build: Build) -> None:
    path = build(lambda x: mb.reduce_sum(x=x, axes=[0], name="y"), x=((4096,), "fp32"), precision="fp16")
    ones = np.ones(4096, np.float32)
    assert milrun.load(path).predict({"x": ones})["y"].item() == 4096
    # 2048 + 1 is 2048 in FP16: the running sum stops there
    assert milrun.load(path, accumulate="fp16").predict({"x": ones})["y"].item() == 2048


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "required"),
        ({"x": np.zeros((1, 16)), "z": np.zeros(1)}, "no input named"),
        ({"x": np.zeros((2, 16))}, r"shape \(2, 16\).*expects \(1, 16\)"),
        ({"x": np.zeros(16)}, r"shape \(16,\)"),
        ({"x": np.array([["a"] * 16])}, "numeric"),
    ],
)
def test_wrong_inputs_are_refused_in_words(build: Build, inputs: dict[str, np.ndarray], message: str) -> None:
    path, _ = linear(build)
    with pytest.raises(milrun.InputError, match=message):
        milrun.load(path).predict(inputs)


def test_weights_stay_in_the_file_and_are_dropped_unless_kept(build: Build) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    path = build(lambda x: mb.linear(x=x, weight=weight, name="y"), x=((1, 512), "fp32"), precision="fp16")
    for keep in (False, True):
        model = milrun.load(path, keep_weights=keep)
        model.predict({"x": np.ones((1, 512), np.float32)})
        kept = [
            w.kept is not None for s in model.function(None).steps() for w in s.weights if w.size == 512 * 512
        ]
        assert kept == [keep]


def test_flexible_shapes_are_held_to_their_ranges(tmp_path: Path) -> None:
    traced = torch.jit.trace(torch.nn.Softmax(-1), torch.zeros(1, 4))
    for name, shape in (
        ("range", (1, ct.RangeDim(2, 6, default=4))),
        ("enumerated", ct.EnumeratedShapes([(1, 3), (1, 5)], default=(1, 5))),
    ):
        path = tmp_path / f"{name}.mlpackage"
        ct.convert(
            traced,
            inputs=[ct.TensorType("x", shape)],
            outputs=[ct.TensorType("y")],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        ).save(str(path))
        model = milrun.load(path)
        for size in (3, 5):
            x = np.random.default_rng(size).standard_normal((1, size)).astype(np.float32)
            expected = torch.softmax(torch.from_numpy(x), -1).numpy()
            np.testing.assert_allclose(model.predict({"x": x})["y"], expected, atol=2e-3)
        with pytest.raises(milrun.InputError, match="expects"):
            model.predict({"x": np.zeros((1, 7), np.float32)})


def test_an_optional_input_has_its_default(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    traced = torch.jit.trace(Sum(), (torch.zeros(3), torch.zeros(3)))
    path = tmp_path / "optional.mlpackage"
    ct.convert(
        traced,
        inputs=[
            ct.TensorType("x", (3,)),
            ct.TensorType("y", (3,), default_value=np.full(3, 2.0, np.float32)),
        ],
        outputs=[ct.TensorType("z")],
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    ).save(str(path))
    got = milrun.load(path).predict({"x": np.ones(3, np.float32)})["z"]
    np.testing.assert_array_equal(got, np.full(3, 3.0))


def test_each_function_of_a_multifunction_program_runs(build: Build, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    parts = {n: build(lambda x: mb.linear(x=x, weight=weight, name="y"), x=((n, 16), "fp32")) for n in (1, 4)}
    descriptor = ct.utils.MultiFunctionDescriptor()
    for n, path in parts.items():
        descriptor.add_function(str(path), "main", f"rows{n}")
    descriptor.default_function_name = "rows4"
    target = tmp_path / "multi.mlpackage"
    ct.utils.save_multifunction(descriptor, str(target))
    model = milrun.load(target)
    assert sorted(model.functions) == ["rows1", "rows4"]
    for n in parts:
        x = np.random.default_rng(n).standard_normal((n, 16)).astype(np.float32)
        y = model.predict({"x": x}, function=f"rows{n}")["y"]
        np.testing.assert_allclose(y, x @ weight.T, rtol=1e-5, atol=1e-5)  # sums in any order
    assert model.predict({"x": np.zeros((4, 16), np.float32)})["y"].shape == (4, 8)
    with pytest.raises(milrun.InputError, match="no function"):
        model.predict({"x": np.zeros((1, 16))}, function="absent")


def test_a_neural_network_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder

    builder = NeuralNetworkBuilder([("x", datatypes.Array(3))], [("y", datatypes.Array(3))])
    builder.add_activation("relu", "RELU", "x", "y")
    path = tmp_path / "old.mlmodel"
    ct.utils.save_spec(builder.spec, str(path))
    with pytest.raises(milrun.UnsupportedModelError, match="before ML Programs"):
        milrun.load(path)


def test_an_unsupported_operation_is_named_with_its_place_when_loading(build: Build) -> None:
    path = build(lambda x: mb.relu(x=x, name="y"), x=((3,), "fp32"))
    spec = ct.utils.load_spec(str(path))
    block = spec.mlProgram.functions["main"].block_specializations["CoreML8"]
    block.operations[-1].type = "telepathy"
    file = next(path.rglob("model.mlmodel"))
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(milrun.UnsupportedOperationError, match=r"main/y \(telepathy\)"):
        milrun.load(path)


def test_importing_milrun_loads_neither_torch_nor_coremltools() -> None:
    code = "import sys, milrun; print('torch' in sys.modules, 'coremltools' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_intermediates_are_freed_after_their_last_use(build: Build) -> None:
    path = build(lambda x: mb.relu(x=mb.exp(x=mb.relu(x=x)), name="y"), x=((3,), "fp32"))
    function = milrun.load(path).function(None)
    freed = {s for step in function.block.steps for s in step.frees}
    produced = {s for step in function.block.steps for s in step.outputs} | set(function.input_slots)
    assert freed == produced - set(function.block.outputs)
