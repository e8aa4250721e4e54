"""What runs the packages of a release: Core ML on a Mac, milrun where it is asked for."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from corembed.errors import EngineError
from corembed.release import Function

Array = npt.NDArray[Any]
Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Engine(Protocol):
    """Runs one function of a release."""

    name: str
    functions: tuple[Function, ...] | None
    """Shapes it runs; None: those of the release."""

    def run(
        self, function: Function, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        """(batch, length) int32 ids and mask to (batch, dimension) float32."""
        ...


class PackageEngine:
    """Runs packages one after another: `hidden` of one is the input of the next, the mask goes to all.

    One call at a time: an `MLModel` is to be used by one thread at a time (Core ML's documentation), and callers
    that share an engine take turns by the batch.
    """

    functions: tuple[Function, ...] | None = None

    def __init__(
        self, name: str, packages: Sequence[Path], load: Callable[[Path, Function], Predict]
    ) -> None:
        self.name, self._packages, self._load = name, packages, load
        self._loaded: dict[tuple[Path, str], Predict] = {}
        self._lock = threading.Lock()

    def run(
        self, function: Function, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        """See `Engine`."""
        state: dict[str, Array] = {"input_ids": ids}
        with self._lock:
            for package in self._packages:
                key = (package, function.name)
                if key not in self._loaded:
                    self._loaded[key] = self._load(package, function)
                outputs = self._loaded[key]({**state, "attention_mask": mask})
                state = {name: np.asarray(value) for name, value in outputs.items()}
        return np.asarray(state["embedding"], np.float32)


def _coreml(compute_units: str) -> Callable[[Path, Function], Predict]:
    def load(package: Path, function: Function) -> Predict:
        import coremltools as ct  # noqa: PLC0415  # heavy, and only a Mac's

        units = getattr(ct.ComputeUnit, compute_units)
        name = None if function.name == "main" else function.name
        predict: Predict = ct.models.MLModel(str(package), compute_units=units, function_name=name).predict
        return predict

    return load


def _milrun() -> Callable[[Path, Function], Predict]:
    import milrun  # noqa: PLC0415  # loads torch

    models: dict[Path, Any] = {}

    def load(package: Path, function: Function) -> Predict:
        if package not in models:
            models[package] = milrun.load(package)
        model = models[package]

        def predict(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            outputs: Mapping[str, Array] = model.predict(dict(inputs), function=function.name)
            return outputs

        return predict

    return load


def make(name: str | None, packages: Sequence[Path], compute_units: str = "CPU_AND_NE") -> Engine:
    """The engine of this name, or of `COREMBED_ENGINE`; by default Core ML on a Mac, and nowhere else any."""
    name = name or os.environ.get("COREMBED_ENGINE") or None
    if name is None and platform.system() != "Darwin":
        raise EngineError(
            'Core ML runs on a Mac only; pass engine="milrun" to run the packages here (needs corembed[emulator])'
        )
    if name in {None, "coreml"}:
        return PackageEngine("coreml", packages, _coreml(compute_units))
    if name == "milrun":
        try:
            return PackageEngine("milrun", packages, _milrun())
        except ModuleNotFoundError as error:
            raise EngineError(
                f"engine milrun needs {error.name}: pip install 'corembed[emulator]'"
            ) from error
    raise EngineError(f"no engine {name!r}; there is coreml and milrun")
