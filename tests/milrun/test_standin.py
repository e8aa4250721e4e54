"""Unmodified coremltools predicting through the stand-in."""

import subprocess
import sys
import textwrap
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from conftest import Build
from coremltools.converters.mil import Builder as mb

import milrun


@pytest.fixture
def package(build: Build) -> Path:
    return build(lambda x: mb.mul(x=x, y=np.float32(2.0), name="y"), x=((1, 4), "fp32"))


def test_predict_works_inside_the_context_and_not_after(package: Path) -> None:
    x = np.arange(4, dtype=np.float32)[None]
    with milrun.installed():
        result = ct.models.MLModel(str(package)).predict({"x": x})
    np.testing.assert_array_equal(result["y"], 2 * x)
    with pytest.raises(Exception, match=r"only supported on macOS|Unable to load"):
        ct.models.MLModel(str(package)).predict({"x": x})


def test_everything_is_as_before_after_the_context() -> None:
    from coremltools.models import model, utils

    before = (
        utils._is_macos,
        utils._macos_version,
        model._macos_version,
        model._MLModelProxy,
        set(sys.modules),
    )
    with milrun.installed():
        assert utils._macos_version() >= (15,)
        assert model._MLModelProxy is not before[3]
    after = (
        utils._is_macos,
        utils._macos_version,
        model._macos_version,
        model._MLModelProxy,
        set(sys.modules),
    )
    assert after[:4] == before[:4]
    assert "coremltools.libcoremlpython" not in sys.modules


@pytest.mark.parametrize(
    "order",
    [
        "import milrun; milrun.install(); import coremltools as ct",
        "import coremltools as ct; import milrun; milrun.install()",
    ],
)
def test_it_works_in_a_process_of_its_own_before_and_after_coremltools(package: Path, order: str) -> None:
    code = f"""
    {order}
    import numpy as np
    model = ct.models.MLModel({str(package)!r}, compute_units=ct.ComputeUnit.CPU_AND_NE)
    print(model.predict({{"x": np.ones((1, 4), np.float32)}})["y"].tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[[2.0, 2.0, 2.0, 2.0]]"


def test_a_list_of_inputs_gives_a_list(package: Path) -> None:
    with milrun.installed():
        results = ct.models.MLModel(str(package)).predict(
            [{"x": np.full((1, 4), float(n), np.float32)} for n in (1, 2)]
        )
    assert [r["y"][0, 0] for r in results] == [2.0, 4.0]


@pytest.mark.parametrize("value", [np.zeros((2, 4), np.float32), np.zeros(4, np.float32)])
def test_a_wrong_shape_is_refused(package: Path, value: np.ndarray) -> None:
    with milrun.installed(), pytest.raises(RuntimeError, match="shape"):
        ct.models.MLModel(str(package)).predict({"x": value})


def test_missing_and_unknown_inputs_are_refused(package: Path) -> None:
    with milrun.installed():
        model = ct.models.MLModel(str(package))
        with pytest.raises(RuntimeError, match="required"):
            model.predict({})
        with pytest.raises(KeyError):
            model.predict({"z": np.zeros((1, 4), np.float32)})


def test_compiled_models_load_and_run(package: Path, tmp_path: Path) -> None:
    with milrun.installed():
        compiled = ct.models.utils.compile_model(str(package), str(tmp_path / "m.mlmodelc"))
        model = ct.models.CompiledMLModel(compiled, ct.ComputeUnit.CPU_ONLY)
        result = model.predict({"x": np.ones((1, 4), np.float32)})
        path = ct.models.MLModel(str(package)).get_compiled_model_path()
    assert result["y"].tolist() == [[2.0] * 4]
    assert path.endswith(".mlmodelc")


def test_fp16_comes_back_as_fp32_and_scalars_as_vectors(build: Build) -> None:
    path = build(
        lambda x: (mb.relu(x=x, name="y"), mb.reduce_sum(x=x, name="s")), x=((3,), "fp16"), precision="fp16"
    )
    with milrun.installed():
        result = ct.models.MLModel(str(path)).predict({"x": np.ones(3, np.float16)})
    assert result["y"].dtype == np.float32
    assert result["s"].shape == (1,)


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 1


def test_state_lives_between_predictions_and_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "state.mlpackage"
    ct.convert(
        torch.jit.trace(Counter().eval(), torch.ones(2, dtype=torch.float16)),
        inputs=[ct.TensorType("x", (2,), dtype=np.float16)],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=(2,), dtype=np.float16), name="total")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    ).save(str(path))
    one = {"x": np.ones(2, np.float16)}
    with milrun.installed():
        model = ct.models.MLModel(str(path))
        first, second = model.make_state(), model.make_state()
        values = [model.predict(dict(one), first)["y"][0] for _ in range(3)]
        assert values == [1.0, 2.0, 3.0]
        assert model.predict(dict(one), second)["y"][0] == 1.0
        first.write_state("total", np.full(2, 10, np.float32))
        assert model.predict(dict(one), first)["y"][0] == 11.0
        assert first.read_state("total").tolist() == [11.0, 11.0]
        with pytest.raises(RuntimeError, match="stateful"):
            model.predict(dict(one))


def test_pipelines_run(tmp_path: Path) -> None:
    def part(source: str, target: str, factor: float) -> ct.models.MLModel:
        class Scale(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * factor

        return ct.convert(
            torch.jit.trace(Scale(), torch.zeros(1, 4)),
            inputs=[ct.TensorType(source, (1, 4))],
            outputs=[ct.TensorType(target)],
            minimum_deployment_target=ct.target.iOS16,
        )

    with milrun.installed():
        pipeline = ct.utils.make_pipeline(part("a", "b", 2.0), part("b", "c", 5.0))
        pipeline.save(str(tmp_path / "p.mlpackage"))
        result = ct.models.MLModel(str(tmp_path / "p.mlpackage")).predict({"a": np.ones((1, 4), np.float32)})
    assert result["c"].tolist() == [[10.0] * 4]


def test_a_mac_keeps_its_own_core_ml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(milrun.MilrunError, match="Mac"):
        milrun.install()


def test_a_function_and_compute_units_are_chosen_by_name(build: Build, tmp_path: Path) -> None:
    weight = np.eye(4, dtype=np.float32)
    descriptor = ct.utils.MultiFunctionDescriptor()
    for scale in (2, 3):
        part = build(
            lambda x, scale=scale: mb.linear(x=mb.mul(x=x, y=np.float32(scale)), weight=weight, name="y"),
            x=((1, 4), "fp32"),
        )
        descriptor.add_function(str(part), "main", f"times{scale}")
    descriptor.default_function_name = "times2"
    path = str(tmp_path / "multi.mlpackage")
    ct.utils.save_multifunction(descriptor, path)
    x = np.arange(4, dtype=np.float32)[None]
    with milrun.installed():
        for name, factor in ((None, 2), ("times2", 2), ("times3", 3)):
            for units in ct.ComputeUnit:
                model = ct.models.MLModel(path, function_name=name, compute_units=units)
                np.testing.assert_allclose(model.predict({"x": x})["y"], factor * x)
                assert model.compute_unit == units
        with pytest.raises(ValueError, match="times9"):
            ct.models.MLModel(path, function_name="times9").predict({"x": x})
