"""What a failed comparison proves, and what it doesn't."""

import numpy as np
import pytest

from milrun.testing.evidence import Comparisons, of_comparison, of_unrounded, ordered

EXACT = np.array([1.0003, 1.5001, -1.7772, 0.25], np.float32)
RTOL, ATOL = 1e-5, 1e-4


def kind(actual: np.ndarray, expected: np.ndarray) -> str | None:
    found = of_comparison(actual, expected, RTOL, ATOL)
    return None if found is None else found.kind


def test_a_reference_in_fp16_against_an_exact_result() -> None:
    assert kind(EXACT, EXACT.astype(np.float16)) == "reference_rounded"


def test_an_fp16_result_where_no_fp16_number_would_pass() -> None:
    result = EXACT.astype(np.float16).astype(np.float32)
    found = of_comparison(result, EXACT, RTOL, ATOL)
    assert found is not None
    assert found.kind == "no_fp16_number"
    assert "for 2 of 4 elements" in found.text
    assert "at most 0 steps" in found.text


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (EXACT * np.float32(1.02), EXACT.astype(np.float16)),  # 2 % off
        (np.zeros(4, np.float32), EXACT.astype(np.float16)),
        (np.zeros(4, np.float32), EXACT),  # zeros are FP16 numbers
        ((EXACT * 1.02).astype(np.float16).astype(np.float32), EXACT),  # FP16 numbers, but wrong
        (EXACT + np.float32(0.01), EXACT),  # an FP32 result that is wrong
        (np.array([0.5], np.float32), np.array([0.25], np.float32)),  # FP16 could have passed
        (np.array([np.nan], np.float32), np.array([1.0], np.float16)),
        (np.zeros((2, 2), np.float32), np.zeros(4, np.float16)),
        (np.array([1, 2]), np.array([1, 3])),
    ],
)
def test_a_wrong_result_is_never_the_tests_fault(actual: np.ndarray, expected: np.ndarray) -> None:
    assert kind(actual, expected) is None


def test_steps_of_the_last_place_count_across_zero() -> None:
    smallest = np.float16(2.0**-24)
    assert ordered(np.array([smallest, -smallest, 0.0, -0.0])).tolist() == [1, -1, 0, 0]
    assert np.diff(ordered(np.array([1.0, 1.0 + 2.0**-10]))).tolist() == [1]


def test_a_program_that_would_pass_without_rounding_and_one_that_would_not() -> None:
    rounded = EXACT.astype(np.float16).astype(np.float32)
    found = of_unrounded(rounded, ["a label", np.zeros(4), EXACT], EXACT, RTOL, ATOL)
    assert found is not None
    assert found.kind == "only_rounding"
    assert of_unrounded(rounded, [EXACT * 1.02, np.zeros((2, 2))], EXACT, RTOL, ATOL) is None


def test_a_reference_that_misses_its_own_tolerance_and_a_result_that_is_just_wrong() -> None:
    reference = EXACT.astype(np.float16).astype(np.float32)  # rounded on its way, though it is FP32
    found = of_unrounded(reference * np.float32(1.0004), [EXACT], reference, RTOL, ATOL)
    assert found is not None
    assert found.kind == "reference_inexact"
    assert "for 2 of 4" in found.text
    assert of_unrounded(reference * np.float32(1.02), [EXACT], reference, RTOL, ATOL) is None
    assert of_unrounded(reference, [EXACT * np.float32(1.02)], reference, RTOL, ATOL) is None
    assert of_unrounded(EXACT, [EXACT * np.float32(1.0004)], EXACT, RTOL, ATOL) is None  # an FP32 reference


def test_numbers_that_agree_and_an_assertion_that_does_not() -> None:
    message = "AssertionError: assert 0 == 2\n +  where 0 = count()"
    judged = Comparisons(passed=3).judge(message)
    assert judged is not None
    assert judged["kind"] == "numbers_agree"
    assert "3 comparisons" in judged["text"]
    assert "`assert 0 == 2`" in judged["text"]
    assert Comparisons(passed=0).judge(message) is None
    assert Comparisons(passed=3, failed=1).judge(message) is None
    assert Comparisons(passed=3).judge("RuntimeError: no such operation") is None
