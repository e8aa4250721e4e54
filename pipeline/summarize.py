"""Stage `summarize`: which builds are there, do they pass, and which would one ship?

From the reports of all models and variants in `params.yaml` (not of whatever lies in the folder: removed models
leave files behind), writes `reports/summary.json` (a list of rows, also for `dvc plots`), `reports/index.html`
(self-contained, opens without a network), `reports/texts.parquet` (the cosine of every text with every build),
`reports/comment.md` (for a pull request) and `reports/results.md` (the table that the README shows). Then fails if a
build is worse than the last released one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import mac, params, places, plots, quality, regression
from pipeline.errors import run
from pipeline.files import read_json, staged, write_json
from pipeline.release import template

REPORTS = Path("reports")

GATES = (
    ("min_cosine", "min_cosine", "cosine with the original, worst text"),
    ("top10_overlap", "min_top10_overlap", "ten nearest texts in common"),
    ("spearman", "min_spearman", "order of all similarities (Spearman)"),
    ("bucket_min_cosine", "min_cosine", "same text in another bucket"),
    ("padding_min_cosine", "min_cosine", "other ids under the padding"),
    ("batch_min_cosine", "min_cosine", "same text in a batch of others"),
    ("layout_min_cosine", "min_cosine", "same text in the other layout"),
    ("mrl_min_cosine", "min_cosine", "cut to fewer dimensions (MRL)"),
)
"""Figures with a lower limit: the figure, the gate, and what it says."""

MEANINGS = {
    "ten nearest texts in common": "of each parity text's ten nearest others by the original, the share that is also "
    "among the build's ten nearest; the mean over the texts",
    "order of all similarities (Spearman)": "rank correlation of the cosines of all pairs of parity texts, build "
    "against original",
    "spread of similarities": "standard deviation of those cosines over the original's: near 0 where a build gives "
    "all texts nearly one vector, which a cosine with the original need not show",
    "same text in another bucket, a batch, the other layout": "least cosine of a text's vectors by two functions of "
    "the build",
    "other ids under the padding": "least cosine of a short text's vectors when the padding holds other token ids: "
    "1 where the mask works",
    "cut to fewer dimensions (MRL)": "least cosine with the original's vector when both are cut to the declared widths",
    "share of estimated cost on the Neural Engine": "by Core ML's own compute plan; on a Mac only",
}
"""What the shorter names of gates mean."""

OPTIONAL = {
    "bucket_min_cosine": "buckets against each other: there is one",
    "batch_min_cosine": "batches: every function takes one text",
    "layout_min_cosine": "layouts against each other: there is one",
    "mrl_min_cosine": "fewer dimensions (MRL): the checkpoint declares none",
}
"""Figures that a build may have no use for, and why it has none."""


def rows(everything: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a build that has been judged, in the order of `params.yaml`."""
    found = []
    for model in everything["models"]:
        for variant in params.variants(everything):
            files = [places.report(kind, model, variant) for kind in ("benchmark", "parity", "audit")]
            if all(file.exists() for file in files[:2]):
                measured, judged = read_json(files[0]), read_json(files[1])
                audited = read_json(files[2]) if files[2].exists() else None
                row = {"build": f"{model} {variant}"} | measured | judged
                row |= {
                    "parity_passed": judged["passed"],
                    "audit_passed": audited and audited["passed"],
                    "audited_values": audited and audited["values"],
                    "audited_tensors": audited and audited["tensors"],
                }
                verdicts = (judged["passed"], row["audit_passed"], measured.get("placement_passed"))
                found.append(row | {"passed": all(v is not False for v in verdicts)})
    return found


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a row that fit a table: neither lists nor mappings."""
    return {key: value for key, value in row.items() if not isinstance(value, list | dict)}


def gates(row: Mapping[str, Any], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each gate of a build with what was measured, what is allowed, and whether it holds; null is not measured."""
    found = []
    for figure, gate, text in GATES:
        value = row.get(figure)
        limit = params.mrl_limit(limits[gate]) if figure == "mrl_min_cosine" else limits[gate]
        found.append(
            {"name": text, "measured": value, "allowed": f"at least {limit:g}",
             "passed": None if value is None else value >= limit,
             "applies": value is not None or figure not in OPTIONAL, "why": OPTIONAL.get(figure)}
        )  # fmt: skip
    found.append(
        {"name": "spread of similarities against the original's", "measured": row["relative_spread"],
         "allowed": "at least 0.5", "passed": row["relative_spread"] >= 0.5, "applies": True}
    )  # fmt: skip
    drop = row.get("ndcg10_drop_high")
    found.append(
        {"name": "loss of nDCG@10, upper end of its 95 % interval", "measured": drop,
         "allowed": f"at most {limits['max_quality_drop']}",
         "passed": None if drop is None else drop <= limits["max_quality_drop"], "applies": True}
    )  # fmt: skip
    share = row.get("neural_engine_share_of_cost")
    found.append(
        {"name": "share of estimated cost on the Neural Engine", "measured": share,
         "allowed": f"at least {limits['min_neural_engine_cost']}",
         "passed": None if share is None else share >= limits["min_neural_engine_cost"],
         "applies": limits["min_neural_engine_cost"] > 0, "why": "the variant asks for no placement"}
    )  # fmt: skip
    return found


