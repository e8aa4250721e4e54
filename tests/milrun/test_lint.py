"""Each rule fires where it should, names every place, and keeps quiet beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from conftest import Build
from coremltools.converters.mil import Builder as mb

import milrun
from milrun import linting
from milrun.cli import main
from pipeline.architectures._decoder import RobustNorm

LOWEST = float(np.finfo(np.float32).min)


def found(path: Path) -> dict[str, milrun.Finding]:
    return {f.rule: f for f in milrun.lint(path)}


def norm(square: Callable[[Any], Any], *, scaled: bool) -> Callable[[Any], Any]:
    """An RMSNorm of (1, 8) rows around a way to square; `scaled` divides each row by its maximum first."""

    def body(x: Any) -> Any:
        if scaled:
            peak = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
            x = mb.real_div(x=x, y=mb.clip(x=peak, alpha=np.float16(2.0**-14), beta=np.float16(65504)))
        mean = mb.reduce_mean(x=square(x), axes=[-1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-6)), name="y")

    return body


SQUARES = {
    "mul": lambda x: mb.mul(x=x, y=x, name="power"),
    "square": lambda x: mb.square(x=x, name="power"),
    "pow 2": lambda x: mb.pow(x=x, y=np.float16(2), name="power"),
    "pow 4": lambda x: mb.pow(x=x, y=np.float16(4), name="power"),
    "reshaped": lambda x: mb.reshape(x=mb.square(x=x, name="power"), shape=[1, 8]),
    "halved": lambda x: mb.mul(x=mb.square(x=x, name="power"), y=np.float16(0.5)),
}


@pytest.mark.parametrize("way", SQUARES)
def test_a_mean_of_fp16_squares_is_found_however_it_is_written(build: Build, way: str) -> None:
    path = build(norm(SQUARES[way], scaled=False), x=((1, 8), "fp16"), precision="as-is")
    finding = found(path)["square-overflow"]
    assert (finding.severity, finding.operation) == ("warning", "power")


@pytest.mark.parametrize("way", SQUARES)
def test_a_norm_that_divides_by_its_rows_maximum_is_not(build: Build, way: str) -> None:
    path = build(norm(SQUARES[way], scaled=True), x=((1, 8), "fp16"), precision="as-is")
    assert "square-overflow" not in found(path)


@pytest.mark.parametrize(
    "way",
    [
        lambda x: mb.pow(x=x, y=np.float16(0.5)),
        lambda x: mb.square(x=mb.tanh(x=x)),
        lambda x: mb.square(x=mb.clip(x=x, alpha=np.float16(-255), beta=np.float16(255))),
        lambda x: mb.mul(x=x, y=mb.sigmoid(x=x)),
    ],
    ids=["root", "tanh", "clip", "silu"],
)
def test_what_cannot_overflow_is_not(build: Build, way: Callable[[Any], Any]) -> None:
    assert "square-overflow" not in found(
        build(norm(way, scaled=False), x=((1, 8), "fp16"), precision="as-is")
    )


def test_a_division_by_something_elses_maximum_does_not_count(build: Build) -> None:
    def body(x: Any, y: Any) -> Any:
        peak = mb.reduce_max(x=mb.abs(x=y), axes=[-1], keep_dims=True)
        return mb.reduce_mean(x=mb.square(x=mb.real_div(x=x, y=peak)), axes=[-1], name="z")

    path = build(body, x=((1, 8), "fp16"), y=((1, 8), "fp16"), precision="as-is")
    assert "square-overflow" in found(path)


@pytest.mark.parametrize(("terms", "fires"), [(1000, False), (66000, True)])
def test_a_sum_of_squares_counts_its_terms(build: Build, terms: int, fires: bool) -> None:
    """66,000 squares of at most 1 add up to more than 65,504."""
    path = build(
        lambda x: mb.reduce_sum_square(x=mb.tanh(x=x), axes=[-1], name="y"),
        x=((1, terms), "fp16"), precision="as-is",
    )  # fmt: skip
    assert ("square-overflow" in found(path)) == fires


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        (lambda x: mb.reduce_sum_square(x=x, axes=[-1], name="y"), "square-overflow"),
        (lambda x: mb.reduce_l2_norm(x=x, axes=[-1], name="y"), "square-inside"),
        (lambda x: mb.l2_norm(x=mb.reshape(x=x, shape=[1, 2, 2, 2]), name="y"), "square-inside"),
    ],
    ids=["reduce_sum_square", "reduce_l2_norm", "l2_norm"],
)
def test_operations_that_square_inside(build: Build, operation: Callable[[Any], Any], rule: str) -> None:
    path = build(operation, x=((1, 8), "fp16"), precision="as-is")
    assert found(path)[rule].operation == "y"
    assert rule not in found(build(operation, x=((1, 8), "fp32")))


def test_a_finding_names_every_place(build: Build) -> None:
    def body(x: Any) -> Any:
        for index in range(3):
            x = mb.mul(
                x=x, y=mb.reduce_mean(x=mb.square(x=x, name=f"square_{index}"), axes=[-1], keep_dims=True)
            )
        return x

    finding = found(build(body, x=((1, 8), "fp16"), precision="as-is"))["square-overflow"]
    assert finding.operations == ("square_0", "square_1", "square_2")
    assert (finding.function, finding.operation) == ("main", "square_0")
    assert "3 square" in finding.message


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (-np.inf, "infinite-constant"),
        (LOWEST, "extreme-constant"),
        (-65504.0, "extreme-constant"),
        (-1e4, None),
    ],
)
def test_mask_constants(build: Build, value: float, rule: str | None) -> None:
    mask = np.array([0, value, 0, 0], np.float32)
    path = build(lambda x: mb.softmax(x=mb.add(x=x, y=mask, name="masked"), name="y"), x=((2, 4), "fp32"))
    masks = {f.rule: f.operation for f in milrun.lint(path) if "constant" in f.rule}
    assert masks == ({rule: "masked"} if rule else {})


def test_scores_with_the_keys_on_the_second_axis(build: Build) -> None:
    """The layout (batch, keys, heads, queries) of Apple's reference transformers."""
    shape = (1, 1024, 1, 1024)
    path = build(lambda x: mb.softmax(x=x, axis=1, name="y"), x=(shape, "fp16"), precision="as-is")
    assert found(path)["score-matrix"].severity == "error"
    shape = (1, 1024, 1024, 512)  # 1,024 heads: only the scores of one head count
    path = build(lambda x: mb.softmax(x=x, axis=1, name="y"), x=(shape, "fp16"), precision="as-is")
    assert "score-matrix" not in found(path)


