"""What a variant loses in use: retrieval and similarity judged by people, with intervals.

Figures of the variant stand beside the original's on the same texts. A drop is original minus variant, so above 0 is
a loss; its 95 % interval comes from a paired bootstrap over queries (Efron and Tibshirani 1993, chapter 13), because
the figure of one model alone moves by far more than the difference of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from pipeline.agreement import unit

Vectors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

DEPTH = 10  # documents looked at for each query
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles


def ranking(
    queries: Vectors, documents: Vectors, names: Sequence[str], depth: int = DEPTH
) -> npt.NDArray[Any]:
    """Indices of the best documents of each query by cosine, int (queries, depth); ties by document id."""
    scores = unit(queries) @ unit(documents).T
    by_name = np.argsort(np.array(names), kind="stable")
    order = np.argsort(-scores[:, by_name], axis=1, kind="stable")[:, :depth]
    return by_name[order]


def ndcg_and_recall(ranked: npt.NDArray[Any], relevant: Sequence[set[int]]) -> tuple[Doubles, Doubles]:
    """NDCG and recall of each query at the ranking's depth, relevance being 0 or 1 (Järvelin and Kekäläinen 2002)."""
    discount = 1 / np.log2(np.arange(2, ranked.shape[1] + 2))
    gains = np.array(
        [[d in wanted for d in row] for row, wanted in zip(ranked.tolist(), relevant, strict=True)]
    )
    ideal = np.array([discount[: min(len(w), len(discount))].sum() for w in relevant])
    recall = gains.sum(1) / np.array([len(w) for w in relevant])
    return (gains * discount).sum(1) / ideal, recall


def interval(differences: Doubles, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of paired differences."""
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(1), INTERVAL)
    return float(low), float(high)


def retrieval(
    rows: Sequence[Mapping[str, Any]], variant: Vectors, original: Vectors
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures over all queries and by language, and each query's, from the largest loss on."""
    documents = [i for i, row in enumerate(rows) if row["use"] == "document"]
    queries = [i for i, row in enumerate(rows) if row["use"] == "query"]
    names = [rows[i]["id"] for i in documents]
    place = {name: i for i, name in enumerate(names)}
    relevant = [{place[name] for name in rows[i]["relevant"]} for i in queries]
    each = {}
    for kind, vectors in (("variant", variant), ("original", original)):
        ranked = ranking(vectors[queries], vectors[documents], names)
        each[kind] = ndcg_and_recall(ranked, relevant)
    languages = np.array([rows[i]["language"] for i in queries])
    figures: dict[str, Any] = {"queries": len(queries), "documents": len(documents)}
    figures |= _compared(each, np.ones(len(queries), bool))
    figures["languages"] = {
        str(language): {"queries": int((languages == language).sum())}
        | _compared(each, languages == language)
        for language in np.unique(languages)
    }
    loss = each["original"][0] - each["variant"][0]
    figures["queries_changed"] = int((loss != 0).sum())
    worst = [
        {
            "query": rows[queries[i]]["text"],
            "language": rows[queries[i]]["language"],
            "ndcg10": float(each["variant"][0][i]),
            "original_ndcg10": float(each["original"][0][i]),
        }
        for i in np.argsort(-loss, kind="stable")
        if loss[i] > 0
    ]
    return figures, worst


def _compared(each: Mapping[str, tuple[Doubles, Doubles]], chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, name in enumerate(("ndcg10", "recall10")):
        ours, theirs = each["variant"][number][chosen], each["original"][number][chosen]
        low, high = interval(theirs - ours)
        found |= {
            name: float(ours.mean()),
            f"original_{name}": float(theirs.mean()),
            f"{name}_drop": float((theirs - ours).mean()),
            f"{name}_drop_low": low,
            f"{name}_drop_high": high,
        }
    return found


def similarity(rows: Sequence[Mapping[str, Any]], variant: Vectors, original: Vectors) -> dict[str, Any]:
    """Spearman's correlation of cosines with people's judgement over all pairs; the bootstrap draws texts, not pairs."""
    given = np.array([row["scores"] for row in rows])
    judged = np.maximum(given, given.T)  # files give one triangle
    upper = np.triu_indices(len(rows), 1)
    people = judged[upper]
    ours, theirs = ((unit(v) @ unit(v).T) for v in (variant, original))
    drops = []
    generator = np.random.default_rng(0)
    for _ in range(RESAMPLES // 4):  # a correlation of all pairs each
        drawn = generator.integers(0, len(rows), len(rows))
        first, second = drawn[upper[0]], drawn[upper[1]]
        apart = first != second
        first, second = first[apart], second[apart]
        human = judged[first, second]
        drops.append(
            spearmanr(theirs[first, second], human).statistic
            - spearmanr(ours[first, second], human).statistic
        )
    low, high = np.percentile(drops, INTERVAL)
    own, reference = (float(spearmanr(m[upper], people).statistic) for m in (ours, theirs))
    return {
        "texts": len(rows),
        "spearman": own,
        "original_spearman": reference,
        "spearman_drop": reference - own,
        "spearman_drop_low": float(low),
        "spearman_drop_high": float(high),
    }
