"""Image inputs and outputs, classifiers and random operations, through `milrun.load` and through coremltools."""

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from PIL import Image

import milrun

COLORS = {
    "RGB": (ct.colorlayout.RGB, "RGB", 3),
    "BGR": (ct.colorlayout.BGR, "RGB", 3),
    "gray": (ct.colorlayout.GRAYSCALE, "L", 1),
    "half": (ct.colorlayout.GRAYSCALE_FLOAT16, "F", 1),
}


class Affine(torch.nn.Module):
    """2 x + 1 for each pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0 + 1.0


def save(
    tmp_path: Path, module: torch.nn.Module, inputs: list[Any], outputs: list[Any], **options: Any
) -> Path:
    shapes = [torch.zeros(tuple(int(d) for d in i.shape.shape)) for i in inputs]
    path = tmp_path / "model.mlpackage"
    ct.convert(
        torch.jit.trace(module.eval(), shapes), inputs=inputs, outputs=outputs, skip_model_load=True,
        minimum_deployment_target=ct.target.iOS16, **options,
    ).save(str(path))  # fmt: skip
    return path


def picture(mode: str) -> Image.Image:
    """Five columns, four rows; no two channels alike; values up to 120, so that 2 x + 1 stays below 255."""
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 2
    image = Image.fromarray(pixels)
    return image if mode == "RGB" else image.convert(mode)


def planes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, np.float32)
    return values.transpose(2, 0, 1)[None] if values.ndim == 3 else values[None, None]


@pytest.mark.parametrize("color", COLORS)
def test_an_image_goes_in_as_planes_in_the_declared_order(tmp_path: Path, color: str) -> None:
    layout, mode, channels = COLORS[color]
    feature = ct.ImageType("x", (1, channels, 4, 5), color_layout=layout)
    path = save(tmp_path, Affine(), [feature], [ct.TensorType("y")])
    image = picture(mode)
    expected = planes(image)
    expected = 2 * (expected[:, ::-1] if color == "BGR" else expected) + 1
    np.testing.assert_allclose(milrun.load(path).predict({"x": image})["y"], expected, rtol=1e-3)
    with milrun.installed():
        got = ct.models.MLModel(str(path)).predict({"x": image})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize("color", COLORS)
def test_an_image_comes_out_in_the_same_colors(tmp_path: Path, color: str) -> None:
    layout, mode, channels = COLORS[color]
    path = save(
        tmp_path, Affine(), [ct.ImageType("x", (1, channels, 4, 5), color_layout=layout)],
        [ct.ImageType("y", color_layout=layout)],
    )  # fmt: skip
    image = picture(mode)
    got = milrun.load(path).predict({"x": image})["y"]
    assert isinstance(got, Image.Image)
    assert (got.size, got.mode) == ((5, 4), "RGBA" if mode == "RGB" else mode)
    values = planes(got)
    np.testing.assert_allclose(values[:, :3], 2 * planes(image) + 1, rtol=1e-3)
    if mode == "RGB":
        assert (values[:, 3] == 255).all()


def test_scale_and_bias_are_applied_and_an_output_is_clamped(tmp_path: Path) -> None:
    feature = ct.ImageType("x", (1, 3, 4, 5), scale=3.0, bias=[-200.0, 0.0, 10.0])
    path = save(tmp_path, Affine(), [feature], [ct.ImageType("y", color_layout=ct.colorlayout.RGB)])
    image = picture("RGB")
    scaled = 3 * planes(image) + np.array([-200.0, 0.0, 10.0])[:, None, None]
    got = planes(milrun.load(path).predict({"x": image})["y"])[:, :3]
    np.testing.assert_array_equal(got, np.clip(2 * scaled + 1, 0, 255))
    assert got.min() == 0
    assert got.max() == 255


def test_a_wrong_image_is_refused_in_words(tmp_path: Path) -> None:
    path = save(tmp_path, Affine(), [ct.ImageType("x", (1, 3, 4, 5))], [ct.TensorType("y")])
    with pytest.raises(milrun.InputError, match=r"'x'.*\(7, 7\); the model expects \(4, 5\)"):
        milrun.load(path).predict({"x": picture("RGB").resize((7, 7))})
    with pytest.raises(milrun.InputError, match="must be a PIL image"):
        milrun.load(path).predict({"x": "cat.png"})


class Softmax(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, -1)


@pytest.mark.parametrize("labels", [["cat", "dog", "owl"], [10, 20, 30]], ids=["words", "numbers"])
def test_a_classifier_gives_a_label_and_a_dictionary(tmp_path: Path, labels: list[Any]) -> None:
    path = save(
        tmp_path, Softmax(), [ct.TensorType("x", (1, 3))], None, classifier_config=ct.ClassifierConfig(labels)
    )
    x = np.array([[0.5, 2.0, -1.0]], np.float32)
    expected = torch.softmax(torch.from_numpy(x), -1)[0].tolist()
    with milrun.installed():
        through = ct.models.MLModel(str(path)).predict({"x": x})
    for results in (milrun.load(path).predict({"x": x}), through):
        label = results.pop("classLabel")
        assert label == labels[1]
        assert type(label) is type(labels[1])
        (probabilities,) = results.values()
        assert list(probabilities) == labels
        assert list(probabilities.values()) == pytest.approx(expected, abs=2e-3)


def draws(tmp_path: Path, function: Any) -> tuple[Path, np.ndarray]:
    """The values that an operation draws for a (100, 200) shape, given at run time so that none is folded."""

    @mb.program(input_specs=[mb.TensorSpec((2,), types.int32)], opset_version=ct.target.iOS16)
    def program(shape: Any) -> Any:
        return mb.identity(x=function(shape), name="y")

    path = tmp_path / "random.mlpackage"
    ct.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32, skip_model_load=True,
    ).save(str(path))  # fmt: skip
    return path, milrun.load(path).predict({"shape": SHAPE})["y"]


SHAPE = np.array([100, 200], np.int32)
RANDOM = {
    "uniform": (
        lambda s, seed: mb.random_uniform(shape=s, low=-1.0, high=3.0, seed=seed),
        1.0,
        4 / np.sqrt(12),
    ),
    "normal": (lambda s, seed: mb.random_normal(shape=s, mean=2.0, stddev=0.5, seed=seed), 2.0, 0.5),
    "bernoulli": (lambda s, seed: mb.random_bernoulli(shape=s, prob=0.3, seed=seed), 0.3, np.sqrt(0.3 * 0.7)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_operations_follow_their_distribution_and_their_seed(tmp_path: Path, name: str) -> None:
    """Mean and deviation of 20,000 draws, within five standard errors; a seed repeats itself, another differs."""
    function, mean, deviation = RANDOM[name]
    path, values = draws(tmp_path, lambda s: function(s, 7))
    assert values.shape == (100, 200)
    assert abs(values.mean() - mean) < 5 * deviation / np.sqrt(values.size)
    assert abs(values.std() - deviation) < 0.05 * deviation
    np.testing.assert_array_equal(milrun.load(path).predict({"shape": SHAPE})["y"], values)
    _, other = draws(tmp_path, lambda s: function(s, 8))
    assert (values != other).any()


def test_without_a_seed_a_loaded_model_draws_on_and_a_fresh_one_repeats(tmp_path: Path) -> None:
    path, first = draws(tmp_path, lambda s: mb.random_normal(shape=s))
    model = milrun.load(path)
    np.testing.assert_array_equal(model.predict({"shape": SHAPE})["y"], first)
    assert (model.predict({"shape": SHAPE})["y"] != first).any()


def test_categories_are_drawn_as_often_as_their_probabilities_say(tmp_path: Path) -> None:
    @mb.program(input_specs=[mb.TensorSpec((2, 3))], opset_version=ct.target.iOS16)
    def program(p: Any) -> Any:
        return mb.random_categorical(x=p, mode="probs", size=5000, seed=1, name="y")

    path = tmp_path / "categories.mlpackage"
    ct.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32, skip_model_load=True,
    ).save(str(path))  # fmt: skip
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]], np.float32)
    found = milrun.load(path).predict({"p": p})["y"]
    shares = np.stack([(found == c).mean(1) for c in range(3)], 1)
    np.testing.assert_allclose(shares, p, atol=0.04)
