"""Is a build worse than the last released one?

`reports/released.json` holds the figures of each model's last release: `python -m pipeline.regression MODEL VERSION`
takes them from `reports/summary.json` when a release was made, and the file is committed with it. `summarize`
compares every build with it, shows the differences, and fails where the worst text got worse beyond noise. `dvc
metrics diff TAG` shows every other figure between two commits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import places
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, write_json

RELEASED = Path("reports/released.json")

SHOWN = ("min_cosine", "median_cosine", "top10_overlap", "ndcg10", "bytes", "neural_engine_latency_p50_ms")

NOISE = 2e-6
"""Cosine that FP16 itself costs: two orders of the same sums may differ by so much on the worst text."""

SLACK = 1.25
"""Times the released error (1 - cosine): other engines and processors round other values."""


def worse(before: float, now: float) -> bool:
    """Whether a least cosine fell beyond noise."""
    return not 1 - now <= (1 - before) * SLACK + NOISE


def compare(released: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each build the figures before and now, and the version before, which is null for a new build."""
    builds = released.get("builds", {})
    found = []
    for row in rows:
        before = builds.get(row["build"])
        changes = {
            name: {"before": before.get(name) if before else None, "now": row.get(name)} for name in SHOWN
        }
        bad = bool(before) and worse(before["min_cosine"], row["min_cosine"])
        version = before["version"] if before else None
        record = {"build": row["build"], "gone": False, "released": version, "worse": bad}
        found.append(record | {"figures": changes})
    gone = sorted(set(builds) - {row["build"] for row in rows})
    return [*found, *({"build": name, "gone": True} for name in gone)]


def check(differences: Sequence[Mapping[str, Any]]) -> None:
    """Raise `PipelineError` if a build is worse than the released one."""
    bad = [d for d in differences if d.get("worse")]
    if bad:
        figures = bad[0]["figures"]["min_cosine"]
        raise PipelineError(
            f"{bad[0]['build']}: min_cosine {figures['now']:.7f}, {figures['before']:.7f} in release {bad[0]['released']}: worse "
            f"beyond noise (allowed: {SLACK} times its error and {NOISE:g}){f'; {len(bad) - 1} more' if bad[1:] else ''}"
        )


def released() -> dict[str, Any]:
    """The figures of each build's last release."""
    if not RELEASED.exists():
        return {"builds": {}}
    found: dict[str, Any] = read_json(RELEASED)
    return found


def record(model: str, version: str) -> None:
    """Note the figures of a model's builds as those of a release."""
    rows = [row for row in read_json(Path("reports/summary.json")) if row["model"] == model]
    if failed := [row["build"] for row in rows if not row["passed"]]:
        raise PipelineError(f"{failed[0]} does not pass; a release holds only what passed")
    if not rows:
        raise PipelineError(f"reports/summary.json has no build of {model}; run the pipeline first")
    made = {row["build"]: {"version": version} | {name: row.get(name) for name in SHOWN} for row in rows}
    kept = {b: f for b, f in released()["builds"].items() if not b.startswith(f"{model} ")}
    write_json(RELEASED, {"builds": kept | made})


def main() -> None:
    """`python -m pipeline.regression MODEL VERSION`."""
    record(*places.arguments_of(sys.argv, "MODEL", "VERSION"))


if __name__ == "__main__":
    run(main)
