"""A release as a function from texts to vectors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from corembed import engines, release
from corembed.release import Function, Package, Release, ReleaseError
from corembed.tokenizer import TextTokenizer

Vectors = npt.NDArray[np.float32]


class Embedder:
    """Embeds texts with one variant of a release.

    `release` is its record, `package` the variant and layout in use, `engine` what runs it.
    """

    def __init__(self, record: Release, folder: Path, package: Package, engine: engines.Engine) -> None:
        self.release, self.package, self.engine = record, package, engine
        self.tokenizer = TextTokenizer(folder / "tokenizer.json", record.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | Path,
        revision: str | None = None,
        variant: str | None = None,
        engine: str | None = None,
        compute_units: str = "CPU_AND_NE",
        layout: str | None = None,
    ) -> Self:
        """Load a release folder, or a Hub repository at a revision (tag or commit).

        Only the files of the variant and layout are fetched, named one by one. `variant` defaults to the first
        of the release; `engine` to Core ML; `compute_units` is one of Core ML's (`ALL`, `CPU_AND_NE`,
        `CPU_AND_GPU`, `CPU_ONLY`). Raises `ReleaseError` for a release that is incomplete or too new,
        `EngineError` where nothing can run it.
        """
        folder = Path(folder_or_repo)
        if not folder.is_dir():
            folder = _fetch(str(folder_or_repo), revision, variant, layout)
        record = release.read(folder)
        package = record.package(variant, layout)
        paths = [folder / release.confined(path) for path in package.paths]
        if missing := [path for path in paths if not path.is_dir()]:
            raise ReleaseError(f"{missing[0]} is missing: fetch the release again with this variant")
        return cls(record, folder, package, engines.make(engine, paths, compute_units))

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.release.dimension

    def function(self, tokens: int) -> Function:
        """The smallest bucket that holds this many tokens."""
        return min(
            (f for f in self.release.functions if f.length >= tokens), key=lambda f: (f.length, f.batch)
        )

    def encode(
        self,
        texts: Sequence[str] | str,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        *,
        normalize: bool = True,
    ) -> Vectors:
        """Embed texts: float32 (n, D), unit rows; a single string gives (D,).

        `prompt_name` names one of the release's prompts, which is put before each text. `dimensions` keeps the
        first so many (Matryoshka), where the release declares them. Texts beyond the longest bucket are cut, with
        one warning. A vector that is zero or not finite is an error that names the text's index.
        """
        if isinstance(texts, str):
            single: Vectors = self.encode([texts], prompt_name, dimensions, normalize=normalize)[0]
            return single
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {index} is {type(text).__name__}, expected str")
        width = self._width(dimensions)
        prompt = self._prompt(prompt_name)
        tokens = self.tokenizer.encode([prompt + text for text in texts])
        if cut := sum(t.cut > 0 for t in tokens):
            warnings.warn(
                f"{cut} of {len(tokens)} texts were cut to {self.release.tokenizer.max_length} tokens",
                stacklevel=2,
            )
        vectors = np.empty((len(tokens), width), np.float32)
        for index, item in enumerate(tokens):
            function = self.function(len(item.ids))
            ids, mask = self.tokenizer.pad([item], function)
            vectors[index] = _checked(self.engine.run(function, ids, mask)[0], index)[:width]
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _width(self, dimensions: int | None) -> int:
        allowed = (self.dimension, *self.release.matryoshka_dimensions)
        if dimensions is not None and dimensions not in allowed:
            raise ValueError(
                f"dimensions={dimensions}: {self.release.model} declares {', '.join(map(str, allowed))}"
            )
        return dimensions or self.dimension

    def _prompt(self, name: str | None) -> str:
        name = name or self.release.default_prompt
        if name is None:
            return ""
        if name not in self.release.prompts:
            raise ValueError(
                f"no prompt {name!r}; {self.release.model} has {', '.join(self.release.prompts) or 'none'}"
            )
        return self.release.prompts[name]


def _checked(vector: Vectors, index: int) -> Vectors:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise ArithmeticError(
            f"text {index}: the model gave a vector of norm {norm}; it is not an embedding and was not returned"
        )
    return vector


def _fetch(repo: str, revision: str | None, variant: str | None, layout: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download  # noqa: PLC0415

    record = release.parse(
        Path(hf_hub_download(repo, release.FILE, revision=revision)).read_text(encoding="utf-8")
    )
    package = record.package(variant, layout)
    wanted = [f for f in record.files if any(f.startswith(p + "/") for p in package.paths) or "/" not in f]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=[*wanted, release.FILE]))
