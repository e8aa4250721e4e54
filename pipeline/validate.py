"""Stage `validate`: does a variant give the vectors that the original gives?

From `packages/VARIANT/` and `reference/`, writes `reports/parity/MODEL/VARIANT.json` (the figures) and
`reports/evidence/MODEL/VARIANT.json` (the cosine of every text, worst first; the hash of every file judged), then fails if a gate of the variant is
missed. The packages run in Core ML on a Mac and in milrun elsewhere; the report says which. Judged is the worst
text over all layouts, never the mean; a cosine has no unit, 1 is equal.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from corembed import engines
from corembed.release import Function
from corembed.tokenizer import TextTokenizer, Tokens
from pipeline import agreement, params, places
from pipeline.assemble import package_names
from pipeline.errors import PipelineError, run
from pipeline.files import inventory, read_json, write_json
from pipeline.reference import load
from pipeline.trace import tokenizer_of

MIN_SPREAD = 0.5
"""Least share of the reference's spread of pairwise similarities: a near-constant vector falls below it however
high its cosine."""

NORM_TOLERANCE = 4e-3
"""FP16 rounds each entry by up to 2^-11 of itself; the norm then strays by less than this."""

_PROBES = 12  # texts that are run in every bucket


@dataclasses.dataclass(frozen=True)
class Runner:
    """One layout of a variant, ready to embed."""

    layout: str
    engine: engines.Engine
    tokenizer: TextTokenizer
    functions: Sequence[Function]

    def smallest(self, tokens: Tokens) -> Function:
        """The bucket a loader would choose."""
        return next(f for f in self.functions if f.length >= len(tokens.ids))

    def embed(self, tokens: Tokens, function: Function) -> npt.NDArray[np.float32]:
        """One text: float32 (dimension,)."""
        ids, mask = self.tokenizer.pad([tokens], function)
        vector: npt.NDArray[np.float32] = self.engine.run(function, ids, mask)[0]
        return vector


def runners(
    where: places.Places, variant: str, trace: Mapping[str, Any], record: Mapping[str, Any]
) -> list[Runner]:
    """A runner for each layout."""
    tokenizer = TextTokenizer(where.reference / "tokenizer.json", tokenizer_of(record))
    functions = [Function(**f) for f in trace["functions"]]
    folder = where.packages(variant)
    engine = "coreml" if platform.system() == "Darwin" else "milrun"
    found = []
    for layout, count in trace["layouts"].items():
        paths = [folder / name for name in package_names(variant, layout, count)]
        found.append(Runner(layout, engines.make(engine, paths), tokenizer, functions))
    return found


def _check_vectors(vectors: npt.NDArray[np.float32], dimension: int, *, normalized: bool, where: str) -> None:
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


def bucket_agreement(runner: Runner, tokens: Sequence[Tokens]) -> float:
    """Least cosine between the vectors of one text in two buckets, over short texts that fit them all."""
    short = [t for t in tokens if len(t.ids) <= runner.functions[0].length][:_PROBES]
    worst = 1.0
    for item in short:
        vectors = np.stack([runner.embed(item, f) for f in runner.functions])
        worst = min(worst, float(agreement.similarities(vectors).min()))
    return worst


def judge(figures: Mapping[str, Any], gates: params.Gates) -> list[str]:
    """The gates that figures miss: each names what was measured and what is allowed."""
    limits = {
        "min_cosine": gates.min_cosine,
        "top10_overlap": gates.min_top10_overlap,
        "spearman": gates.min_spearman,
        "relative_spread": MIN_SPREAD,
        "bucket_min_cosine": gates.min_cosine,
        "layout_min_cosine": gates.min_cosine,
    }
    return [
        f"{name} {figures[name]:.6f}, allowed at least {limit}"
        for name, limit in limits.items()
        if figures.get(name) is not None and not figures[name] >= limit
    ]


def measure(
    where: places.Places, variant: str, trace: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of a variant against the reference, and the cosine of each text."""
    record = read_json(where.reference_record)
    texts, expected = load(where.reference)
    made = runners(where, variant, trace, record)
    tokens = made[0].tokenizer.encode(list(texts["text"]))
    vectors = {}
    for runner in made:
        progress = tqdm(tokens, desc=f"validate {variant} ({runner.layout})", unit="text", disable=None)
        vectors[runner.layout] = np.stack([runner.embed(t, runner.smallest(t)) for t in progress])
        _check_vectors(
            vectors[runner.layout],
            record["dimension"],
            normalized=record["recipe"]["normalize"],
            where=f"{variant} ({runner.layout})",
        )
    each = np.min([agreement.cosines(v, expected) for v in vectors.values()], axis=0)
    first = next(iter(vectors.values()))
    others = [agreement.cosines(first, v).min() for v in list(vectors.values())[1:]]
    keep = agreement.distinct(expected)
    if len(keep) < len(expected) // 2:
        raise PipelineError(
            f"the original gives only {len(keep)} different vectors for {len(expected)} texts: it cannot tell texts "
            "apart, and nothing can be judged against it; is the checkpoint a trained one?"
        )
    figures = {
        "texts": len(tokens),
        "texts_cut": sum(t.cut > 0 for t in tokens),
        "dimension": int(first.shape[1]),
        "min_cosine": float(each.min()),
        "p1_cosine": float(np.quantile(each, 0.01)),
        "median_cosine": float(np.median(each)),
        "top10_overlap": agreement.top_overlap(first[keep], expected[keep]),
        "spearman": agreement.rank_correlation(first[keep], expected[keep]),
        "relative_spread": agreement.spread(first[keep]) / agreement.spread(expected[keep]),
        "bucket_min_cosine": min(bucket_agreement(r, tokens) for r in made),
        "layout_min_cosine": float(min(others)) if others else None,
        "engine": made[0].engine.name,
    }
    rows = [
        {"group": group, "tokens": len(t.ids), "cosine": float(c), "text": text[:120]}
        for group, text, t, c in zip(texts["group"], texts["text"], tokens, each, strict=True)
    ]
    return figures, rows


def validate(
    where: places.Places, model: str, variant: params.Variant, report: Path, details: Path
) -> dict[str, Any]:
    """Measure, write the report, then raise `PipelineError` if a gate is missed."""
    trace = read_json(where.packages(variant.name) / "packages.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures, rows = measure(where, variant.name, trace)
    missed = judge(figures, variant.gates)
    full = figures | {"model": model, "variant": variant.name, "passed": not missed}
    evidence = {
        "files": inventory(where.packages(variant.name)),
        "gates": dataclasses.asdict(variant.gates),
        "missed": missed,
        "texts": sorted(rows, key=lambda r: r["cosine"]),
    }
    write_json(details, evidence)
    write_json(report, full)
    if missed:
        raise PipelineError(
            f"{model} {variant.name}: {'; '.join(missed)} (report: {report}; worst texts: {details})"
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
