"""LangChain: `Embeddings` of a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from corembed.embedder import Embedder
from corembed.integrations.sides import Sides


class CorembedEmbeddings(Embeddings):
    """Embeds documents with the release's document prompt and queries with its query prompt.

    `model` is an `Embedder`, or a release folder or Hub repository. Options are `dimensions`, `query_prompt_name`,
    `document_prompt_name` and, for a release, those of `Embedder.from_pretrained`. The asynchronous methods of the
    base class run these in a thread; threads may share one object.
    """

    def __init__(self, model: Embedder | str | Path, **options: Any) -> None:
        self._sides = Sides.of(model, **options)

    @property
    def embedding_space(self) -> str:
        """Fingerprint of the space: keep it with a vector store, and compare it before adding."""
        return self._sides.embedder.embedding_space

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of what is searched."""
        rows: list[list[float]] = self._sides.documents(texts).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """Vector of a question."""
        row: list[float] = self._sides.queries([text])[0].tolist()
        return row
