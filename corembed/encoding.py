"""One call of `Embedder.encode`: texts by windows, each tokenized, packed, run, checked and given back in order."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Literal

import numpy as np

from corembed import batching
from corembed.engines import Engine
from corembed.engines.base import Vectors
from corembed.errors import TextError, TruncationError, VectorError
from corembed.release import Function, Release
from corembed.tokenizer import TextTokenizer, Tokens

Truncate = Literal["error", "warn", "silent"]

NORM_TOLERANCE = 1e-2
"""A normalising model in FP16 strays from norm 1 by at most 4e-3; more is a broken engine, not rounding."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked for, all arguments checked: `prefix` is put before each text, `width` dimensions are kept."""

    record: Release
    engine: Engine
    tokenizer: TextTokenizer
    functions: tuple[Function, ...]
    prefix: str
    width: int
    window: int
    normalize: bool
    batch_size: int | None
    truncate: Truncate
    show_progress: bool

    def blocks(self, texts: Iterable[str]) -> Iterator[Vectors]:
        """Float32 (at most `window`, `width`) in order; no more than a window of texts is held at a time."""
        source, start, cut = iter(texts), 0, 0
        limit = self.record.tokenizer.max_length
        with _progress(texts, show=self.show_progress) as progress:
            while window := list(itertools.islice(source, self.window)):
                tokens = self._tokens(window, start)
                over = [i for i, item in enumerate(tokens) if item.cut]
                if over and self.truncate == "error":
                    item, index = tokens[over[0]], start + over[0]
                    raise TruncationError(
                        f"text {index} has {len(item.ids) + item.cut} tokens, {self.record.model} sees {limit}: "
                        "split it, or allow truncate='warn'",
                        index,
                    )
                cut += len(over)
                block: Vectors = np.empty((len(window), self.width), np.float32)
                for call in batching.plan([len(t.ids) for t in tokens], self.functions, self.batch_size):
                    block[list(call.rows)] = self._run(call, tokens, start)[:, : self.width]
                    progress.update(len(call.rows))
                norms = np.linalg.norm(block, axis=1, keepdims=True)
                if not norms.all():
                    index = start + int(np.flatnonzero(norms == 0)[0])
                    raise VectorError(f"text {index}: its first {self.width} dimensions are all zero", index)
                start += len(window)
                yield block / norms if self.normalize else block
        if cut and self.truncate == "warn":
            warnings.warn(
                f"{cut} of {start} texts were cut to {limit} tokens; `tokenize` shows what was lost",
                stacklevel=_outside(),
            )

    def _tokens(self, window: Sequence[str], start: int) -> list[Tokens]:
        try:
            tokens = self.tokenizer.encode(
                [self.prefix + checked(text, start + i) for i, text in enumerate(window)]
            )
        except TextError as error:
            index = start + error.index
            raise TextError(str(error).replace(f"text {error.index}", f"text {index}", 1), index) from error
        for index, item in enumerate(tokens, start):
            if not item.ids:
                raise TextError(
                    f"text {index} is empty, and this tokenizer adds no special tokens: nothing to embed",
                    index,
                )
        return tokens

    def _run(self, call: batching.Call, tokens: Sequence[Tokens], start: int) -> Vectors:
        """Vectors of a call's texts, each one checked: right width, finite, non-zero, and of norm 1 if declared."""
        ids, mask = self.tokenizer.pad([tokens[row] for row in call.rows], call.function)
        vectors = self.engine.run(call.function, ids, mask)[: len(call.rows)]
        expected = (len(call.rows), self.record.dimension)
        if vectors.shape != expected:
            raise VectorError(
                f"text {start + call.rows[0]}: the engine {self.engine.name} gave vectors of shape {vectors.shape}, "
                f"expected {expected}",
                start + call.rows[0],
            )
        norms = np.linalg.norm(vectors, axis=1)
        bad = ~np.isfinite(norms) | (norms == 0)
        if self.record.recipe.normalize:
            bad |= ~(np.abs(norms - 1) <= NORM_TOLERANCE)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            index = start + call.rows[row]
            raise VectorError(
                f"text {index}: the engine {self.engine.name} gave a vector of norm {norms[row]}; it is not an "
                "embedding and was not returned",
                index,
            )
        return vectors


def checked(text: str, index: int) -> str:
    """The text, if it is one."""
    if not isinstance(text, str):
        raise TypeError(f"text {index} is {type(text).__name__}, expected str")
    return text


def _outside() -> int:
    """The `stacklevel` of the first caller outside this package (`skip_file_prefixes` needs Python 3.12)."""
    here, level = str(Path(__file__).parent), 1
    frame = sys._getframe(1)  # noqa: SLF001  # what the warnings module itself uses
    while frame.f_back and frame.f_code.co_filename.startswith(here):
        frame, level = frame.f_back, level + 1
    return level


def _progress(texts: Iterable[str], *, show: bool) -> Any:
    from tqdm.auto import tqdm  # noqa: PLC0415  # huggingface-hub brings it; not needed to import corembed

    total = len(texts) if isinstance(texts, Sized) else None
    return tqdm(total=total, desc="embed", unit="text", disable=not show)
