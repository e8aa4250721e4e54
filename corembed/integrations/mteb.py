"""mteb: its encoder protocol, so that a release is scored by the field's own benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from corembed.embedder import Embedder
from corembed.engines.base import Vectors
from corembed.integrations.sides import Sides


class CorembedEncoder(AbsEncoder):
    """An encoder for `mteb.evaluate`.

    `model` is an `Embedder`, or a release folder or Hub repository, with the options of `Sides.of`. Prompts are
    chosen as mteb does for sentence-transformers: one of the release's named like the task, its type, or the side;
    else the release's own query and document prompts.
    """

    def __init__(self, model: Embedder | str | Path, revision: str | None = None, **options: Any) -> None:
        if revision is not None:
            options["revision"] = revision
        options.pop("device", None)  # mteb's command line passes it; compute units are chosen otherwise
        self._sides = Sides.of(model, **options)
        embedder = self._sides.embedder
        self.model_prompts = dict(embedder.release.prompts)
        self.mteb_model_meta = _meta(embedder, self._sides.dimensions)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> Vectors:
        """Vectors of a task's texts, in order: float32 (n, D). A release's batch functions decide the batch."""
        name = self.get_prompt_name(task_metadata, prompt_type)
        texts = (text for batch in inputs for text in batch["text"])
        embedder, dimensions = self._sides.embedder, self._sides.dimensions
        if name is not None:
            return embedder.encode(texts, prompt_name=name, dimensions=dimensions)
        if prompt_type == PromptType.query:
            return self._sides.queries(texts)
        if prompt_type == PromptType.document:
            return self._sides.documents(texts)
        return embedder.encode(texts, dimensions=dimensions)


def _meta(embedder: Embedder, dimensions: int | None) -> ModelMeta:
    """What mteb writes beside the scores; what a release does not say is None."""
    record = embedder.release
    # mteb names results by ORGANISATION/MODEL, and to it a variant is another model.
    return ModelMeta(
        loader=None,
        name=f"corembed/{record.model}-{embedder.variant}",
        revision=f"{record.version}-{record.embedding_space}",
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=embedder.max_length,
        embed_dim=dimensions or record.dimension,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=[],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=bool(record.prompts),
        training_datasets=None,
    )
