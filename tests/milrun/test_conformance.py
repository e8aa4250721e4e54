"""The judge is judged: falsified results must make coremltools' tests fail."""

import pytest

from milrun.testing.conformance import SUITES, run, select, summarize
from milrun.testing.table import render

SUITE = SUITES["operations"]
FILE = "converters/mil/mil/ops/tests/iOS14/test_activation.py"
BACKEND = (
    "compute_unit=ComputeUnit.CPU_ONLY-backend=BackendConfig(backend='mlprogram', "
    "precision='{}', opset_version=<AvailableTarget.iOS15: 6>)"
)
SMOKE = {"TestSoftmax": "test_buidler_to_backend_smoke"}  # spelt so in coremltools
TESTS = [
    f"{FILE}::{test}::{SMOKE.get(test, 'test_builder_to_backend_smoke')}[{BACKEND.format(precision)}]"
    for test in ("TestSoftmax", "TestReLU6", "TestLinearActivation")
    for precision in ("fp16", "fp32")
]


def outcomes(sabotage: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for record in run(TESTS, jobs=1, sabotage=sabotage):
        found.setdefault(record["id"].split("::")[1], set()).add(record["outcome"])
        assert record["predictions"] >= 1
    assert len(found) == 3
    return found


def test_honest_results_pass() -> None:
    assert outcomes("") == {
        "TestSoftmax": {"passed"},
        "TestReLU6": {"passed"},
        "TestLinearActivation": {"passed"},
    }


@pytest.mark.parametrize("sabotage", ["zeros", "2%"])
def test_zeros_and_results_two_percent_off_fail(sabotage: str) -> None:
    assert all(result == {"failed"} for result in outcomes(sabotage).values())


def test_one_broken_operation_fails_its_tests_and_no_other() -> None:
    found = outcomes("softmax")
    assert found.pop("TestSoftmax") == {"failed"}
    assert all(result == {"passed"} for result in found.values())


def test_the_draw_is_fixed_and_leaves_out_the_old_back_end() -> None:
    ids = [f"a.py::T::f[{n}]" for n in range(10)] + ["a.py::T::g[neuralnetwork]", "a.py::T::h"]
    assert select(sorted(ids), SUITE) == select(sorted(ids), SUITE)
    assert len(select(sorted(ids), SUITE)) == SUITE.per_function + 1


def record(outcome: str, predictions: int, raised: int = 0) -> dict[str, object]:
    return {"id": f"f::{outcome}{predictions}{raised}", "outcome": outcome, "predictions": predictions,
            "raised": raised, "evidence": None, "seconds": 1.0, "message": ""}  # fmt: skip


def test_only_tests_that_predicted_or_whose_prediction_raised_are_judged() -> None:
    records = [
        record("passed", 2),
        record("passed", 0),
        record("failed", 1),
        record("failed", 0, raised=1),
        record("failed", 0),
        record("skipped", 0),
        record("xpassed", 1),
    ]
    report = summarize(SUITE, [str(r["id"]) for r in records], records, 5.0, 4.0)
    counts = ("passed", "no_prediction", "failed", "skipped", "core_ml_fails")
    assert [report[k] for k in counts] == [2, 2, 2, 1, 1]
    assert [f["id"] for f in report["failures"]] == ["f::failed01", "f::failed10"]
    assert report["pass_rate"] == 0.5
    assert "50.0 % | 97 %" in render({"operations": report})
    assert "50.0 % | none" in render({"operations": {**report, "bar": None}})


def test_an_error_of_the_stand_in_is_a_failure_without_a_prediction() -> None:
    """The broken kernel raises: coremltools' test fails, and counts."""
    (found,) = run([t for t in TESTS if "TestSoftmax" in t and "fp32" in t], jobs=1, sabotage="raise")
    assert (found["outcome"], found["predictions"]) == ("failed", 0)
    assert found["raised"] == 1
    assert "broken on purpose" in found["message"]
