"""A stand-in for `coremltools.libcoremlpython`: unmodified coremltools predicts, without a Mac.

coremltools reaches Core ML through one extension module that only its macOS wheel has. `install`
puts a module of that name in place, with milrun behind it, and has coremltools believe in macOS 15
where it asks before predicting. Everything is undone by `uninstall`.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from milrun.errors import MilrunError
from milrun.proxies import (
    AssetProxy,
    ComputePlanProxy,
    CPUDeviceProxy,
    GPUDeviceProxy,
    ModelProxy,
    NeuralEngineDeviceProxy,
    StateProxy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME = "coremltools.libcoremlpython"
_MACOS = (15, 5)


_EXPORTS: dict[str, Any] = {
    "_MLModelProxy": ModelProxy,
    "_State": StateProxy,
    "_MLModelAssetProxy": AssetProxy,
    "_MLComputePlanProxy": ComputePlanProxy,
    "_MLCPUComputeDeviceProxy": CPUDeviceProxy,
    "_MLGPUComputeDeviceProxy": GPUDeviceProxy,
    "_MLNeuralEngineComputeDeviceProxy": NeuralEngineDeviceProxy,
}
_undo: list[Callable[[], None]] = []


def _macos_version() -> tuple[int, ...]:
    return _MACOS


def _is_macos() -> bool:
    return True


def install(*, force: bool = False) -> None:
    """Make coremltools predict through milrun, in this process, from now on.

    Works before or after coremltools is imported; calling it twice changes nothing.

    Raises
    ------
    MilrunError
        On a Mac, where the real Core ML is, unless `force` is given.
    """
    if _undo:
        return
    if sys.platform == "darwin" and not force:
        raise MilrunError(
            "This is a Mac: coremltools predicts with the real Core ML. install(force=True) overrides."
        )
    module = ModuleType(_NAME, __doc__)
    for name, value in _EXPORTS.items():
        setattr(module, name, value)
    previous = sys.modules.get(_NAME)
    sys.modules[_NAME] = module
    _undo.append(lambda: _restore_module(previous))
    package = importlib.import_module("coremltools")
    for name in (
        "models.model",
        "models.utils",
        "models._compiled_model",
        "models.compute_plan",
        "models.compute_device",
    ):
        importlib.import_module(f"coremltools.{name}")
    _set(package, "libcoremlpython", module)
    utils = sys.modules["coremltools.models.utils"]
    replaced = {id(utils._is_macos): _is_macos, id(utils._macos_version): _macos_version}
    for loaded_name, loaded in list(sys.modules.items()):
        if not loaded_name.startswith("coremltools.") or loaded is module:
            continue
        for attribute in ("_is_macos", "_macos_version"):
            present = loaded.__dict__.get(attribute)
            if id(present) in replaced:
                _set(loaded, attribute, replaced[id(present)])
        for attribute, value in _EXPORTS.items():
            if attribute in loaded.__dict__ and loaded.__dict__[attribute] is not value:
                _set(loaded, attribute, value)


def _set(module: ModuleType, name: str, value: Any) -> None:
    missing = object()
    previous = module.__dict__.get(name, missing)
    setattr(module, name, value)
    _undo.append(lambda: delattr(module, name) if previous is missing else setattr(module, name, previous))


def _restore_module(previous: ModuleType | None) -> None:
    if previous is None:
        sys.modules.pop(_NAME, None)
    else:
        sys.modules[_NAME] = previous
    ours = set(_EXPORTS.values())
    for name, loaded in list(sys.modules.items()):
        if name.startswith("coremltools."):
            for attribute in _EXPORTS:
                if loaded.__dict__.get(attribute) in ours:
                    setattr(loaded, attribute, None)


def uninstall() -> None:
    """Undo `install`."""
    while _undo:
        _undo.pop()()


@contextlib.contextmanager
def installed(*, force: bool = False) -> Iterator[None]:
    """`install` for a `with` block; inside another installation it changes nothing."""
    outer = bool(_undo)
    install(force=force)
    try:
        yield
    finally:
        if not outer:
            uninstall()
