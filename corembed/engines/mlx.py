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
        extra = "mlx" if request.machine.system == "Darwin" else "mlx[cpu]"
        return f"not installed: pip install '{extra}'"
    return unknown_recipe(request.release.recipe, POOLINGS)


def make(request: Request) -> MlxEngine:
    """Load the source checkpoint in the types its weights have."""
    from corembed.engines import mlx_models  # noqa: PLC0415  # loads mlx

    folder = request.source()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = mlx_models.encoder(config, weights(folder))
    dense = [(weights(folder / d.path), d.activation) for d in request.release.recipe.dense]
    return MlxEngine(encoder, request.release.recipe, dense, shapes(request.release.tokenizer.max_length))


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
