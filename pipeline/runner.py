"""One layout of a variant, ready to embed: in Core ML on a Mac, in milrun elsewhere."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from corembed import engines
from corembed.release import Function
from corembed.tokenizer import TextTokenizer, Tokens
from pipeline import places
from pipeline.assemble import package_names
from pipeline.errors import PipelineError
from pipeline.trace import tokenizer_of

Vectors = npt.NDArray[np.float32]

NORM_TOLERANCE = 4e-3
"""FP16 rounds each entry by up to 2^-11 of itself; the norm then strays by less than this."""


@dataclasses.dataclass(frozen=True)
class Runner:
    """One layout of a variant: `packages` in running order, `functions` by length."""

    layout: str
    packages: Sequence[Path]
    engine: engines.Engine
    tokenizer: TextTokenizer
    functions: Sequence[Function]

    @property
    def buckets(self) -> list[Function]:
        """The functions for one text, shortest first."""
        single = [f for f in self.functions if f.batch == 1]
        return sorted(single or self.functions, key=lambda f: f.length)

    def smallest(self, tokens: Tokens) -> Function:
        """The bucket a loader would choose."""
        return next(f for f in self.buckets if f.length >= len(tokens.ids))

    def embed(self, tokens: Tokens, function: Function | None = None) -> Vectors:
        """One text in its smallest bucket, or in the one given: float32 (dimension,)."""
        function = function or self.smallest(tokens)
        ids, mask = self.tokenizer.pad([tokens], function)
        vector: Vectors = self.engine.run(function, ids, mask)[0]
        return vector

    def embed_all(self, tokens: Sequence[Tokens], label: str) -> Vectors:
        """All texts, each in its smallest bucket: float32 (n, dimension).

        Core ML runs the functions of one text, which is what clients call. milrun takes the largest batch there is,
        so that it decodes the weights of a large model once for all its texts; `pipeline.invariance` compares both.
        """
        found: dict[int, Vectors] = {}
        progress = tqdm(total=len(tokens), desc=f"{label} ({self.layout})", unit="text", disable=None)
        for bucket in self.buckets:
            mine = [i for i, t in enumerate(tokens) if self.smallest(t) == bucket]
            function = bucket if self.engine.name == "coreml" else self._widest(bucket)
            for start in range(0, len(mine), function.batch):
                rows = mine[start : start + function.batch]
                ids, mask = self.tokenizer.pad([tokens[i] for i in rows], function)
                found |= dict(zip(rows, self.engine.run(function, ids, mask), strict=False))
                progress.update(len(rows))
        progress.close()
        return np.stack([found[i] for i in range(len(tokens))])

    def _widest(self, bucket: Function) -> Function:
        return max((f for f in self.functions if f.length == bucket.length), key=lambda f: f.batch)


def runners(
    where: places.Places, variant: str, trace: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[Runner]:
    """A runner for each layout; only one is in memory at a time if the caller lets go of the last."""
    tokenizer = TextTokenizer(where.reference / "tokenizer.json", tokenizer_of(record))
    functions = [Function(**f) for f in trace["functions"]]
    folder = where.packages(variant)
    engine = "coreml" if platform.system() == "Darwin" else "milrun"
    for layout, count in trace["layouts"].items():
        paths = [folder / name for name in package_names(variant, layout, count)]
        yield Runner(layout, paths, engines.make(engine, paths), tokenizer, functions)


def prompted(
    tokenizer: TextTokenizer, rows: Sequence[Mapping[str, Any]], prompts: Mapping[str, str]
) -> list[Tokens]:
    """Tokens of texts behind the prompts that their rows name."""
    return tokenizer.encode([prompts.get(row["prompt"] or "", "") + row["text"] for row in rows])


def check_vectors(vectors: Vectors, dimension: int, *, normalized: bool, where: str) -> None:
    """Refuse vectors of another width, and any that is zero, not finite, or not of length 1 where it must be."""
    if vectors.shape[1] != dimension:
        raise PipelineError(
            f"{where}: vectors have {vectors.shape[1]} dimensions, the checkpoint's have {dimension}"
        )
    norms = np.linalg.norm(vectors, axis=1)
    bad = ~np.isfinite(vectors).all(1) | (norms == 0)
    if normalized:
        bad |= np.abs(norms - 1) > NORM_TOLERANCE
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise PipelineError(
            f"{where}: text {index} gives a vector of norm {norms[index]:.6g}; it is not an embedding"
        )
