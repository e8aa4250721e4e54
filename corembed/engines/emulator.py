"""The engine `milrun`: runs the very packages of a release wherever torch is installed. Only when asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corembed.engines.base import Request
from corembed.engines.packages import Array, PackageEngine, Predict
from corembed.errors import EngineError
from corembed.release import Function

NAME = "milrun"

KEEP = 64 << 20
"""Bytes of a package up to which its weights are decoded once and kept, at most eight times as large in memory:
decoding palettes takes three times what running a small model takes. Larger ones are decoded each time."""


def passed_over(_request: Request) -> str | None:
    """Why this engine cannot run here."""
    missing = [m for m in ("torch", "coremltools") if importlib.util.find_spec(m) is None]
    return f"{missing[0]} is not installed: pip install 'corembed[emulator]'" if missing else None


def make(request: Request) -> PackageEngine:
    """Run the asked variant, by default in the single layout."""
    package = request.release.package(request.variant, request.layout)
    engine = of(request.packages(package))
    engine.package = package
    return engine


def of(packages: Sequence[Path]) -> PackageEngine:
    """An engine that runs package folders, without a release."""
    try:
        import milrun  # noqa: PLC0415  # loads torch
    except ModuleNotFoundError as error:
        raise EngineError(f"engine milrun needs {error.name}: pip install 'corembed[emulator]'") from error
    models: dict[Path, Any] = {}

    def load(package: Path, function: Function) -> Predict:
        if package not in models:
            size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
            models[package] = milrun.load(package, keep_weights=size <= KEEP)
        model = models[package]

        def predict(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            outputs: Mapping[str, Array] = model.predict(dict(inputs), function=function.name)
            return outputs

        return predict

    return PackageEngine(NAME, packages, load)
