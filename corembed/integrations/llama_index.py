"""LlamaIndex: `BaseEmbedding` of a release."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import PrivateAttr

from corembed.embedder import Embedder
from corembed.integrations.sides import Sides


class CorembedEmbedding(BaseEmbedding):
    """Embeds nodes with the release's document prompt and questions with its query prompt.

    `model` is an `Embedder`, or a release folder or Hub repository. Options are `dimensions`, `query_prompt_name`,
    `document_prompt_name`, for a release those of `Embedder.from_pretrained`, and the base class's own
    (`embed_batch_size`, `callback_manager`, …).
    """

    _sides: Sides = PrivateAttr()

    def __init__(self, model: Embedder | str | Path, **options: Any) -> None:
        base = {name: options.pop(name) for name in list(options) if name in BaseEmbedding.model_fields}
        sides = Sides.of(model, **options)
        super().__init__(**{"model_name": sides.embedder.release.model} | base)
        self._sides = sides

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's records."""
        return "CorembedEmbedding"

    @property
    def embedding_space(self) -> str:
        """Fingerprint of the space: keep it with an index, and compare it before adding."""
        return self._sides.embedder.embedding_space

    def _get_query_embedding(self, query: str) -> Embedding:
        row: Embedding = self._sides.queries([query])[0].tolist()
        return row

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        rows: list[Embedding] = self._sides.documents(texts).tolist()
        return rows

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
