"""What a failed comparison of numbers proves about the test: can any implementation pass it?

The suite compares FP16 data at a tolerance for FP32 (1e-4 absolute, 1e-5 relative), where FP16's
own steps are up to 1e-3 between 1 and 2. Two cases can be decided from the two arrays alone:

- `reference_rounded`: the expected array is itself FP16, computed in FP16 by numpy. The result is more
  precise; rounded to FP16 it equals the reference bit for bit.
- `no_fp16_number`: the result is of a declared FP16 type, and for some elements *no* FP16 number
  lies within the tolerance of the reference.

Three more need the model: `only_rounding`, where the same program with no result rounded to FP16
(`milrun.load(precision="fp32")`) meets the tolerance, so that what fails is the rounding that the program's types
ask for; `reference_inexact`, where the reference consists of FP16 numbers, computed with roundings of its own, and
misses the unrounded result by more than the tolerance, both lying within FP16's precision of it; and `numbers_agree`, where every comparison of numbers passed and the test then asserts something else.
Whatever fits none of them is evidence of nothing, and None.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind = Literal["reference_rounded", "no_fp16_number", "only_rounding", "reference_inexact", "numbers_agree"]
_MAX_STEPS = 8  # of FP16's last place: what a few dozen rounded operations add up to, not a wrong formula

_ROUNDINGS = 4  # half steps at the largest magnitude: a fifth of a percent


@dataclass(frozen=True)
class Evidence:
    """Why a failure is the test's: `kind` as above, `text` the measured facts."""

    kind: Kind
    text: str


@dataclass
class Comparisons:
    """What one test compared: how many comparisons passed, and what the last failed one shows."""

    passed: int = 0
    failed: int = 0
    last: Evidence | None = field(default=None)

    def judge(self, message: str) -> dict[str, str] | None:
        """The evidence for a test that failed with `message`, as a dictionary, or None."""
        if self.failed:
            return asdict(self.last) if self.last is not None else None
        if self.passed and message.startswith("AssertionError: assert "):
            claim = message.removeprefix("AssertionError: ").splitlines()[0]
            text = f"all {self.passed} comparisons of numbers passed; what fails is `{claim}`"
            return asdict(Evidence("numbers_agree", text))
        return None


def ordered(values: np.ndarray) -> np.ndarray:
    """FP16 numbers as integers in the same order, so that a difference counts steps of the last place."""
    bits = values.astype(np.float16).view(np.int16).astype(np.int32)
    result: np.ndarray = np.where(bits < 0, -(bits & 0x7FFF), bits)
    return result


def of_comparison(actual: Any, expected: Any, rtol: float, atol: float) -> Evidence | None:
    """Evidence from a comparison that failed: |actual - expected| > atol + rtol |expected| somewhere."""
    found, wanted = np.asarray(actual), np.asarray(expected)
    if found.dtype.kind != "f" or wanted.dtype.kind != "f" or found.shape != wanted.shape:
        return None
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return None
    return (
        _of_fp16_reference(found, wanted)
        if wanted.dtype == np.float16
        else _of_fp16_result(found, wanted.astype(np.float64), rtol, atol)
    )


def of_unrounded(
    actual: Any, outputs: Iterable[Any], expected: Any, rtol: float, atol: float
) -> Evidence | None:
    """Evidence from what the same program gives with nothing rounded to FP16: `outputs`, in any order."""
    wanted = np.asarray(expected)
    exact = [
        o for o in outputs if isinstance(o, np.ndarray) and o.shape == wanted.shape and o.dtype.kind == "f"
    ]
    if any(np.allclose(e, wanted, rtol, atol) for e in exact):
        text = "the program rounds to FP16; the same program without any rounding to FP16 meets the tolerance"
        return Evidence("only_rounding", text)
    if wanted.dtype.kind != "f" or not np.array_equal(wanted.astype(np.float16).astype(wanted.dtype), wanted):
        return None
    reference = wanted.astype(np.float64)
    bound = _ROUNDINGS * 2.0**-11 * float(np.abs(reference).max(initial=0.0))
    for values in exact:
        error = np.abs(values - reference)
        missed = int((error > atol + rtol * np.abs(reference)).sum())
        if missed and max(float(error.max()), float(np.abs(np.asarray(actual) - reference).max())) <= bound:
            text = (
                f"the reference consists of FP16 numbers: it misses the tolerance itself, for {missed} of {wanted.size} "
                "elements, against the same program without any rounding; both lie within FP16's precision of it"
            )
            return Evidence("reference_inexact", text)
    return None


def _of_fp16_reference(found: np.ndarray, wanted: np.ndarray) -> Evidence | None:
    if not np.array_equal(found.astype(np.float16), wanted):
        return None
    text = "the reference is computed in FP16; the result rounded to FP16 equals it bit for bit"
    return Evidence("reference_rounded", text)


def _of_fp16_result(found: np.ndarray, exact: np.ndarray, rtol: float, atol: float) -> Evidence | None:
    if not np.array_equal(found.astype(np.float16).astype(found.dtype), found):
        return None
    nearest = exact.astype(np.float16).astype(np.float64)
    unreachable = int((np.abs(nearest - exact) > atol + rtol * np.abs(exact)).sum())
    steps = int(np.abs(ordered(found) - ordered(exact)).max())
    if not unreachable or steps > _MAX_STEPS:
        return None
    return Evidence(
        "no_fp16_number",
        f"the result is FP16, and for {unreachable} of {exact.size} elements no FP16 number lies within the "
        f"tolerance; it is at most {steps} steps of FP16's last place from the reference rounded once",
    )
