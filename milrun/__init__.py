"""milrun runs Core ML ML Programs (`.mlpackage`) on any machine with torch.

`load` runs a package, `install` and `installed` let unmodified coremltools predict, `inspect`,
`trace`, `compare` and `lint` look inside. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milrun.errors import (
    ExecutionError,
    InputError,
    MilrunError,
    PackageError,
    UnsupportedModelError,
    UnsupportedOperationError,
)

if TYPE_CHECKING:
    from milrun.compare import compare
    from milrun.inspection import inspect
    from milrun.linting import lint
    from milrun.model import Model, Pipeline, load
    from milrun.standin import install, installed, uninstall
    from milrun.tracing import trace

_LAZY = {
    "Finding": "rules",
    "Model": "model",
    "Pipeline": "model",
    "compare": "compare",
    "inspect": "inspection",
    "install": "standin",
    "installed": "standin",
    "lint": "linting",
    "load": "model",
    "trace": "tracing",
    "uninstall": "standin",
}

__all__ = [
    "ExecutionError",
    "Finding",
    "InputError",
    "MilrunError",
    "Model",
    "PackageError",
    "Pipeline",
    "UnsupportedModelError",
    "UnsupportedOperationError",
    "compare",
    "inspect",
    "install",
    "installed",
    "lint",
    "load",
    "trace",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'milrun' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"milrun.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
