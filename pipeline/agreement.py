"""How far two sets of embeddings of the same texts agree: pure functions of arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

Vectors = npt.NDArray[np.float32]


def cosines(a: Vectors, b: Vectors) -> npt.NDArray[np.float64]:
    """Cosine of each row of `a` with the same row of `b`: float64 (n,)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    product: npt.NDArray[np.float64] = (x * y).sum(1) / (
        np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    )
    return product


def similarities(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Cosine of every row with every row: float64 (n, n)."""
    unit = vectors.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    matrix: npt.NDArray[np.float64] = unit @ unit.T
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
