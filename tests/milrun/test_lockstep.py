"""Two runs side by side: whatever their order, pairs meet, little waits, and an error of either is raised."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milrun.lockstep import AHEAD, Emit, lockstep


def run(names: list[str], offset: float) -> Callable[[Emit], None]:
    def emitting(emit: Emit) -> None:
        for number, name in enumerate(names):
            emit(name, np.array([number + offset]))

    return emitting


def pairs(first: list[str], second: list[str]) -> dict[str, list[tuple[float, float]]]:
    met: dict[str, list[tuple[float, float]]] = {}

    def meet(name: str, left: np.ndarray, right: np.ndarray) -> None:
        met.setdefault(name, []).append((float(left[0]), float(right[0])))

    lockstep(run(first, 0.25), run(second, 0.5), meet)
    return met


@given(names=st.lists(st.sampled_from("abcdef"), max_size=60), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_the_nth_value_of_a_name_meets_the_nth_in_any_order(names: list[str], seed: int) -> None:
    other = names.copy()
    random.Random(seed).shuffle(other)  # noqa: S311 - reproducible, not secret
    expected: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        left = [i + 0.25 for i, n in enumerate(names) if n == name]
        right = [i + 0.5 for i, n in enumerate(other) if n == name]
        expected[name] = list(zip(left, right, strict=True))
    assert pairs(names, other) == expected


def test_partners_that_never_come_are_left_out() -> None:
    assert pairs(["a", *"x" * 50, "b"], ["a", "y", "b", "z"]) == {"a": [(0.25, 0.5)], "b": [(51.25, 2.5)]}


def test_the_first_run_is_never_far_ahead() -> None:
    emitted, furthest = 0, 0

    def first(emit: Emit) -> None:
        nonlocal emitted
        for number in range(500):
            emitted = number
            emit(str(number), np.zeros(1))

    def meet(name: str, _left: np.ndarray, _right: np.ndarray) -> None:
        nonlocal furthest
        furthest = max(furthest, emitted - int(name))

    lockstep(first, run([str(n) for n in range(500)], 0.0), meet)
    assert 0 <= furthest <= AHEAD + 2


@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("at", [0, 30])
def test_an_error_of_either_run_is_raised_and_ends_the_other(which: str, at: int) -> None:
    def failing(emit: Emit) -> None:
        for number in range(60):
            if number == at:
                raise ValueError("overflow in layer 3")
            emit(str(number), np.zeros(1))

    fine = run([str(n) for n in range(60)], 0.0)
    runs = (failing, fine) if which == "first" else (fine, failing)
    with pytest.raises(ValueError, match="layer 3"):
        lockstep(*runs, lambda *_: None)
