"""A release as a function from texts to vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Self, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from corembed import download, engines, machine
from corembed import source as origin
from corembed.encoding import Job, Truncate, checked
from corembed.engines.base import Vectors
from corembed.errors import ReleaseError
from corembed.release import Function, Release
from corembed.tokenizer import TextTokenizer, Tokenized

WINDOW = 2048
"""Texts that are tokenized, sorted by length and packed together: memory stays that of one window."""


class Options(TypedDict, total=False):
    """What `Embedder.encode` takes beside the texts."""

    prompt_name: str | None
    prompt: str | None
    dimensions: int | None
    normalize: bool
    batch_size: int | None
    show_progress: bool
    truncate: Truncate


class StreamOptions(Options, total=False):
    """What `Embedder.encode_iter` takes beside the texts."""

    window: int


class Embedder:
    """Embeds texts with one variant of a release. Threads may share it.

    `release` is its record, `folder` where it lies, `engine` what runs it, `package` the variant and layout in use
    (None where the engine runs the source model).
    """

    def __init__(self, record: Release, folder: Path, engine: engines.Engine) -> None:
        self.release, self.folder, self.engine, self.package = record, folder, engine, engine.package
        longest = max(f.length for f in self.functions)
        if longest < record.tokenizer.max_length:
            raise ReleaseError(
                f"{record.model} cuts texts at {record.tokenizer.max_length} tokens, but its longest function takes "
                f"{longest}: the release is inconsistent"
            )
        self.tokenizer = TextTokenizer(folder / "tokenizer.json", record.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | Path,
        revision: str | None = None,
        variant: str | None = None,
        engine: str | None = None,
        compute_units: str | None = None,
        layout: str | None = None,
        *,
        source: str | Path | None = None,
        token: str | None = None,
    ) -> Self:
        """Load a release folder, or a Hub repository at a revision (tag, branch or commit).

        Only the files of the variant and layout that will run are fetched, named one by one, and checked against
        `release.json`: sizes always, SHA-256 on first use.

        `variant` defaults to the first of the release. `engine` (or `COREMBED_ENGINE`) is `coreml`, `mlx`,
        `sentence-transformers` or `milrun`; by default the first of the first three that can run here, and
        `embedder.engine.reason` says why. The second and third run the release's source checkpoint (`source`: its
        folder, if it cannot be fetched) with the release's recipe. `compute_units` is one of Core ML's (`ALL`,
        `CPU_AND_NE`, `CPU_AND_GPU`, `CPU_ONLY`); `layout` is `parts` or `single`; both are chosen by chip and
        macOS version if not given. `token` is for a private repository; the Hub's own login serves too.

        Raises `ReleaseError` for a release that is incomplete, damaged or too new, `EngineError` where nothing can
        run it.
        """
        located = download.locate(folder_or_repo, revision, token)
        record = located.record
        record.package(variant, layout)  # refuse an unknown variant before anything is fetched for it
        located.basics()
        request = engines.Request(
            release=record,
            machine=machine.here(),
            variant=variant,
            layout=layout,
            compute_units=compute_units,
            packages=located.packages,
            source=lambda: origin.fetch(record, source, token),
        )
        return cls(record, located.folder, engines.choose(engine, request))

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.release.dimension

    @property
    def variant(self) -> str:
        """The variant in use; `source` where the engine runs the source model."""
        return self.package.variant if self.package else "source"

    @property
    def max_length(self) -> int:
        """Most tokens of a text that the model sees, special tokens included."""
        return self.release.tokenizer.max_length

    @property
    def embedding_space(self) -> str:
        """Fingerprint of what decides a vector's meaning: only vectors of one space may be compared."""
        return self.release.embedding_space

    @property
    def functions(self) -> tuple[Function, ...]:
        """The shapes that the engine runs."""
        return self.engine.functions or self.release.functions

    def function(self, tokens: int) -> Function:
        """The smallest function that holds this many tokens."""
        return min((f for f in self.functions if f.length >= tokens), key=lambda f: (f.length, f.batch))

    def __repr__(self) -> str:
        used = f"{self.package.variant} ({self.package.layout})" if self.package else "source model"
        return (
            f"Embedder({self.release.model} {self.release.version}, {used}, {self.dimension} dimensions, "
            f"engine {self.engine.name})"
        )

    def encode(
        self,
        texts: str | Iterable[str],
        prompt_name: str | None = None,
        dimensions: int | None = None,
        *,
        prompt: str | None = None,
        normalize: bool = True,
        batch_size: int | None = None,
        show_progress: bool = False,
        truncate: Truncate = "warn",
    ) -> Vectors:
        """Embed texts: float32 (n, D) in the order given, unit rows; a single string gives (D,).

        `prompt_name` names one of the release's prompts, `prompt` is one of your own and wins; either is put before
        each text. `dimensions` keeps the first so many (Matryoshka), where the release declares them. `normalize`
        false leaves rows as the model and the cut made them. `batch_size` is the most rows in one call of the
        model. Texts beyond the longest bucket are cut: with one warning that counts them, silently, or not at all
        (`truncate`). The texts may be any iterable; of it only a window is held at a time.

        Raises `TypeError` for what is not a string, `TruncationError`, and `VectorError` for a vector that is not
        one; each names the text's index.
        """
        options: Options = {
            "prompt_name": prompt_name,
            "prompt": prompt,
            "dimensions": dimensions,
            "normalize": normalize,
            "batch_size": batch_size,
            "show_progress": show_progress,
            "truncate": truncate,
        }
        if isinstance(texts, str):
            single: Vectors = self.encode([texts], **options)[0]
            return single
        if isinstance(texts, Sized):
            vectors: Vectors = np.empty((len(texts), self._width(dimensions)), np.float32)
            filled = 0
            for block in self.encode_iter(texts, **options):
                vectors[filled : filled + len(block)] = block
                filled += len(block)
            return vectors
        blocks = list(self.encode_iter(texts, **options))
        return np.concatenate([np.empty((0, self._width(dimensions)), np.float32), *blocks])

    def encode_iter(self, texts: Iterable[str], **options: Unpack[StreamOptions]) -> Iterator[Vectors]:
        """Embed a stream: blocks of float32 (at most `window`, D), in order, as soon as each is done.

        `window` (default `WINDOW`) is how many texts are sorted and packed together. A smaller one gives blocks
        sooner, a larger one fuller batches.
        Takes what `encode` takes. Arguments are checked at the call, texts as they come.
        """
        if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
            raise TypeError(f"texts is {type(texts).__name__}, expected an iterable of str")
        truncate = options.get("truncate", "warn")
        if truncate not in {"error", "warn", "silent"}:
            raise ValueError(f"truncate={truncate!r}: expected error, warn or silent")
        for name in ("batch_size", "window"):
            count = options.get(name)
            if isinstance(count, int) and count < 1:
                raise ValueError(f"{name}={count}: expected at least 1")
        width = self._width(options.get("dimensions"))
        prefix = self._prefix(options.get("prompt_name"), options.get("prompt"))
        return Job(
            record=self.release,
            engine=self.engine,
            tokenizer=self.tokenizer,
            functions=self.functions,
            prefix=prefix,
            width=width,
            window=options.get("window", WINDOW),
            normalize=options.get("normalize", True),
            batch_size=options.get("batch_size"),
            truncate=truncate,
            show_progress=options.get("show_progress", False),
        ).blocks(texts)

    def encode_query(self, texts: str | Iterable[str], **options: Unpack[Options]) -> Vectors:
        """`encode` with the prompt named `query`, where the release has it and no other is asked for."""
        return self.encode(texts, **self._with_prompt(options, "query"))

    def encode_document(self, texts: str | Iterable[str], **options: Unpack[Options]) -> Vectors:
        """`encode` with the prompt named `document`, `passage` or `corpus`, whichever the release has first."""
        return self.encode(texts, **self._with_prompt(options, "document", "passage", "corpus"))

    async def aencode(self, texts: str | Iterable[str], **options: Unpack[Options]) -> Vectors:
        """`encode` in a thread, so that an event loop goes on meanwhile."""
        import asyncio  # noqa: PLC0415  # a third of this package's import time, for one method

        return await asyncio.to_thread(lambda: self.encode(texts, **options))

    def tokenize(
        self, texts: str | Sequence[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> list[Tokenized]:
        """What the model will see of each text, the prompt and special tokens included, and what would be cut."""
        texts = [texts] if isinstance(texts, str) else texts
        prefix = self._prefix(prompt_name, prompt)
        return self.tokenizer.explain([prefix + checked(t, i) for i, t in enumerate(texts)])

    @staticmethod
    def similarity(first: npt.ArrayLike, second: npt.ArrayLike) -> Vectors:
        """Cosine of each row of one with each row of the other: float32 (n, m)."""
        a, b = (np.atleast_2d(np.asarray(v, np.float32)) for v in (first, second))
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"vectors of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
        norms = [np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b)]
        cosines: Vectors = (a / norms[0]) @ (b / norms[1]).T
        return cosines

    def _with_prompt(self, options: Options, *candidates: str) -> Options:
        there = [name for name in candidates if name in self.release.prompts]
        if there and options.get("prompt") is None and options.get("prompt_name") is None:
            return {**options, "prompt_name": there[0]}
        return options

    def _width(self, dimensions: int | None) -> int:
        allowed = (self.dimension, *self.release.matryoshka_dimensions)
        if dimensions is not None and dimensions not in allowed:
            raise ValueError(
                f"dimensions={dimensions}: {self.release.model} declares {', '.join(map(str, allowed))}"
            )
        return dimensions or self.dimension

    def _prefix(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = name or self.release.default_prompt
        if name is None:
            return ""
        if name not in self.release.prompts:
            raise ValueError(
                f"no prompt {name!r}; {self.release.model} has {', '.join(self.release.prompts) or 'none'}"
            )
        return self.release.prompts[name]
