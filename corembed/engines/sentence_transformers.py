"""The engine `sentence-transformers`: the source checkpoint, with the release's recipe, through PyTorch.

The modules are put together from the release's recipe, not from the checkpoint's own files: a recipe that was
overridden for the release must hold here too.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

import numpy as np

from corembed.engines.base import Ids, Request, Vectors, shapes
from corembed.errors import EngineError
from corembed.release import Function, Package, Recipe

NAME = "sentence-transformers"
POOLINGS = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")


def passed_over(request: Request) -> str | None:
    """Why this engine cannot run here."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return "not installed: pip install 'corembed[sentence-transformers]'"
    return unknown_recipe(request.release.recipe, POOLINGS)


def unknown_recipe(recipe: Recipe, poolings: tuple[str, ...]) -> str | None:
    """What in a recipe is not implemented; a field that this module does not know must have its default."""
    if recipe.pooling not in poolings:
        return f"the release's pooling {recipe.pooling!r} is not implemented here"
    if recipe != Recipe(recipe.pooling, recipe.normalize, recipe.dense):
        return "the release's recipe has a step that is not implemented here"
    return None


def make(request: Request) -> SourceEngine:
    """Load the source checkpoint, on Apple's GPU where there is one, else in FP32 on the CPU."""
    try:
        import torch  # noqa: PLC0415  # heavy
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415  # heavy
        from sentence_transformers.sentence_transformer import modules as parts  # noqa: PLC0415  # heavy
    except ImportError as error:  # not there, or of a version before 6
        raise EngineError(
            f"cannot be loaded ({error}): pip install 'corembed[sentence-transformers]'"
        ) from error
    folder = request.source()

    recipe, gpu = request.release.recipe, torch.backends.mps.is_available()
    transformer = parts.Transformer(
        str(folder),
        model_kwargs={"dtype": "auto" if gpu else torch.float32, "local_files_only": True},
    )
    modules: list[Any] = [
        transformer,
        parts.Pooling(transformer.get_embedding_dimension(), pooling_mode=recipe.pooling),
        *(parts.Dense.load(str(folder / dense.path)) for dense in recipe.dense),
        *([parts.Normalize()] if recipe.normalize else []),
    ]
    model = SentenceTransformer(modules=modules, device="mps" if gpu else "cpu").eval()
    return SourceEngine(model, shapes(request.release.tokenizer.max_length))


class SourceEngine:
    """A `SentenceTransformer` fed with token ids; one call at a time, which PyTorch spreads over the cores."""

    name = NAME
    reason = ""
    package: Package | None = None

    def __init__(self, model: Any, functions: tuple[Function, ...]) -> None:
        self.functions: tuple[Function, ...] | None = functions
        self._model, self._lock = model, threading.Lock()

    def run(self, _function: Function, ids: Ids, mask: Ids) -> Vectors:
        """See `Engine`."""
        import torch  # noqa: PLC0415  # already loaded

        features = {
            "input_ids": torch.from_numpy(ids.astype(np.int64)).to(self._model.device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(self._model.device),
        }
        with self._lock, torch.inference_mode():
            vectors: Vectors = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return vectors
