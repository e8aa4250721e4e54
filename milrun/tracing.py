"""Captures intermediate values of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from milrun.errors import InputError
from milrun.inspection import flatten
from milrun.model import Model, Pipeline, load, to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from milrun.plan import Step


def trace(
    model: str | Path | Model | Pipeline,
    inputs: dict[str, Any],
    outputs: Iterable[str] | None = None,
    function: str | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Values of a program by name, as they were stored; in a loop the last ones.

    Parameters
    ----------
    model
        A package's path or a loaded model.
    outputs
        Names of the values to capture (of any operation's results); None captures all of them,
        which holds every intermediate in memory.
    options
        Of `milrun.load`, where `model` is a path.

    Raises
    ------
    InputError
        If no operation gives a value of a name asked for.
    """
    loaded = load(model, **options) if isinstance(model, str | Path) else model
    known = {name for part in flatten([loaded]) for name in _names(part, function)}
    wanted = known if outputs is None else set(outputs)
    if wanted - known:
        raise InputError(f"No operation gives {sorted(wanted - known)}; the program has {len(known)} values.")
    captured: dict[str, np.ndarray] = {}
    stream(loaded, inputs, captured.__setitem__, wanted, function)
    return captured


def _names(model: Model, function: str | None) -> set[str]:
    plan = model.function(function)
    return {plan.slot_names[slot] for step in plan.steps() for slot in step.outputs}


def stream(
    model: Model | Pipeline,
    inputs: dict[str, Any],
    emit: Callable[[str, np.ndarray], None],
    wanted: set[str],
    function: str | None = None,
) -> None:
    """Predict, and hand over each value of the wanted names as it is stored: `emit(name, value)`."""
    plans = [part.function(function) for part in flatten([model])]
    names = {id(step): [plan.slot_names[s] for s in step.outputs] for plan in plans for step in plan.steps()}

    def observe(step: Step, results: list[Any]) -> None:
        for name, value, kind in zip(names[id(step)], results, step.types, strict=True):
            if isinstance(value, Tensor) and name in wanted:
                emit(name, to_numpy(value, kind))

    model.predict(inputs, function, observer=observe)
