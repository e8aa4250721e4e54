"""Stage `validate`: does a variant give the vectors that the original gives, and is it as useful?

From `packages/VARIANT/` and `reference/`, writes `reports/parity/MODEL/VARIANT.json` (the figures) and
`reports/evidence/MODEL/VARIANT.json` (every text's cosine, worst first; figures by language, length and domain;
retrieval and similarity; drift by layer; the hash of every file judged), then fails if a gate of the variant is
missed, saying why. The packages run in Core ML on a Mac and in milrun elsewhere; the report says which. Judged is the
worst text over all layouts, never the mean; a cosine has no unit, 1 is equal.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import (
    agreement,
    conditions,
    diagnosis,
    drift,
    invariance,
    params,
    places,
    quality,
    stored,
)
from pipeline.errors import PipelineError, run
from pipeline.files import inventory, read_json, write_json
from pipeline.runner import Runner, Vectors, check_vectors, prompted, runners
from pipeline.stored import Reference

MIN_SPREAD = 0.5
"""Least share of the reference's spread of pairwise similarities: a near-constant vector falls below it however
high its cosine."""


def judge(figures: Mapping[str, Any], gates: params.Gates) -> list[str]:
    """The gates that figures miss: each names what was measured and what is allowed."""
    limits = {
        "min_cosine": gates.min_cosine,
        "top10_overlap": gates.min_top10_overlap,
        "spearman": gates.min_spearman,
        "relative_spread": MIN_SPREAD,
        "bucket_min_cosine": gates.min_cosine,
        "layout_min_cosine": gates.min_cosine,
        "padding_min_cosine": gates.min_cosine,
        "batch_min_cosine": gates.min_cosine,
        "mrl_min_cosine": params.mrl_limit(gates.min_cosine),
    }
    missed = [
        f"{name} {figures[name]:.6f}, allowed at least {limit}"
        for name, limit in limits.items()
        if figures.get(name) is not None and not figures[name] >= limit
    ]
    drop = figures.get("ndcg10_drop_high")
    if drop is not None and not drop <= gates.max_quality_drop:
        missed.append(f"ndcg10_drop_high {drop:.4f}, allowed at most {gates.max_quality_drop}")
    return missed


def matryoshka(vectors: Vectors, expected: Vectors, dimensions: Sequence[int]) -> dict[str, float]:
    """The least cosine with the original's vectors when both are cut to the first so many dimensions."""
    return {str(d): float(agreement.cosines(vectors[:, :d], expected[:, :d]).min()) for d in dimensions}


def parity(vectors: Vectors, expected: Vectors) -> tuple[dict[str, Any], agreement.Doubles]:
    """Figures over all parity texts, and the cosine of each."""
    keep = agreement.distinct(expected)
    if len(keep) < len(expected) // 2:
        raise PipelineError(
            f"the original gives only {len(keep)} different vectors for {len(expected)} texts: it cannot tell texts "
            "apart, and nothing can be judged against it; is the checkpoint a trained one?"
        )
    each = agreement.cosines(vectors, expected)
    figures = {
        "min_cosine": float(each.min()),
        "p1_cosine": float(np.quantile(each, 0.01)),
        "median_cosine": float(np.median(each)),
        "top10_overlap": agreement.top_overlap(vectors[keep], expected[keep]),
        "spearman": agreement.rank_correlation(vectors[keep], expected[keep]),
        "relative_spread": agreement.spread(vectors[keep]) / agreement.spread(expected[keep]),
    }
    return figures, each


def labelled(runner: Runner, reference: Reference, record: Mapping[str, Any]) -> dict[str, Any]:
    """Retrieval and similarity of one layout; nothing where the reference has no labelled texts."""
    places_ = [i for i, row in enumerate(reference.rows) if row["use"] != "parity"]
    if not places_:
        return {"retrieval": None, "similarity": None, "worst_queries": []}
    rows, expected = [reference.rows[i] for i in places_], reference.vectors[places_]
    vectors = runner.embed_all(prompted(runner.tokenizer, rows, record["prompts"]), "quality")
    check_vectors(
        vectors, record["dimension"], normalized=record["recipe"]["normalize"], where="labelled texts"
    )
    pairs = [i for i, row in enumerate(rows) if row["use"] == "similarity"]
    figures, worst = quality.retrieval(rows, vectors, expected)
    judged = quality.similarity([rows[i] for i in pairs], vectors[pairs], expected[pairs])
    return {"retrieval": figures, "similarity": judged, "worst_queries": worst[:10]}


def _least(values: Sequence[float | None]) -> float | None:
    return min((v for v in values if v is not None), default=None)


