"""The classes of `coremltools.libcoremlpython`, with milrun behind them: what `MLModel` and the rest call."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milrun.errors import ExecutionError, MilrunError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPECIFICATION = 10  # the newest that coremltools 9.0 writes (iOS 26)
_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


@contextlib.contextmanager
def _as_runtime_error() -> Iterator[None]:
    """Core ML's errors are RuntimeErrors; coremltools handles only those."""
    try:
        yield
    except ExecutionError as error:
        raise RuntimeError(f"Unable to compute the prediction using ML Program: {error}") from error
    except MilrunError as error:
        raise RuntimeError(str(error)) from error


def as_core_ml(value: Any) -> Any:
    """A result as Core ML's Python binding gives it: FP16 as FP32, scalars of shape (1,)."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.float16:
        value = value.astype(np.float32)
    return value.reshape(1) if value.shape == () else value


class StateProxy:
    """`MLState`'s other half."""

    def __init__(self, states: dict[str, Any]) -> None:
        self.states = states

    def read_state(self, name: str) -> np.ndarray:
        """A copy of a state's value, FP32."""
        self._check(name)
        return np.array(as_core_ml(self.states[name].value.numpy()))

    def write_state(self, name: str, value: Any) -> None:
        """Replace a state's value; it must have the declared shape."""
        import torch  # noqa: PLC0415 - installing must not load torch

        self._check(name)
        present = self.states[name].value
        array = np.asarray(value)
        if array.shape != tuple(present.shape):
            raise RuntimeError(f"State {name!r} has shape {tuple(present.shape)}, the value {array.shape}.")
        self.states[name].value = torch.from_numpy(array.astype(np.float32)).to(present.dtype)

    def _check(self, name: str) -> None:
        if name not in self.states:
            raise RuntimeError(f"The model has no state {name!r}; its states are {sorted(self.states)}.")


class AssetProxy:
    """A compiled model on disk."""

    def __init__(self, path: str, folder: Any = None) -> None:
        self.path, self._folder = path, folder


class ComputePlanProxy:
    """Core ML's placement plan: only Core ML can make one."""


class ComputeDeviceProxy:
    """Base of the device proxies; there are none here."""


class CPUDeviceProxy(ComputeDeviceProxy):
    """The CPU."""


class GPUDeviceProxy(ComputeDeviceProxy):
    """A GPU."""


class NeuralEngineDeviceProxy(ComputeDeviceProxy):
    """The Neural Engine."""


class ModelProxy:
    """`_MLModelProxy`: what `MLModel` and `CompiledMLModel` call."""

    def __init__(
        self, path: str, compute_units: str, function: str, _hints: dict[str, str], asset: Any
    ) -> None:
        from milrun.model import load  # noqa: PLC0415 - installing must not load torch

        if compute_units not in _UNITS:
            raise RuntimeError(f"Unknown compute units {compute_units!r}; known are {_UNITS}.")
        started = time.perf_counter_ns()
        source = asset.path if asset is not None else path
        with _as_runtime_error():
            self._model = load(source)
            if function and hasattr(self._model, "function"):
                self._model.function(function)
        self._function = function or None
        self._source = source
        self._compiled: tempfile.TemporaryDirectory[str] | None = None
        self._load_ns, self._predict_ns = time.perf_counter_ns() - started, 0

    def predict(self, data: dict[str, Any], state: StateProxy | None = None) -> dict[str, Any]:
        """One prediction."""
        started = time.perf_counter_ns()
        with _as_runtime_error():
            if state is None and self._model.make_state(self._function):
                raise RuntimeError("The model is stateful: pass predict() a state made by make_state().")
            states = None if state is None else state.states
            result = self._model.predict(data, self._function, state=states)
        self._predict_ns = time.perf_counter_ns() - started
        return {name: as_core_ml(value) for name, value in result.items()}

    def batchPredict(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802
        """Several predictions."""
        return [self.predict(item) for item in data]

    def newState(self) -> StateProxy:  # noqa: N802
        """Fresh states."""
        with _as_runtime_error():
            return StateProxy(self._model.make_state(self._function))

    def get_compiled_model_path(self) -> str:
        """A compiled copy that lives as long as this object."""
        if self._source.rstrip("/").endswith(".mlmodelc"):
            return self._source
        if self._compiled is None:
            self._compiled = tempfile.TemporaryDirectory(suffix="-milrun")
            shutil.move(self.compileModel(self._source), self._compiled.name)
        (path,) = Path(self._compiled.name).iterdir()
        return str(path)

    def get_load_duration_in_nano_seconds(self) -> int:
        """How long loading took."""
        return self._load_ns

    def get_last_predict_duration_in_nano_seconds(self) -> int:
        """How long the last prediction took."""
        return self._predict_ns

    @staticmethod
    def maximum_supported_specification_version() -> int:
        """The newest specification that can be loaded."""
        return _SPECIFICATION

    @staticmethod
    def auto_set_specification_version(spec: Any) -> Any:
        """Core ML lowers a specification's version where it can; it is left as it is here."""
        return spec

    @staticmethod
    def compileModel(path: str) -> str:  # noqa: N802
        """Put a package into the form of a `.mlmodelc` folder: specification and weights, side by side.

        Core ML's compiler writes other files; only milrun can load this folder.
        """
        from milrun.package import read_package  # noqa: PLC0415

        with _as_runtime_error():
            package = read_package(path)
        name = Path(path.rstrip("/")).stem
        target = Path(tempfile.mkdtemp(suffix="-milrun")) / f"{name}.mlmodelc"
        target.mkdir()
        (target / "model.mlmodel").write_bytes(package.spec.SerializeToString())
        weights = package.root / "weights"
        if weights.is_dir():
            shutil.copytree(weights, target / "weights", copy_function=_link_or_copy)
        return str(target)

    @staticmethod
    def create_model_asset_from_path(path: str) -> Any:
        """An asset of a compiled model."""
        from coremltools.models.model import MLModelAsset  # noqa: PLC0415

        return MLModelAsset(AssetProxy(path))

    @staticmethod
    def create_model_asset_from_memory(spec_data: bytes, blob_mapping: dict[str, bytes]) -> Any:
        """An asset of a specification and weight files in memory."""
        from coremltools.models.model import MLModelAsset  # noqa: PLC0415

        folder = tempfile.TemporaryDirectory(suffix=".mlmodelc")
        root = Path(folder.name)
        (root / "model.mlmodel").write_bytes(spec_data)
        for name, data in blob_mapping.items():
            target = root / name.removeprefix("@model_path/")
            if root.resolve() not in target.resolve().parents:
                raise RuntimeError(f"Blob {name!r} lies outside the model.")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return MLModelAsset(AssetProxy(folder.name, folder))

    @staticmethod
    def get_available_compute_devices() -> list[Any]:
        """None: no device of Core ML's is here."""
        return []

    @staticmethod
    def get_all_compute_devices() -> list[Any]:
        """None: no device of Core ML's is here."""
        return []

    @staticmethod
    def get_model_structure(_path: str) -> Any:
        """Refused: read the package's specification, or use `milrun.inspect`."""
        raise RuntimeError("milrun has no MLModelStructure; use milrun.inspect(path).")

    @staticmethod
    def get_compute_plan(_path: str, _units: str) -> Any:
        """Refused: only Core ML can say where it would place operations."""
        raise RuntimeError(
            "Placement is Core ML's decision and needs a Mac; milrun.lint(path) predicts from rules."
        )


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
