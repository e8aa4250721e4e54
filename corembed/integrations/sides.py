"""The two sides of a search: queries and documents, each with its own prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from corembed.embedder import Embedder, Options
from corembed.engines.base import Vectors


@dataclasses.dataclass(frozen=True)
class Sides:
    """An embedder that knows which side a text is on.

    `query_prompt_name` and `document_prompt_name` replace the release's own choice; `dimensions` keeps the first
    so many (Matryoshka).
    """

    embedder: Embedder
    dimensions: int | None = None
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None

    @classmethod
    def of(
        cls,
        model: Embedder | str | Path,
        *,
        dimensions: int | None = None,
        query_prompt_name: str | None = None,
        document_prompt_name: str | None = None,
        **loading: Any,
    ) -> Self:
        """Of an embedder as it is, or of a release that is loaded with `Embedder.from_pretrained`'s options."""
        if isinstance(model, Embedder):
            if loading:
                raise TypeError(
                    f"{', '.join(loading)}: an embedder is loaded already; pass a release instead"
                )
            return cls(model, dimensions, query_prompt_name, document_prompt_name)
        embedder = Embedder.from_pretrained(model, **loading)
        return cls(embedder, dimensions, query_prompt_name, document_prompt_name)

    def queries(self, texts: Iterable[str]) -> Vectors:
        """Vectors of questions: float32 (n, D)."""
        return self.embedder.encode_query(texts, **self._options(self.query_prompt_name))

    def documents(self, texts: Iterable[str]) -> Vectors:
        """Vectors of what is searched: float32 (n, D)."""
        return self.embedder.encode_document(texts, **self._options(self.document_prompt_name))

    def _options(self, prompt_name: str | None) -> Options:
        return {"prompt_name": prompt_name, "dimensions": self.dimensions}