def measure(
    where: places.Places, variant: str, trace: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], Runner, Reference]:
    """The figures of a variant, what goes into the evidence, and what a diagnosis needs: the first layout, the reference."""
    record = read_json(where.reference_record)
    reference = stored.read(where.reference)
    rows, expected, _ = reference.use("parity")
    vectors: list[Vectors] = []
    least: dict[str, list[float | None]] = {"bucket": [], "padding": [], "batch": []}
    first: Runner | None = None
    for runner in runners(where, variant, trace, record):
        tokens = prompted(runner.tokenizer, rows, record["prompts"])
        vectors.append(runner.embed_all(tokens, f"validate {variant}"))
        check_vectors(
            vectors[-1],
            record["dimension"],
            normalized=record["recipe"]["normalize"],
            where=f"{variant} ({runner.layout})",
        )
        if record["recipe"]["pooling"] != "mean_all":  # which averages padding on purpose
            least["bucket"].append(invariance.buckets(runner, tokens))
            least["padding"].append(invariance.padding(runner, tokens))
        least["batch"].append(invariance.batches(runner, tokens))
        first = first or runner
    assert first is not None  # noqa: S101  # a trace has a layout
    figures, each = parity(vectors[0], expected)
    for other in vectors[1:]:  # judged is the worst layout of each text
        each = np.minimum(each, agreement.cosines(other, expected))
    figures |= {
        "min_cosine": float(each.min()),
        "p1_cosine": float(np.quantile(each, 0.01)),
        "median_cosine": float(np.median(each)),
    }
    cut = matryoshka(vectors[0], expected, record["matryoshka_dimensions"])
    good = labelled(first, reference, record)
    figures |= {
        "texts": len(rows),
        "texts_cut": sum(t.cut > 0 for t in tokens),
        "dimension": int(vectors[0].shape[1]),
        "mrl_min_cosine": min(cut.values(), default=None),
        "layout_min_cosine": _least([float(agreement.cosines(vectors[0], v).min()) for v in vectors[1:]]),
        "engine": first.engine.name,
    }
    figures |= {f"{name}_min_cosine": _least(values) for name, values in least.items()}
    figures |= dict.fromkeys(QUALITY)
    if good["retrieval"]:
        figures |= {name: good["retrieval"][name] for name in QUALITY if name in good["retrieval"]}
        figures["sts_spearman"] = good["similarity"]["spearman"]
        figures["sts_spearman_drop_high"] = good["similarity"]["spearman_drop_high"]
    counts = [len(t.ids) for t in tokens]
    evidence = {
        "texts": sorted(
            (
                {k: row[k] for k in ("language", "domain")}
                | {"tokens": count, "cosine": float(c), "text": row["text"][:120]}
                for row, count, c in zip(rows, counts, each, strict=True)
            ),
            key=lambda r: r["cosine"],
        ),
        "groups": agreement.groups(rows, counts, each),
        "matryoshka": cut,
        "drift": drift.drift(first, reference.probes),
        **good,
    }
    return figures, evidence, first, reference


QUALITY = (
    "ndcg10",
    "original_ndcg10",
    "ndcg10_drop",
    "ndcg10_drop_low",
    "ndcg10_drop_high",
    "recall10",
    "original_recall10",
    "recall10_drop_high",
    "sts_spearman",
    "sts_spearman_drop_high",
)
"""Figures of labelled texts; null for a model without any."""


def validate(
    where: places.Places, model: str, variant: params.Variant, report: Path, details: Path
) -> dict[str, Any]:
    """Measure, write the report, then raise `PipelineError` if a gate is missed."""
    trace = read_json(where.packages(variant.name) / "packages.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures, evidence, runner, reference = measure(where, variant.name, trace)
        missed = judge(figures, variant.gates)
        record = read_json(where.reference_record)
        causes = diagnosis.diagnose(runner, reference, record, figures) if missed else []
    full = figures | {"model": model, "variant": variant.name, "passed": not missed}
    evidence |= {
        "provenance": {
            "source": read_json(where.source),
            "package": trace["metadata"],
            "target": trace["target"],
            "functions": trace["functions"],
            "reference": inventory(where.reference),
            "original": record["versions"],
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": conditions.machine(),
        },
        "files": inventory(where.packages(variant.name)),
        "gates": dataclasses.asdict(variant.gates),
        "missed": missed,
        "causes": causes,
    }
    write_json(details, evidence)
    write_json(report, full)
    if missed:
        raise PipelineError(
            f"{model} {variant.name}: {'; '.join(missed)}. Cause: {'; '.join(causes)} "
            f"(report: {report}; worst texts: {details})"
        )
    return full


def main() -> None:
    """`python -m pipeline.validate MODEL VARIANT`."""
    model, variant = places.arguments_of(sys.argv, "MODEL", "VARIANT")
    details = places.report("evidence", model, variant)
    validate(
        places.of(model), model, params.variant(variant), places.report("parity", model, variant), details
    )


if __name__ == "__main__":
    run(main)