def not_measured(row: Mapping[str, Any]) -> list[str]:
    """What of a build was not measured, and what it would take."""
    missing = []
    if row["neural_engine_latency_p50_ms"] is None:
        missing.append(
            "latency, throughput, load times, memory and placement in Core ML: they need a Mac (make measure)"
        )
    if row["engine"] != "coreml":
        missing.append("vectors from Core ML itself: this run used milrun, which follows the program's types")
    if row.get("ndcg10") is None:
        missing.append("retrieval and similarity: this model has no `retrieval:` in params.yaml")
    missing += [text for name, text in OPTIONAL.items() if row.get(name) is None]
    if row["audit_passed"] is None:
        missing.append("the weight audit: its report is missing (the stage `audit` needs the checkpoint)")
    return missing


def write_texts(evidence: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One row a text and build."""
    table = [{"build": build} | text for build, found in evidence.items() for text in found["texts"]]
    with staged(path) as partial:
        pq.write_table(pa.Table.from_pylist(table), partial)


def _told(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{tool} {version}" for tool, version in versions.items())


def context(everything: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that the templates show."""

    def read(kind: str) -> dict[str, Any]:
        files = {r["build"]: places.report(kind, r["model"], r["variant"]) for r in found}
        return {build: read_json(file) if file.exists() else None for build, file in files.items()}

    evidence, released = read("evidence"), regression.released()
    texts = {build: e["texts"] for build, e in evidence.items()}
    drifts = {build: e["drift"]["against_original"] for build, e in evidence.items()}
    inside = {b: e["drift"]["arithmetic"]["layers"] for b, e in evidence.items() if e["drift"]["arithmetic"]}
    return {
        "rows": found,
        "evidence": evidence,
        "audit": read("audit"),
        "coreml": {b: c if c and "settings" in c else None for b, c in read("coreml").items()},
        "gates": {r["build"]: gates(r, evidence[r["build"]]["gates"]) for r in found},
        "not_measured": {r["build"]: not_measured(r) for r in found},
        "unbuilt": [m for m in everything["models"] if not any(r["model"] == m for r in found)],
        "differences": regression.compare(released, found),
        "headline": list(mac.headline({"settings": [], "plans": []}, mac.Function("main", 1, 1))),
        "purposes": {name: v.get("purpose", "") for name, v in everything["variants"].items()},
        "meanings": MEANINGS,
        "originals": sorted({_told(e["provenance"]["original"]) for e in evidence.values()}),
        "resamples": quality.RESAMPLES,
        "states": max(([layer["layer"] for layer in each] for each in drifts.values()), key=len, default=[]),
        "plots": {
            "parity": plots.parity({b: [t["cosine"] for t in each] for b, each in texts.items()}),
            "size": plots.quality_per_byte(found),
            "length": plots.by_length(texts),
            "drift": plots.drift(drifts),
            "range": plots.range_use(inside),
            "quality": plots.quality(found) if any(r.get("ndcg10") is not None for r in found) else None,
        },
    }


def summarize() -> None:
    """Write the files, then fail if a build is worse than the released one."""
    everything = params.load()
    found = rows(everything)
    shown = context(everything, found)
    write_json(REPORTS / "summary.json", [plain(r) for r in found])
    write_texts(shown["evidence"], REPORTS / "texts.parquet")
    for name, source in {
        "index.html": "report.html.j2",
        "comment.md": "comment.md.j2",
        "results.md": "results.md.j2",
    }.items():
        with staged(REPORTS / name) as partial:
            partial.write_text(template(source).render(**shown), encoding="utf-8")
    print((REPORTS / "index.html").resolve())
    regression.check(shown["differences"])


if __name__ == "__main__":
    run(summarize)
