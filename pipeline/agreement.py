"""How far two sets of embeddings of the same texts agree: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

Vectors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def cosines(a: Vectors, b: Vectors) -> Doubles:
    """Cosine of each row of `a` with the same row of `b`: float64 (n,)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    product: Doubles = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return product


def unit(vectors: Vectors) -> Doubles:
    """Rows of length 1: float64, same shape."""
    wide = vectors.astype(np.float64)
    scaled: Doubles = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def similarities(vectors: Vectors) -> Doubles:
    """Cosine of every row with every row: float64 (n, n)."""
    rows = unit(vectors)
    matrix: Doubles = rows @ rows.T
    return matrix


def distinct(vectors: Vectors) -> npt.NDArray[np.intp]:
    """Indices of rows that are no near-duplicate (cosine above 0.9999) of an earlier row: ties say nothing."""
    matrix = similarities(vectors)
    return np.array([i for i in range(len(matrix)) if not (matrix[i, :i] > 0.9999).any()], dtype=np.intp)


def top_overlap(a: Vectors, b: Vectors, k: int = 10) -> float:
    """Mean share of the k nearest other rows that both have in common; ties are broken by index."""
    k = min(k, len(a) - 1)

    def nearest(vectors: Vectors) -> npt.NDArray[np.intp]:
        matrix = similarities(vectors)
        np.fill_diagonal(matrix, -np.inf)
        return np.argsort(-matrix, axis=1, kind="stable")[:, :k]

    pairs = zip(nearest(a), nearest(b), strict=True)
    return float(np.mean([len(np.intersect1d(x, y)) / k for x, y in pairs]))


def rank_correlation(a: Vectors, b: Vectors) -> float:
    """Spearman's correlation of all pairwise similarities; 0 where one side is constant."""
    upper = np.triu_indices(len(a), 1)
    x, y = similarities(a)[upper], similarities(b)[upper]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)


def spread(vectors: Vectors) -> float:
    """Standard deviation of the pairwise similarities: near 0 for vectors that tell nothing apart."""
    return float(similarities(vectors)[np.triu_indices(len(vectors), 1)].std())


def groups(rows: Sequence[Mapping[str, Any]], tokens: Sequence[int], values: Doubles) -> list[dict[str, Any]]:
    """Least, 1st percentile and median of `values` by language, by length in tokens, and by domain."""
    labels = [
        [("language", row["language"]), ("domain", row["domain"]), ("length", _length(count))]
        for row, count in zip(rows, tokens, strict=True)
    ]
    found = []
    for kind, name in sorted({label for each in labels for label in each}, key=_order):
        chosen = values[[(kind, name) in each for each in labels]]
        found.append(
            {
                "kind": kind,
                "group": name,
                "texts": len(chosen),
                "min": float(chosen.min()),
                "p1": float(np.quantile(chosen, 0.01)),
                "median": float(np.median(chosen)),
            }
        )
    return found


_LENGTHS = (8, 16, 32, 64, 128, 256, 512)


def _length(count: int) -> str:
    """The class of a text's length: the first of doubling limits that holds it."""
    for low, high in zip((0, *_LENGTHS), _LENGTHS, strict=False):
        if count <= high:
            return f"{low + 1}-{high} tokens"
    return f"over {_LENGTHS[-1]} tokens"


def _order(label: tuple[str, str]) -> tuple[str, int, str]:
    kind, name = label
    first = name.split("-")[0]
    return kind, int(first) if first.isdigit() else 1 << 30, name
