"""Chroma: an embedding function, and collections that refuse vectors of another embedding space.

Chroma hands an embedding function texts, never the collection they are for, so the function alone cannot see that a
collection holds another model's vectors. `open_collection` can: it writes the fingerprint into the metadata of a
collection that it makes, and compares it before it gives out one that exists. Nothing is ever deleted.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.errors import NotFoundError
from chromadb.utils.embedding_functions import register_embedding_function

from corembed.embedder import Embedder
from corembed.errors import CorembedError
from corembed.integrations.sides import Sides

SPACE, DIMENSION, MODEL = "corembed:embedding_space", "corembed:dimension", "corembed:model"
"""Keys in a collection's metadata."""

LOADING = ("revision", "variant", "layout")
OPTIONS = ("dimensions", "query_prompt_name", "document_prompt_name")


class EmbeddingSpaceError(CorembedError, ValueError):
    """Vectors of two spaces would meet in one collection: their similarities would mean nothing."""


@register_embedding_function
class CorembedEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents with the release's document prompt and queries with its query prompt.

    `model` is a release folder or a Hub repository; `embedder` is one that is loaded already. The configuration
    that Chroma keeps holds what decides the vectors (model, revision, variant, layout, dimensions, prompts and the
    fingerprint of the embedding space), not what runs them: `engine` and `compute_units` are this machine's matter.
    The model is loaded at the first use; its space must then be the one in the configuration.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        embedder: Embedder | None = None,
        embedding_space: str | None = None,
        engine: str | None = None,
        compute_units: str | None = None,
        **options: Any,
    ) -> None:
        if unknown := set(options) - {*LOADING, *OPTIONS}:
            raise TypeError(f"{', '.join(sorted(unknown))}: there is {', '.join((*LOADING, *OPTIONS))}")
        folder = Path(model)
        self._model = str(folder.resolve()) if folder.is_dir() else str(model)
        self._options: dict[str, Any] = {name: options.get(name) for name in (*LOADING, *OPTIONS)}
        self._machine = {"engine": engine, "compute_units": compute_units}
        self._embedder, self._space = embedder, embedding_space
        self._sides: Sides | None = None
        self._lock = threading.Lock()

    @property
    def sides(self) -> Sides:
        """The embedder with its prompts; loaded once, by whichever thread is first."""
        with self._lock:
            if self._sides is None:
                embedder = self._embedder or Embedder.from_pretrained(
                    self._model,
                    **{name: self._options[name] for name in LOADING},
                    **self._machine,
                )
                if self._space not in {None, embedder.embedding_space}:
                    raise EmbeddingSpaceError(
                        f"{self._model} embeds in space {embedder.embedding_space}, the collection's configuration "
                        f"says {self._space}: use the release that it was made with, or make a new collection"
                    )
                self._sides = Sides(embedder, **{name: self._options[name] for name in OPTIONS})
            return self._sides

    @property
    def metadata(self) -> dict[str, Any]:
        """What `open_collection` writes into a collection's metadata, and compares."""
        embedder = self.sides.embedder
        width = self.sides.dimensions or embedder.dimension
        return {SPACE: embedder.embedding_space, DIMENSION: width, MODEL: embedder.release.model}

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002  # Chroma's name
        """Vectors of documents."""
        return cast(Embeddings, list(self.sides.documents(input)))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Vectors of queries."""
        return cast(Embeddings, list(self.sides.queries(input)))

    @staticmethod
    def name() -> str:
        """The name in Chroma's registry."""
        return "corembed"

    def default_space(self) -> Space:
        """Cosine: of unit vectors, the same order as Euclidean distance and dot product."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """All: the vectors are of unit length."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What Chroma keeps with a collection."""
        space = self._space or self.sides.embedder.embedding_space
        return {"model": self._model, **self._options, "embedding_space": space}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> CorembedEmbeddingFunction:
        """The function of a collection that is opened again; nothing is loaded yet."""
        return CorembedEmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """A collection may move to another folder or variant of a release, not to another space or width."""
        for key in ("embedding_space", "dimensions"):
            if old_config.get(key) != new_config.get(key):
                raise EmbeddingSpaceError(
                    f"{key} would change from {old_config.get(key)} to {new_config.get(key)}: make a new collection"
                )

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """A configuration names a model and nothing that is not known."""
        unknown = set(config) - {"model", "embedding_space", *LOADING, *OPTIONS}
        if unknown or not isinstance(config.get("model"), str):
            raise ValueError(f"not a configuration of corembed: {config}")


def open_collection(
    client: ClientAPI, name: str, function: CorembedEmbeddingFunction, metadata: dict[str, Any] | None = None
) -> Collection:
    """The collection of this name, made if there is none; refused if it holds vectors of another space.

    Raises `EmbeddingSpaceError` where the fingerprint in its metadata is another one, or where it has none and is
    not empty. `metadata` is for a new collection.
    """
    mine = function.metadata
    try:
        found = client.get_collection(name, embedding_function=None)
    except NotFoundError:
        # Another process may be as quick: whoever comes second gets the first one's, and compares.
        found = client.get_or_create_collection(
            name, embedding_function=cast(Any, function), metadata={**(metadata or {}), **mine}
        )
    theirs = {key: (found.metadata or {}).get(key) for key in mine}
    if theirs[SPACE] is None and found.count():
        raise EmbeddingSpaceError(
            f"collection {name!r} holds {found.count()} vectors of an unknown embedding space, not known to be that "
            f"of {_said(mine)}: use a new collection. Nothing was changed"
        )
    if theirs[SPACE] is None:
        found.modify(metadata={**(found.metadata or {}), **mine})
    elif (theirs[SPACE], theirs[DIMENSION]) != (mine[SPACE], mine[DIMENSION]):
        raise EmbeddingSpaceError(
            f"collection {name!r} holds vectors of {_said(theirs)}, this function makes those of {_said(mine)}: they "
            "cannot be compared. Use a new collection, or the release that this one was made with. Nothing was changed"
        )
    return client.get_collection(name, embedding_function=cast(Any, function))


def _said(metadata: dict[str, Any]) -> str:
    return f"{metadata[MODEL]} (space {metadata[SPACE]}, {metadata[DIMENSION]} dimensions)"
