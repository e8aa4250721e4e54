"""Which engine runs a release here, and why: Core ML, then MLX, then sentence-transformers; milrun when asked for.

Each engine is one module with the same names: `NAME`, `passed_over` (why it cannot run here, or None) and `make`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from corembed.engines import coreml, emulator
from corembed.engines.base import Engine, Request
from corembed.errors import EngineError

__all__ = ["NAMES", "ORDER", "VARIABLE", "Engine", "EngineError", "Request", "choose", "make", "reasons"]

ORDER = ("coreml", "mlx", "sentence-transformers")
"""What is tried when nothing is asked for. milrun is not: it emulates, and would hide a missing engine."""
NAMES = (*ORDER, "milrun")
VARIABLE = "COREMBED_ENGINE"
_MODULES = {"milrun": "emulator", "sentence-transformers": "sentence_transformers"}

_log = logging.getLogger("corembed")


def _module(name: str) -> ModuleType:
    if name not in NAMES:
        raise EngineError(f"no engine {name!r}; there is {', '.join(NAMES)}")
    return importlib.import_module(f"corembed.engines.{_MODULES.get(name, name)}")


def reasons(request: Request) -> dict[str, str | None]:
    """For each engine why it cannot run the release here, or None where it can."""
    return {name: _module(name).passed_over(request) for name in NAMES}


def choose(name: str | None, request: Request) -> Engine:
    """The engine asked for by argument or by `COREMBED_ENGINE`, else the first of `ORDER` that can run here.

    Raises `EngineError` with the reason of each, where none can.
    """
    asked = name or os.environ.get(VARIABLE) or None
    if asked:
        module = _module(asked)
        if why := module.passed_over(request):
            raise EngineError(f"engine {asked}: {why}")
        engine: Engine = module.make(request)
        engine.reason = "asked for by argument" if name else f"asked for by {VARIABLE}"
        _log.info("%s runs in %s: %s", request.release.model, asked, engine.reason)
        return engine
    passed: list[str] = []
    for candidate in ORDER:
        module = _module(candidate)
        try:
            why = module.passed_over(request)
            if not why:
                engine = module.make(request)
                engine.reason = f"passed over: {'; '.join(passed)}" if passed else "the first choice"
                _log.info("%s runs in %s; %s", request.release.model, candidate, engine.reason)
                return engine
        except EngineError as error:
            why = str(error)
        passed.append(f"{candidate} ({why})")
    raise EngineError(
        f"nothing here can run {request.release.model}: {'; '.join(passed)}. Where torch is installed, "
        "engine=\"milrun\" runs the packages themselves (pip install 'corembed[emulator]')"
    )


def make(name: str, packages: Sequence[Path], compute_units: str = "CPU_AND_NE") -> Engine:
    """An engine for package folders that belong to no release yet: `coreml` or `milrun`."""
    if name == "milrun":
        return emulator.of(packages)
    if name == "coreml":
        return coreml.of(packages, compute_units)
    raise EngineError(f"engine {name!r} runs no packages; coreml and milrun do")