def linear(build: Build, rows: int = 64) -> Path:
    weight = np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    return build(lambda x: mb.linear(x=x, weight=weight, name="y"), x=((1, 16), "fp32"))


def test_sizes_of_packages_and_of_their_files(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are scaled down, so that a small real package crosses them: 64 x 16 FP32 are 4 KiB."""
    path = linear(build)
    assert not {"compiled-size", "weight-file", "address-space"} & set(found(path))
    monkeypatch.setattr(linting, "GIB", 3 << 10)
    monkeypatch.setattr(linting, "ADDRESS_SPACE", 7 << 10)
    assert found(path)["compiled-size"].severity == "warning"
    assert "address-space" not in found(path)
    monkeypatch.setattr(linting, "GIB", 1 << 10)
    assert found(path)["compiled-size"].severity == "error"
    assert found(path)["weight-file"].source == "coremltools #1807"


def test_packages_that_are_loaded_together_share_an_address_space(
    build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [linear(build), linear(build)]
    monkeypatch.setattr(linting, "ADDRESS_SPACE", 7 << 10)
    together = [f for f in milrun.lint(*parts) if f.rule == "address-space"]
    assert len(together) == 1
    assert "2 packages" in together[0].message
    assert {f.package for f in milrun.lint(*parts) if f.rule == "fp32-program"} == {p.name for p in parts}
    assert main(["lint", *map(str, parts), "--json"]) == 0
    assert "address-space" in {f["rule"] for f in json.loads(capsys.readouterr().out)}


def test_a_weight_of_blocks_and_one_of_four_bits(build: Build) -> None:
    path = linear(build, 64)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    config = ct.optimize.coreml.OpLinearQuantizerConfig(
        granularity="per_block", block_size=8, weight_threshold=0
    )
    blocks = ct.optimize.coreml.linear_quantize_weights(
        model, ct.optimize.coreml.OptimizationConfig(global_config=config)
    )
    blocks.save(str(path.with_name("blocks.mlpackage")))
    assert found(path.with_name("blocks.mlpackage"))["per-block-weights"].operation == "y"
    palettes = ct.optimize.coreml.OpPalettizerConfig(nbits=4, weight_threshold=0)
    small = ct.optimize.coreml.palettize_weights(
        model, ct.optimize.coreml.OptimizationConfig(global_config=palettes)
    )
    small.save(str(path.with_name("small.mlpackage")))
    assert found(path.with_name("small.mlpackage"))["palettized-4bit"].operation == "y"


def test_the_norm_of_the_pipelines_decoders_is_not_flagged(tmp_path: Path) -> None:
    """As PyTorch code comes out of the converter, not as this file would write it."""
    norm = RobustNorm(64, 1e-6).eval()
    torch.nn.init.ones_(norm.weight)  # it comes uninitialised
    traced = torch.jit.trace(norm, torch.zeros(1, 8, 64))
    path = tmp_path / "norm.mlpackage"
    ct.convert(
        traced, inputs=[ct.TensorType("x", (1, 8, 64), dtype=np.float16)], outputs=[ct.TensorType("y", dtype=np.float16)],
        minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
    ).save(str(path))  # fmt: skip
    assert not {"square-overflow", "square-inside", "extreme-constant"} & set(found(path))
