"""The engine `mlx`: the source checkpoint, with the release's recipe, on Apple's GPU (or, on Linux, the CPU)."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from corembed.engines.base import Ids, Request, Vectors, shapes
from corembed.engines.sentence_transformers import unknown_recipe
from corembed.errors import EngineError
from corembed.release import Function, Package, Recipe

NAME = "mlx"
POOLINGS = ("mean", "cls", "lasttoken")


def passed_over(request: Request) -> str | None:
    """Why this engine cannot run here."""
    if importlib.util.find_spec("mlx") is None:
        return f"not installed: pip install '{_requirement(request)}'"
    return unknown_recipe(request.release.recipe, POOLINGS)


def make(request: Request) -> MlxEngine:
    """Load the source checkpoint in the types its weights have."""
    try:
        import mlx.core  # noqa: F401, PLC0415  # loads a GPU library, which may be missing although mlx is there

        from corembed.engines import mlx_models  # noqa: PLC0415
    except ImportError as error:
        raise EngineError(f"cannot be loaded ({error}): pip install '{_requirement(request)}'") from error
    folder, recipe = request.source(), request.release.recipe
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    functions = shapes(request.release.tokenizer.max_length)
    try:
        encoder = mlx_models.encoder(config, weights(folder))
        dense = [(weights(folder / d.path), d.activation) for d in recipe.dense]
        engine = MlxEngine(encoder, recipe, dense, functions)
        first = functions[0]  # once through every tensor, so that one that is missing is missed now
        engine.run(first, *np.ones((2, first.batch, first.length), np.int32))
    except KeyError as error:
        raise EngineError(f"{folder}: its configuration or its weights have no {error}") from error
    return engine


def _requirement(request: Request) -> str:
    return "mlx" if request.machine.system == "Darwin" else "mlx[cpu]"


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint's safetensors, by name; read when first used."""
    import mlx.core as mx  # noqa: PLC0415  # loads a GPU library

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise EngineError(f"{folder}: no model*.safetensors")
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= mx.load(str(file))  # type: ignore[arg-type]
    return tensors


class MlxEngine:
    """An encoder with its pooling; one call at a time."""

    name = NAME
    reason = ""
    package: Package | None = None

    def __init__(
        self,
        encoder: Any,
        recipe: Recipe,
        dense: list[tuple[dict[str, Any], str]],
        functions: tuple[Function, ...],
    ) -> None:
        self.functions: tuple[Function, ...] | None = functions
        self._encoder, self._recipe, self._dense = encoder, recipe, dense
        self._lock = threading.Lock()

    def run(self, _function: Function, ids: Ids, mask: Ids) -> Vectors:
        """See `Engine`."""
        import mlx.core as mx  # noqa: PLC0415  # already loaded

        from corembed.engines import mlx_models  # noqa: PLC0415  # already loaded

        with self._lock:
            there = mx.array(mask)
            hidden = self._encoder(mx.array(ids), there)
            pooled = mlx_models.pool(hidden.astype(mx.float32), there, self._recipe.pooling)
            for tensors, activation in self._dense:
                pooled = mlx_models.dense(pooled, tensors, activation)
            if self._recipe.normalize:
                pooled = pooled / mx.maximum(mx.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
            mx.eval(pooled)
            return np.array(pooled, np.float32)
