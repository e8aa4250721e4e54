"""How the list of failures is written, and whether each of its hand-written reasons holds in numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Build
from coremltools.converters.mil import Builder as mb
from torch.nn import functional

import milrun
from milrun.testing.failures import END, REASONS, START, UNEXPLAINED, insert, reason, render

ATOL, RTOL = 1e-4, 1e-5  # coremltools' for FP32


def failure(name: str, evidence: dict[str, str] | None) -> dict[str, Any]:
    return {"id": f"a/b/test_x.py::{name}[p-q]", "evidence": evidence, "message": "", "predictions": 1}


def test_a_failure_without_a_reason_says_so() -> None:
    known = next(iter(REASONS))
    rows = [
        failure("TestNew::test", None),
        failure(known, None),
        failure(known, {"kind": "k", "text": "measured"}),
    ]
    assert [reason(r) for r in rows] == [UNEXPLAINED, REASONS[known], "measured"]
    report = {"suite": {"failed": 3, "passed": 7, "failures": rows}}
    text = render(report)
    assert "3 of 10" in text
    assert "`b/test_x.py::TestNew::test[p-q]`" in text
    assert insert(f"a\n{START}\nold\n{END}\nb\n", text) == f"a\n{START}\n\n{text}\n\n{END}\nb\n"


def misses(actual: Any, expected: Any) -> bool:
    return not np.allclose(actual, expected, RTOL, ATOL)


def test_crop_resize_expects_what_arithmetic_does_not_give() -> None:
    """The corner (0.5, 0.3) of a normalised box in a 4 x 4 image with aligned corners is row 1.5, column 0.9."""
    image = torch.arange(1, 17, dtype=torch.float64).reshape(1, 1, 4, 4)
    corner = torch.tensor([[[[2 * 0.3 - 1, 2 * 0.5 - 1]]]], dtype=torch.float64)
    exact = float(functional.grid_sample(image, corner, align_corners=True))
    assert exact == pytest.approx(7.9, abs=1e-12)
    assert misses(exact, 7.899)


def test_instance_norm_is_given_another_beta_than_it_expects(build: Build) -> None:
    """The first row of the test's data: with the constants as FP16 milrun is right, and the expected number isn't."""
    x = np.array([[[[-16.0, 13.0], [11.0, 16.0]]]], np.float32)
    gamma, beta = np.array([-9.0], np.float16), np.array([-0.8], np.float16)
    path = build(
        lambda x: mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=np.float16(1e-2), name="y"),
        x=((1, 1, 2, 2), "fp32"), precision="as-is",
    )  # fmt: skip
    got = milrun.load(path).predict({"x": x})["y"].reshape(-1)
    wanted = np.array([14.63721807, -5.71184211, -4.30845865, -7.8169173])
    assert misses(got, wanted)
    values = x.astype(np.float64).reshape(-1)
    normal = (values - values.mean()) / np.sqrt(values.var() + float(np.float16(1e-2)))
    np.testing.assert_allclose(got, normal * float(gamma[0]) + float(beta[0]), RTOL, ATOL)
    np.testing.assert_allclose(got - (float(beta[0]) + 0.8), wanted, RTOL, ATOL)


def test_resample_is_given_other_coordinates_than_it_expects() -> None:
    """Reflected into [0, 1], bilinear in [[11, 22], [33, 44]]: right for the FP16 coordinates, expected for others."""

    def sample(x: float, y: float) -> float:
        x, y = (abs((c + 1) % 2 - 1) for c in (x, y))
        return 11 + 11 * x + 22 * y

    for (x, y), wanted, got in (((-3.7, -1.0), 36.3, 36.308594), ((3.5, 1.2), 34.1, 34.095703)):
        assert sample(x, y) == pytest.approx(wanted)
        assert sample(float(np.float16(x)), float(np.float16(y))) == pytest.approx(got, abs=1e-6)
        assert misses(got, wanted)


@pytest.mark.parametrize("layer", [torch.nn.RNN, torch.nn.LSTM])
def test_recurrent_layers_are_compared_with_other_weights_than_they_are_given(layer: Any) -> None:
    """torch against itself, all in FP32: rounding the weights and inputs to FP16 moves results beyond the tolerance."""
    torch.manual_seed(50)
    reference, given = layer(1, 16, 1), layer(1, 16, 1)
    x = torch.randn(8, 32, 1)
    given.load_state_dict({k: v.half().float() for k, v in reference.state_dict().items()})
    with torch.inference_mode():
        assert misses(given(x.half().float())[0], reference(x)[0])
        assert (given(x.half().float())[0] - reference(x)[0]).abs().max() < 2e-3


def test_the_lstm_of_a_packed_sequence_is_given_states_for_another_batch(build: Build) -> None:
    """What the converter writes for a batch of 3: an initial state of 10 rows. Refused in words; 3 rows run."""
    weights = {"weight_ih": np.ones((24, 4), np.float32), "weight_hh": np.ones((24, 6), np.float32)}

    def body(x: Any, h: Any) -> Any:
        return mb.lstm(x=x, initial_h=h, initial_c=h, output_sequence=True, **weights)[0]

    x = np.ones((10, 3, 4), np.float32)
    for rows, fits in ((3, True), (10, False)):
        path = build(body, x=((10, 3, 4), "fp32"), h=((rows, 6), "fp32"))
        inputs = {"x": x, "h": np.zeros((rows, 6), np.float32)}
        if fits:
            (result,) = milrun.load(path).predict(inputs).values()
            assert result.shape == (10, 3, 6)
        else:
            with pytest.raises(milrun.ExecutionError, match=r"lstm.*\(10, 6\).*\(3, 6\)"):
                milrun.load(path).predict(inputs)
