"""Stage `summarize`: which builds are there, and which would one ship?

From the reports of all models and variants in `params.yaml` (not of whatever lies in the folder: removed models
leave files behind), writes `reports/summary.json` (a list of rows, also for `dvc plots`), `reports/index.html`
(self-contained, opens without a network) and `reports/results.md` (the table that the README shows).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import params, places, plots
from pipeline.errors import run
from pipeline.files import read_json, staged, write_json
from pipeline.release import template


def rows(everything: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a build that has been judged, in the order of `params.yaml`."""
    found = []
    for model in everything["models"]:
        for variant in params.variants(everything):
            parity, benchmark = (
                places.report("parity", model, variant),
                places.report("benchmark", model, variant),
            )
            if parity.exists() and benchmark.exists():
                judged, measured = read_json(parity), read_json(benchmark)
                found.append({"build": f"{model} {variant}"} | measured | judged)
    return found


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row that fit a table: neither lists nor mappings."""
    return {key: value for key, value in row.items() if not isinstance(value, list | dict)}


def summarize() -> None:
    """Write the three files."""
    everything = params.load()
    found = rows(everything)
    evidence = {r["build"]: read_json(places.report("evidence", r["model"], r["variant"])) for r in found}
    texts = {build: e["texts"] for build, e in evidence.items()}
    reports = Path("reports")
    unbuilt = [m for m in everything["models"] if not any(r["model"] == m for r in found)]
    drawn = {
        "parity": plots.parity({b: [t["cosine"] for t in rows_] for b, rows_ in texts.items()}),
        "size": plots.quality_per_byte(found),
        "length": plots.by_group(texts),
    }
    page = template("report.html.j2").render(rows=found, evidence=evidence, plots=drawn, unbuilt=unbuilt)
    write_json(reports / "summary.json", [plain(r) for r in found])
    for name, text in {
        "index.html": page,
        "results.md": template("results.md.j2").render(rows=found),
    }.items():
        with staged(reports / name) as partial:
            partial.write_text(text, encoding="utf-8")
    print((reports / "index.html").resolve())


if __name__ == "__main__":
    run(summarize)
